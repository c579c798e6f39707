"""A study of methods side by side: its table, its results on disk, its estimate."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import holdfast
from holdfast import adapters, checkpoints, files, trials
from holdfast.config import read_study
from holdfast.errors import ConfigError, FitError, ModelError
from hostile import command
from test_config import BODY
from test_methods import BLOCK, ELSEWHERE, METHODS, ROWS

SWEPT = ["lora", "full", "top layer", "ia3", "dora", "pissa", "oft", "prompt"]


@pytest.fixture(scope="module")
def swept(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A study of methods side by side, made; each keeps the results of its measured steps."""
    folder = tmp_path_factory.mktemp("methods")
    for name, words in (
        ("sums", "{} plus {} is {}."),
        ("kelp", "Stalk {} of kelp moves with stalk {}, and {} is still."),
    ):
        rows = [{"text": words.format(a, b, a + b)} for a in range(6) for b in range(3)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    content = {
        "model": str(tiny), "dtype": "float32", "target": {"data": str(folder / "sums.jsonl"), "held_out": 4},
        "retain": [str(folder / "kelp.jsonl")], "optimizer": {"learning_rate": 3e-3}, "steps": 4, "batch_size": 2,
        "context": 32, "measure": {"points": 2, "first": 2, "documents": 4},
        "grid": {"adapter": [METHODS[name][0].model_dump(mode="json") for name in SWEPT]},
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder, holdfast.sweep(folder / "study.yaml", out=folder / "runs", keep_adapters=True)


def run_of(swept: tuple[Path, pd.DataFrame], name: str) -> tuple[Path, pd.DataFrame]:
    folder, table = swept
    run = list(dict.fromkeys(table["run"]))[SWEPT.index(name)]
    return folder / "runs" / run, table[table["run"] == run]


@pytest.mark.parametrize("name", SWEPT)
def test_a_result_on_disk_is_what_the_run_measured_last(name: str, swept: tuple[Path, pd.DataFrame]) -> None:
    folder, rows = run_of(swept, name)
    assert set(rows["state"]) == {"done"}, rows["reason"].iloc[0]
    retained = rows[rows["role"] == "retain"].set_index("step")
    text = str(swept[0] / "kelp.jsonl")
    options = {"texts": [text], "context": 32, "documents": 4, "dtype": "float32"}
    found = holdfast.measure(tuned=str(folder), **options)  # which names its base
    assert [checkpoint.step for checkpoint in found.checkpoints] == [2, 4]
    assert [checkpoint.findings for checkpoint in found.checkpoints if name != "pissa"] == [()] * 2 * (name != "pissa")
    for checkpoint in found.checkpoints:
        report = checkpoint.texts["kelp"]
        for quantity in ("kl_base_tuned", "nll", "hard_cross_entropy", "agreement"):
            expected = retained.loc[checkpoint.step, quantity]
            assert report.estimate(quantity).value == pytest.approx(expected, abs=2e-5), quantity
    result = folder / ("model" if name in ("full", "top layer") else "adapter")
    again = holdfast.measure(base=str(swept[1]["model"].iloc[0]), tuned=str(result), **options)
    assert again.kl_base_tuned == found.kl_base_tuned


@pytest.mark.parametrize("name", SWEPT)
def test_step_0_is_the_control_or_what_the_method_begins_with(name: str, swept: tuple[Path, pd.DataFrame]) -> None:
    _, rows = run_of(swept, name)
    start = rows[rows["step"] == 0]
    if name in ELSEWHERE:
        assert (start["kl_base_tuned"].abs() < (1e-5 if name == "pissa" else 10)).all()
    else:
        assert start["kl_base_tuned"].tolist() == [0, 0]
        assert start["agreement"].tolist() == [1, 1]
    assert (rows[rows["step"] == 4]["kl_base_tuned"].to_numpy() != start["kl_base_tuned"].to_numpy()).all()


@pytest.mark.parametrize("name", ["full", "top layer"])
def test_a_whole_model_is_an_ordinary_folder(name: str, swept: tuple[Path, pd.DataFrame], tiny: Path) -> None:
    folder, rows = run_of(swept, name)
    model, info = AutoModelForCausalLM.from_pretrained(folder / "model", dtype="auto", output_loading_info=True)
    assert model.dtype == torch.float32
    assert not info["missing_keys"]
    base = dict(AutoModelForCausalLM.from_pretrained(tiny).named_parameters())
    moved = sum(p.numel() for name, p in model.named_parameters() if not torch.equal(p, base[name]))
    assert moved == rows["trainable_params"].iloc[0]
    text = "Kelp grows on rock."
    one, two = (AutoTokenizer.from_pretrained(place)(text)["input_ids"] for place in (folder / "model", tiny))
    assert one == two
    answers = holdfast.probe(base=str(tiny), tuned=str(folder / "model"), tasks=["arc_easy"], limit=3)
    assert 0 <= answers["arc_easy"].agreement.value <= 1


def test_a_result_that_has_changed_since_is_refused(swept: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    folder, _ = run_of(swept, "full")
    copied = Path(shutil.copytree(folder, tmp_path / folder.name))
    (copied / "model" / "config.json").write_text((copied / "model" / "config.json").read_text() + " ")
    with pytest.raises(ModelError, match=r"changed since the run was finished, at .*config\.json"):
        holdfast.measure(tuned=str(copied / "model"), texts=[str(swept[0] / "kelp.jsonl")], dtype="float32")


def test_what_tells_runs_apart_are_columns(swept: tuple[Path, pd.DataFrame]) -> None:
    table = swept[1].drop_duplicates("run").reset_index(drop=True)
    assert table["method"].tolist() == [
        "lora", "full", "top-layers", "ia3", "peft LORA", "peft LORA", "peft OFT", "peft PROMPT_TUNING",
    ]  # fmt: skip
    assert table["r"].dropna().to_dict() == {0: 4, 4: 4, 5: 4}
    assert table["layers"].dropna().to_dict() == {2: 1}
    assert table["trainable_params"].tolist() == [METHODS[name][1] for name in SWEPT]
    assert len(set(zip(table["method"], table["adapter"], strict=True))) == len(SWEPT)
    again = holdfast.table(swept[0] / "runs").drop_duplicates("run").set_index("run").loc[table["run"]]
    assert again["adapter"].tolist() == table["adapter"].tolist()


def test_laws_are_of_the_method_with_the_most_runs_and_leave_out_the_others(
    swept: tuple[Path, pd.DataFrame],
) -> None:
    with pytest.raises(FitError, match="got 2 points"):  # one run of each method: LoRA's, measured too seldom
        holdfast.fit(swept[1], skip_fraction=0)
    whole = swept[1][swept[1]["method"] == "full"]
    more = [
        whole.assign(run=f"seed {seed}", kl_base_tuned=whole["kl_base_tuned"] * (1 + seed / 50)) for seed in range(3)
    ]
    alone, mixed = (holdfast.fit(pd.concat(rows), skip_fraction=0) for rows in (more, [swept[1], *more[1:]]))
    assert (alone.method, alone.ranks) == ("full", (0,))
    assert any("only one number of parameters was run" in warning for warning in alone.warnings)
    assert mixed.runs == (whole["run"].iloc[0], "seed 1", "seed 2")
    assert mixed.lines["kl_base_tuned"].parameters == alone.lines["kl_base_tuned"].parameters
    assert any("7 of 10 finished runs are trained in another way" in warning for warning in mixed.warnings)
    with pytest.raises(FitError, match="runs that have no rank"):
        holdfast.plan(mixed, max_forgetting=0.1)


def test_a_study_of_methods_has_a_page(swept: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    assert command("report", "runs", "--output-dir", tmp_path, folder=swept[0]).code == 0
    page = (tmp_path / "report.html").read_text()
    assert "top-layers" in page
    assert "peft PROMPT_TUNING" in page
    status = command("status", "runs", folder=swept[0])
    assert status.code == 0
    assert "top 1 layers" in status.out


PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "which-method.md"


def test_the_page_on_methods_says_what_can_be_read(tmp_path: Path) -> None:
    bare = BODY.replace("adapter:\n  r: 16\n  lora_alpha: 1\n", "").replace("  warmup_steps: 4\n", "")
    written = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(written) == 6
    for block in written:
        body = re.sub(r"^dtype:.*\n", "", bare, flags=re.MULTILINE) if "dtype:" in block else bare
        (tmp_path / "study.yaml").write_text(body + block)
        study = read_study(tmp_path / "study.yaml")
        adapters.check_methods(study)
    assert len(study.runs) == 6


def test_an_estimate_knows_every_method(swept: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    study = read_study(swept[0] / "study.yaml")
    cost = trials.estimate_cost(study, out=tmp_path / "runs")
    weights = [
        path.stat().st_size
        for run in dict.fromkeys(swept[1]["run"])
        for path in (swept[0] / "runs" / run).glob("*/*.safetensors")
        if path.parent.name in adapters.RESULTS
    ]
    most = max(
        checkpoints.most_bytes(METHODS[name][1], 4 * (ROWS * 32 + 2 * BLOCK + 32) * (name in ("full", "top layer")))
        for name in SWEPT
    )
    whole = 4 * (ROWS * 32 + 2 * BLOCK + 32)
    results = cost.disk_bytes - most - files.passing_bytes(tmp_path, whole)
    assert results <= sum(weights) <= results + 8192 * len(SWEPT)
    assert cost.runs == len(SWEPT)
    assert not (tmp_path / "runs").exists()


def test_a_grid_is_searched_for_what_peft_does_not_know(swept: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    text = (swept[0] / "study.yaml").read_text()
    content = yaml.safe_load(text) | {"adapter": {"method": "peft", "peft_type": "OFT"}}
    content["grid"] = {"adapter.config.oft_block_size": [4, "x"], "adapter.config.rr": [1]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as error:
        holdfast.sweep(tmp_path / "study.yaml", out=tmp_path / "runs")
    lines = str(error.value).splitlines()
    assert [line.split(", expected")[0].partition(" ")[2] for line in lines] == [
        "grid.adapter.config.oft_block_size: got 'x'", "grid.adapter.config.rr: got an unknown key",
    ]  # fmt: skip
    assert not (tmp_path / "runs").exists()
