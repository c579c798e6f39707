"""Runs by what they learned and how: laws of each, one held to the others, and a page for each target."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import simulated
from holdfast import archive, options, overview
from holdfast.config import Optimizer, RunConfig, Target
from holdfast.errors import ConfigError
from holdfast.groups import grouped
from holdfast.laws import SKIP_FRACTION, fit, points
from holdfast.methods import Lora
from holdfast.publishing import Published, publish
from holdfast.store import Measurement, owning

KL = "kl_base_tuned"
LORA = simulated.study(np.random.default_rng(0), seeds=(0,))


def also(rows: pd.DataFrame, **changed: object) -> pd.DataFrame:
    """The same runs under other names, with other settings."""
    return rows.assign(run="other" + rows["run"].astype(str), **changed)


def test_ranks_seeds_layers_and_precision_make_no_groups():
    (only,) = grouped(simulated.study(np.random.default_rng(1)).assign(layers=np.nan, adapter="{}"))
    assert only.settings == {}
    assert only.name == "all runs"
    assert (only.n_runs, only.missed) == (18, None)
    assert len(grouped(pd.concat([LORA, also(LORA, dtype="bfloat16", seed=7)]))) == 1


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"method": "ia3"}, "method ia3"),
        ({"learning_rate": 2e-4}, "learning rate 0.0002"),
        ({"lora_alpha": 32}, "alpha 32"),
        ({"use_rslora": False}, "rsLoRA False"),
        ({"batch_tokens": 512}, "tokens a step 512"),
        ({"target": "gsm8k"}, "target openorca"),
    ],
)
def test_each_way_has_its_own_price_and_the_largest_comes_first(changed, name):
    """The others forget a third more for what they learn."""
    few = also(LORA[LORA["r"].isin((8, 64, 256))], **changed)
    few = few.assign(kl_base_tuned=few[KL] * 4 / 3)
    table = pd.concat([few, LORA], ignore_index=True)
    groups = grouped(table)
    by_size = sorted(groups, key=lambda group: -group.n_runs)
    assert [group.n_runs for group in by_size] == [6, 3]
    for group, rows in zip(by_size, (LORA, few), strict=True):
        assert group.laws is not None
        own = fit(rows)
        assert group.price == own.lines[KL].parameters["slope"]
        assert group.laws.joint[KL].parameters == own.joint[KL].parameters
    if "target" in changed:  # no law of one target is held to another
        assert [group.missed for group in groups] == [None, None]
        return
    assert by_size == list(groups)
    assert by_size[1].name == name
    line = fit(LORA).lines[KL]
    rows = points(few)
    error = line.predict(target_nll=rows["target_nll"].to_numpy()).mean - rows[KL].to_numpy()
    missed = by_size[1].missed[0]
    assert missed.rmse == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-12)
    assert missed.bias == pytest.approx(np.mean(error), rel=1e-12)
    assert missed.bias < -0.1
    json.dumps(by_size[1].to_dict(), allow_nan=False)


def test_only_the_largest_group_is_itself():
    """A group beside one that has no law is held to none, and is not called what it is not."""
    steps = sorted(LORA["step"].unique())
    few = LORA[(LORA["r"] == 8) & LORA["step"].isin([0, *steps[-3:]])]
    largest, other = grouped(pd.concat([few, also(few, method="ia3")], ignore_index=True))
    assert largest.laws is None
    assert (largest.missed, other.missed) == (None, ())
    assert set(largest.runs) == set(few["run"])


def test_an_alpha_that_goes_with_the_rank_is_one_way_of_scaling():
    (only,) = grouped(LORA.assign(lora_alpha=2 * LORA["r"]))
    assert only.n_runs == 6


def test_numbers_of_an_adapter_are_its_size_and_words_another_way():
    blocks = pd.concat([also(LORA[LORA["r"] == r], adapter=f'{{"block":{r}}}') for r in (8, 16, 32)])
    assert len(grouped(blocks)) == 1
    other = also(LORA, adapter='{"target_modules":"attention"}')
    known = '{"lora_dropout":0.0,"target_modules":["q_proj","k_proj"]}'
    names = {group.name for group in grouped(pd.concat([LORA.assign(adapter=known), other]))}
    assert names == {"lora_dropout 0.0, target_modules q_proj k_proj", "target_modules attention"}


def learned(root: Path, data: str, *, r: int, steps: int = 60, **prices: float) -> None:
    """A run that pays these for what it learns, one on each retained text."""
    config = RunConfig(
        model="m", dtype="float32", target=Target(data=data), retain=tuple(prices), adapter=Lora(r=r), steps=steps,
        optimizer=Optimizer(learning_rate=1e-3), batch_size=1, context=16,
    )  # fmt: skip
    with owning(config, root=root) as recorder:
        assert recorder is not None
        recorder.begin({"trainable_params": 100 * r})
        for step in range(0, steps + 1, 10):
            gain = 0.3 * (step / 60) ** 0.5 * r**0.05
            common = {"cross_entropy": 1.0, "base_entropy": 1.0, "excess_nll": 0.0, "agreement": 0.9}
            for role, corpus, values in (
                ("target", Path(data).stem, {"nll": 2.0 - gain, "base_nll": 2.0, KL: 0.1, "hard_cross_entropy": 1.0}),
                *(
                    ("retain", corpus, {"nll": 3.0, "base_nll": 3.0, KL: price * gain + 0.0002 * (step % 7),
                                        "hard_cross_entropy": 1 + price * gain})
                    for corpus, price in prices.items()
                ),
            ):  # fmt: skip
                place = {"step": step, "tokens": 16 * step, "corpus": corpus, "role": role}
                recorder.append(
                    Measurement(
                        **place, documents=9, scored_tokens=99,
                        values={name: (value, 0.01) for name, value in (values | common).items()},
                    )
                )  # fmt: skip
        recorder.finish({})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("targets") / "runs"
    for r in (1, 4, 16):
        learned(root, "data/sums.jsonl", r=r, keep=0.2)
        learned(root, "data/news <b>.jsonl", r=r, keep=0.6)
    return root


def called(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from holdfast.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_only_chooses_by_any_column_and_says_what_there_is(runs: Path) -> None:
    assert archive.table(runs, only=["target=sums"])["run"].nunique() == 3
    assert archive.table(runs, only=["target=data/sums.jsonl", "r=4"])["run"].nunique() == 1
    assert archive.table(runs, only=["learning_rate=0.001"])["run"].nunique() == 6
    with pytest.raises(ConfigError, match=r"got 'target=maths', expected one of .*sums"):
        archive.table(runs, only=["target=maths"])
    with pytest.raises(ConfigError, match="expected COLUMN=VALUE of a column"):
        archive.table(runs, only=["colour=red"])


def test_a_law_of_several_targets_is_refused_and_of_one_is_fitted(runs: Path) -> None:
    refused = called("fit", str(runs))
    assert refused.returncode != 0
    assert "choose by --only target=" in " ".join(refused.stderr.split())
    found = json.loads(called("fit", str(runs), "--only", "target=sums", "--json").stdout)
    assert found["laws"]["target"] == "sums"
    assert found["laws"]["lines"][KL]["parameters"]["slope"]["value"] == pytest.approx(0.2, abs=0.02)
    assert len(found["groups"]) == 1


def test_a_page_leaves_out_the_first_steps_that_it_is_asked_to(runs: Path, tmp_path: Path) -> None:
    asked = ("--only", "target=sums", "--skip-fraction", "0.5")
    fitted = json.loads(called("fit", str(runs), *asked, "--json").stdout)["laws"]
    assert fitted["skip_fraction"] == 0.5
    written = called("report", str(runs), *asked, "--output-dir", str(tmp_path))
    assert written.returncode == 0, written.stderr
    page = (tmp_path / "report.html").read_text("utf-8")
    assert f"measured {fitted['lines'][KL]['n_points']} times" in page
    assert "Hollow marks are the first 50 %" in page
    assert options.SKIP_FRACTION == SKIP_FRACTION


def test_a_study_of_several_targets_has_an_overview_and_a_page_for_each(runs: Path, tmp_path: Path) -> None:
    done = called("report", str(runs), "--output-dir", str(tmp_path), "--max-forgetting", "0.1")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Each 0.1 nat of improvement costs" in page
    assert "The price differs by what is learned (p &lt; 0.001, 6 runs)" in page
    assert re.search(r"0\.19\d+ at “sums” to 0\.59\d+ at “news &lt;b&gt;”", page)
    assert '<a href="sums/report.html">' in page
    assert "<b>" not in page.replace("<bdi>", "").split("</style>")[1]
    for name, price in (("sums", 0.2), ("news-b", 0.6)):
        assert (tmp_path / name / "report.html").is_file()
        again = archive.table(tmp_path / name)
        assert fit(again).lines[KL].parameters["slope"].value == pytest.approx(price, abs=0.02)
    assert archive.table(tmp_path)["run"].nunique() == 6


def published(source: Path, out: Path, corpus: str | None = None) -> str:
    """The overview, and pages without what takes long: every form held out, and figures as files."""

    def page(folder: Path, only: Sequence[str], text: str | None) -> Published:
        return publish(source, folder, commands=["holdfast report"], only=only, corpus=text, reload_s=1)

    overview.publish_each(
        source, out, page, only=None, corpus=corpus, skip_fraction=0.2, commands=["holdfast report"], reload_s=None
    )  # fmt: skip
    return (out / "report.html").read_text("utf-8")


def test_of_several_retained_texts_each_has_its_laws(tmp_path: Path) -> None:
    """One target and two texts: pages named after the texts; two of each: after both."""
    root, out = tmp_path / "runs", tmp_path / "out"
    for r in (1, 4, 16):
        learned(root, "data/sums.jsonl", r=r, prose=0.2, facts=0.4)
    assert [group.corpus for group in grouped(archive.table(root))] == ["facts", "prose"]
    page = " ".join(published(root, out).split())
    assert "not testable" not in page
    for text, slope in (("prose", 0.2), ("facts", 0.4)):
        said = re.search(rf"forgetting on {text}: ([\d.]+) \([^)]*\) nats on sums\.", page)
        assert said is not None
        assert float(said[1]) == pytest.approx(slope / 10, abs=0.001)
        assert f"nats of forgetting on {text}" in (out / text / "report.html").read_text("utf-8")
    for r in (1, 4, 16):
        learned(root, "data/news.jsonl", r=r, prose=0.3, facts=0.3)
    assert "On facts: The price differs by what is learned" in published(root, out / "both")
    assert {path.parent.name for path in (out / "both").glob("*/report.html")} == {
        "sums-on-prose", "sums-on-facts", "news-on-prose", "news-on-facts",
    }  # fmt: skip
    published(root, out / "one", "prose")
    assert {path.parent.name for path in (out / "one").glob("*/report.html")} == {"sums", "news"}


def test_the_overview_is_made_again_from_what_it_left(runs: Path, tmp_path: Path) -> None:
    first = published(runs, tmp_path)
    assert published(tmp_path, tmp_path) == first


def test_a_page_of_one_text_has_its_figures_before_any_law(tmp_path: Path) -> None:
    learned(tmp_path / "runs", "data/sums.jsonl", r=4, steps=20, prose=0.2, facts=0.4)
    published(tmp_path / "runs", tmp_path / "out")
    page = (tmp_path / "out" / "prose" / "report.html").read_text("utf-8")
    assert "choose by --corpus" not in page
    assert 'id="figure-loss-against-forgetting"' in page or "loss-against-forgetting" in page


def test_a_way_of_training_is_not_named_by_what_it_does_not_have():
    full = also(LORA[LORA["r"] == 8], method="full", lora_alpha=np.nan, use_rslora=None, r=np.nan)
    assert [group.name for group in grouped(pd.concat([LORA.assign(lora_alpha=1, use_rslora=True), full]))] == [
        "method lora, alpha 1, rsLoRA True", "method full",
    ]  # fmt: skip


def test_folders_of_targets_are_told_apart_and_plain() -> None:
    assert overview.folder_names(["a b", "a/b", "../x", "…"]) == ["a-b-1", "a-b-2", "x", "target"]
