"""The command line as a person or a program uses it: what it prints where, and how it exits."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from holdfast import cli

COMMANDS = (
    "demo", "sweep", "status", "fit", "plan", "forecast", "next", "report", "figures", "card", "measure", "probe",
    "schema",
)  # fmt: skip


def run(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["holdfast", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        cli.main()
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out, captured.err


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study of a tiny model at three ranks, made by the command itself."""
    folder = tmp_path_factory.mktemp("cli")
    rows = [{"prompt": f"{a} plus {b} is", "completion": f" {a + b}."} for a in range(6) for b in range(6)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    kelp = [
        {"text": f"The {i}th stalk of kelp grows beside the {i + 1}th, and both move with the tide."} for i in range(9)
    ]
    (folder / "kelp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kelp))
    study = {
        "model": str(tiny),
        "dtype": "float32",
        "target": {"data": str(folder / "sums.jsonl"), "held_out": 8},
        "retain": [str(folder / "kelp.jsonl")],
        "adapter": {"lora_alpha": 8},
        "optimizer": {"learning_rate": 1e-3},
        "steps": 24,
        "batch_size": 2,
        "context": 32,
        "measure": {"points": 5, "first": 6, "documents": 6},
        "grid": {"adapter.r": [1, 4, 16]},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-c", "from holdfast.cli import main; main()", "sweep", "study.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert sum("left" in line for line in lines) == 3 * 6  # plain lines, for this is no terminal
    assert lines[0].startswith("3 runs to make: about ")
    assert lines[-2].startswith("run 3/3, r = 16: done, held-out loss ")
    assert re.fullmatch(r"took .* s; \d+ % of the estimate of .* s", lines[-1])
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_a_runnable_example(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run([command, "--help"], monkeypatch, capsys)
    assert code == 0
    example = " ".join(out.split("Example:")[1].split())
    assert example.startswith(f"holdfast {command}")


def test_help_loads_nothing_heavy() -> None:
    """What keeps --help fast: not a stopwatch, but the libraries it must not touch."""
    code = (
        "import sys; from holdfast.cli import main; sys.argv = ['holdfast', 'sweep', '--help']\n"
        "try: main()\nexcept SystemExit: print(*(m.split('.')[0] for m in sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = set(loaded.splitlines()[-1].split())
    assert "typer" in modules
    assert not {"torch", "transformers", "numpy", "pandas", "scipy", "altair"} & modules


def test_fit_prints_a_table_or_only_json(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(["fit", str(made / "runs")], monkeypatch, capsys)
    assert code == 0
    assert out.startswith("Each 0.1 nat of improvement on sums costs")
    for part in (
        "held to what they had not seen",
        "Every form, held to the same",
        "paper, coupled",
        "additive: asymptote",
    ):
        assert part in out
    assert "intervals rest on 3 runs only" in err
    code, out, _ = run(["fit", str(made / "runs"), "--json"], monkeypatch, capsys)
    examined = json.loads(out)
    laws = examined["laws"]
    assert {"saturating", "additive", "paper, coupled"} <= set(examined["forms"]["fits"]["kl_base_tuned"])
    assert examined["validation"]["held_out"][0]["split"] == "largest rank (r = 16)"
    assert laws["n_runs"] == 3
    assert laws["ranks"] == [1, 4, 16]
    assert laws["lines"]["kl_base_tuned"]["n_points"] == 3 * 5


def test_plan_answers_and_refuses(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["plan", str(made / "runs"), "--max-forgetting", "0.1", "--json"], monkeypatch, capsys)
    assert code == 0
    assert json.loads(out)["r"] in (1, 2, 4, 8, 16)
    code, out, err = run(["plan", str(made / "runs")], monkeypatch, capsys)
    assert (code, out) == (2, "")
    assert "got neither max_forgetting nor target_loss" in err


def test_a_published_law_plans_without_any_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["plan", "--law", "kalajdzievski2024-openorca", "--trainable-params", "20e6", "--max-forgetting"]
    code, out, err = run([*asked, "0.8"], monkeypatch, capsys)
    assert code == 0
    assert out.startswith("r = 8, 100 steps")
    assert "0.173 nats of hard forgetting loss on WikiText-103" in out
    assert "a published law, not of your model: Llama-2-7B-chat" in err
    code, out, _ = run([*asked, "0.5", "--json"], monkeypatch, capsys)
    assert (code, json.loads(out)["feasible"]) == (0, False)


def test_anyones_points_are_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    points = pd.DataFrame({"size": [1e6, 2e6, 4e6, 8e6] * 5, "tokens": [t for t in (1, 2, 4, 8, 16) for _ in range(4)]})
    points["loss"] = 2 + (points["size"] / 1e6) ** -0.3 + 0.5 * points["tokens"] ** -0.6
    points.to_csv(tmp_path / "points.csv", index=False)
    asked = ["fit", str(tmp_path / "points.csv"), "--x", "size,tokens", "--y", "loss"]
    code, out, _ = run(asked, monkeypatch, capsys)
    assert code == 0
    assert "P is size, P0 2.828e+06; N is tokens, N0 4" in out
    code, out, _ = run([*asked, "--law", "additive", "--json"], monkeypatch, capsys)
    (fit,) = json.loads(out)["fits"]
    assert fit["parameters"]["y"]["value"] == pytest.approx(0.6, abs=1e-4)
    assert fit["n_runs"] == 20


def test_a_run_in_progress_is_forecast(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the three, cut off after its third measurement as a crash would leave it."""
    shutil.copytree(made / "runs", tmp_path / "runs")
    name = min(path.parent.name for path in (tmp_path / "runs").glob("*/config.json"))
    folder = tmp_path / "runs" / name
    (folder / "done.json").unlink()
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    steps = [json.loads(line)["measurement"]["step"] for line in lines]
    kept = sorted(set(steps))[:4]
    (folder / "records.jsonl").write_text("".join(x for x, step in zip(lines, steps, strict=True) if step in kept))
    asked = ["forecast", str(tmp_path / "runs"), "--run", name[:6], "--steps", "24", "--max-forgetting", "0.2"]
    code, out, _ = run(asked, monkeypatch, capsys)
    assert code == 0
    assert f"At step 24 run {name} should forget" in out
    assert "The probability that it will forget more than 0.2 is" in out
    code, out, _ = run([*asked, "--json"], monkeypatch, capsys)
    forecasts = {made["quantity"]: made for made in json.loads(out)["forecasts"]}
    assert set(forecasts) == {"target_nll", "kl_base_tuned", "hard_cross_entropy"}
    assert forecasts["kl_base_tuned"]["last_step"] == kept[-1]
    code, out, err = run([*asked[:3], "zzz", "--steps", "24"], monkeypatch, capsys)
    assert (code, out) == (3, "")
    assert "got run 'zzz', which none begins with" in err.replace("\n", " ")


def test_the_next_run_is_named_with_its_cost(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["next", str(made / "runs"), "--max-forgetting", "0.2"]
    code, out, _ = run(asked, monkeypatch, capsys)
    assert code == 0
    assert "Candidates, for a run of r = " in out
    code, out, _ = run([*asked, "--json"], monkeypatch, capsys)
    found = json.loads(out)
    gains = [purchase["gain"] for purchase in found["ranked"]]
    assert gains == sorted(gains, reverse=True)
    assert found["stop"] or found["chosen"][0] == found["ranked"][0]


def test_report_writes_the_page_and_the_figures(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["report", str(made / "runs"), "-o", str(tmp_path), "--max-forgetting", "0.1"]
    code, out, _ = run(arguments, monkeypatch, capsys)
    assert code == 0
    assert f"Report: {tmp_path / 'report.html'}" in out
    assert "holdfast report" in (tmp_path / "report.html").read_text()
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert len(figures) == 12
    assert (tmp_path / "figures" / figures[0]).read_bytes().startswith(b"\x89PNG")


def test_measure_writes_what_is_asked_and_exits_10_over_the_budget(
    made: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = next((made / "runs").glob("*/adapter"))
    arguments = ["measure", str(tiny), str(adapter), "--text", str(made / "kelp.jsonl"), "--dtype", "float32"]
    files = {kind: tmp_path / f"report.{kind}" for kind in ("html", "parquet", "md")}
    written = ["--html", str(files["html"]), "--parquet", str(files["parquet"]), "--model-card", str(files["md"])]
    code, out, _ = run([*arguments, *written, "--max-forgetting", "1e-9", "--json"], monkeypatch, capsys)
    assert code == 10
    found = json.loads(out)
    (text,) = found["checkpoints"][0]["texts"]
    assert text["kl_base_tuned"]["value"] > 1e-9
    assert found["verdict"] == "over budget"
    assert "holdfast measure" in files["html"].read_text()
    sums = pd.read_parquet(files["parquet"])
    assert sums["kl_base_tuned"].sum() / sums["scored_tokens"].sum() == pytest.approx(text["kl_base_tuned"]["value"])
    assert "model-index" in files["md"].read_text()
    code, out, _ = run([*arguments, "--max-forgetting", "99"], monkeypatch, capsys)
    assert code == 0
    assert "within budget" in out
    assert "kelp" in out
    code, out, _ = run(["measure", *arguments[2:], "--max-forgetting", "99"], monkeypatch, capsys)  # base left out
    assert code == 0


def test_measure_says_of_two_models_which_forgot_more_and_names_what_could_not_be_measured(
    made: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = sorted(made.glob("runs/*/adapter"))[:2]
    text = ["--text", str(made / "kelp.jsonl"), "--dtype", "float32"]
    code, out, _ = run(["measure", str(tiny), *map(str, adapters), *text], monkeypatch, capsys)
    assert code == 0
    assert "nats per token more than" in out
    assert "paired by document, p " in out
    for step in (1, 2):
        shutil.copytree(adapters[0], tmp_path / f"outputs/checkpoint-{step}")
    broken = tmp_path / "outputs/checkpoint-1/adapter_model.safetensors"
    weights = load_file(broken)
    next(iter(weights.values()))[0, 0] = float("nan")
    save_file(weights, broken)
    code, out, _ = run(["measure", str(tmp_path / "outputs"), *text], monkeypatch, capsys)
    assert code == 4
    assert "not measured checkpoint-1:" in out
    assert "NaN" in out


def test_probe_says_what_is_no_longer_the_bases_answer(
    made: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = sorted(map(str, made.glob("runs/*/adapter")))[:2]
    asked = ["--task", "arc_challenge", "--limit", "12", "--dtype", "float32"]
    code, out, _ = run(["probe", str(tiny), adapters[0], *asked, "--protocol", "letter"], monkeypatch, capsys)
    assert code == 0
    assert "arc_challenge  12 items; choices listed, log-likelihood of each letter, zero-shot" in out
    assert "same answer as base" in out
    file, page = tmp_path / "items.parquet", tmp_path / "page.html"
    written = ["--parquet", str(file), "--html", str(page)]
    code, out, _ = run(["probe", *adapters, *asked, *written, "--json"], monkeypatch, capsys)
    assert code == 0
    assert "holdfast probe" in page.read_text()
    found = json.loads(out)
    assert found["base"] == str(tiny)  # named by the adapters
    for model in found["models"]:
        (result,) = model["results"]
        assert result["protocol"]["scoring"] == "character"
        assert result["agreement"]["n"] == 12
    assert len(pd.read_parquet(file)) == 24
    code, out, _ = run(["probe", str(tiny), *adapters, *asked], monkeypatch, capsys)
    assert code == 0
    assert "2 models against" in out
    assert "so many items show changes of" in out
    asked = ["--task", "advbench", "--limit", "6", "--dtype", "float32", "--max-new-tokens", "8"]
    code, out, _ = run(["probe", str(tiny), adapters[0], *asked], monkeypatch, capsys)
    assert code == 0
    for word in ("advbench, unsafe prompts", "largest change", "at random",
                 "odds of a usual refusal", "sensitivity", "a proxy"):  # fmt: skip
        assert word in out


def test_a_sweep_with_a_diverged_run_exits_4(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["--set", "optimizer.learning_rate=1e30", "--set", "grid.adapter.r=[2]"]
    arguments = ["sweep", str(made / "study.yaml"), "-o", str(tmp_path / "runs"), *overrides, "--json"]
    code, out, err = run(arguments, monkeypatch, capsys)
    assert code == 4
    assert {row["state"] for row in json.loads(out)} == {"diverged"}
    assert "diverged: step " in err


def test_schema_is_json_and_describes_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = run(["schema"], monkeypatch, capsys)
    run(["schema", str(tmp_path / "schema.json")], monkeypatch, capsys)
    assert json.loads(out) == json.loads((tmp_path / "schema.json").read_text())
    assert {"model", "grid"} <= json.loads(out)["properties"].keys()


REFUSED = {
    "no study": (["sweep", "absent.yaml"], 2, "ConfigError"),
    "no runs": (["fit", "absent"], 3, "StoreError"),
    "neither runs nor a law": (["plan", "--max-forgetting", "0.1"], 2, "ConfigError"),
    "no such law": (["plan", "--law", "nobody2025", "--max-forgetting", "0.1"], 2, "ConfigError"),
    "no columns": (["fit", "points.csv"], 2, "ConfigError"),
    "no such option": (["fit", "--nothing"], 2, "No such option"),
    "no such command": (["forget"], 2, "No such command"),
    "no such model": (["measure", "absent-model", "a", "--text", "builtin:wikipedia"], 3, "ModelError"),
    "no such text": (["measure", "builtin:smollm2", "builtin:smollm2", "--text", "absent.jsonl"], 3, "DataError"),
    "no such task": (["probe", "builtin:smollm2", "builtin:smollm2", "--task", "arc"], 3, "DataError"),
    "no such protocol": (["probe", "builtin:smollm2", "builtin:smollm2", "--protocol", "b"], 2, "ConfigError"),
    "no such precision": (["measure", "builtin:smollm2", "builtin:smollm2", "--dtype", "float8"], 2, "ConfigError"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_one_message_and_an_exit_code(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, expected, word = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    code, out, err = run(arguments, monkeypatch, capsys)
    assert code == expected
    assert out == ""
    assert word in err
    assert "Traceback" not in err
