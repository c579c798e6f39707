"""What was probed and measured of a study's runs is found again by its page, and nothing of it is lost or mixed."""

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import measured
import probed
from holdfast import afterwards, laws, publishing, reporting
from holdfast.behaviour import ProbeReport
from holdfast.cli import app
from holdfast.display import visible
from holdfast.errors import StoreError
from holdfast.exchange import exchanges
from holdfast.stats import Estimate
from holdfast.study_answers import counts
from pages import Page, chromium, watched
from payloads import PAYLOADS
from simulated import study
from test_study_page import violations

RUNS = ("0a" * 6, "1a" * 6, "2a" * 6)


def place(root, names, monkeypatch):
    """Folders that look like runs' checkpoints, and their names as one would type them from beside the runs."""
    monkeypatch.chdir(root)
    for name in names:
        Path(name).mkdir(parents=True, exist_ok=True)
        for part in ("config.json", "records.jsonl"):
            Path(name).with_name(part).write_text("{}")


def kept(report, root, monkeypatch):
    names = [one.name for one in (report.models if isinstance(report, ProbeReport) else report.checkpoints)]
    place(root, names, monkeypatch)
    return afterwards.keep(report)


def read(root, runs=None):
    return afterwards.read_afterwards(root / "runs", runs or [path.name for path in (root / "runs").iterdir()])


def same(ours, theirs):
    """Two reports' models, down to each answer; names are the folder's."""
    assert [(m.step, m.merged, m.findings, m.forgetting, m.failure) for m in ours.models] == [
        (m.step, m.merged, m.findings, m.forgetting, m.failure) for m in theirs.models
    ]
    for (_, a), (_, b) in zip(ours.rows(), theirs.rows(), strict=True):
        assert type(a) is type(b)
        assert a.to_frame().equals(b.to_frame())
        assert a.to_dict() == b.to_dict()


def test_every_kind_of_answer_is_read_back_as_it_was(tmp_path, monkeypatch):
    report = probed.whole()
    (path,) = kept(report, tmp_path, monkeypatch)
    assert path.parent == tmp_path / "runs" / "afterwards"
    found = read(tmp_path)
    same(found.probed, report)
    assert found.probed.models[0].name == "4f1c/adapter"
    assert (found.probed.base, found.others, found.forgotten) == ("builtin:smollm2", (), ())


def test_a_call_made_again_replaces_its_file_and_another_adds_its_tasks(tmp_path, monkeypatch):
    first = probed.report(probed.model(probed.choices(0.3)))
    assert kept(first, tmp_path, monkeypatch) == kept(first, tmp_path, monkeypatch)
    kept(probed.report(probed.model(probed.refusals(0.4))), tmp_path, monkeypatch)
    assert len(list((tmp_path / "runs" / "afterwards").iterdir())) == 2
    assert [r.name for _, r in read(tmp_path).probed.rows()] == [
        "arc_challenge, by character",
        "advbench, unsafe prompts",
    ]


def test_answers_to_other_items_are_left_out_and_said_so(tmp_path, monkeypatch):
    """Of one task only answers to the same items, of the same base, stand in one table."""
    sweep = probed.report(*[probed.model(probed.choices(0.3), name=f"runs/{run}/adapter") for run in RUNS])
    kept(sweep, tmp_path, monkeypatch)
    kept(probed.report(probed.model(probed.choices(0.9, n=40), name=f"runs/{RUNS[0]}/adapter")), tmp_path, monkeypatch)
    found = read(tmp_path)
    assert {len(result.items) for _, result in found.probed.rows()} == {400}
    assert len(list(found.probed.rows())) == 3
    assert found.others == (
        "arc_challenge, by character: 1 answers to other items, or of another base, do not compare and are left out",
    )


def test_what_is_no_runs_model_is_not_kept_and_a_run_that_is_gone_not_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert afterwards.keep(probed.whole("org/model")) == ()
    assert list(tmp_path.iterdir()) == []
    kept(probed.whole(), tmp_path, monkeypatch)
    assert read(tmp_path, ["another"]).probed is None


@pytest.mark.parametrize("damage", [b"", b"{}", b"\x1f\x8b", None, "kind", "models", "asked", "at"])
def test_a_damaged_file_is_named(tmp_path, monkeypatch, damage):
    (path,) = kept(probed.whole(), tmp_path, monkeypatch)
    content = path.read_bytes()
    held = json.loads(gzip.decompress(content))
    if isinstance(damage, str):
        del held[damage]
        path.write_bytes(gzip.compress(json.dumps(held).encode()))
    else:
        path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with pytest.raises(StoreError, match=path.name):
        read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("protocol", "nonsense"), ("answers", [9] * 400), ("items", ["q"]), ("choices", [["a"]] * 400), ("base", "x")],
)
def test_answers_that_do_not_belong_together_are_refused(tmp_path, monkeypatch, field, value):
    (path,) = kept(probed.report(probed.model(probed.choices(0.3))), tmp_path, monkeypatch)
    held = json.loads(gzip.decompress(path.read_bytes()))
    held["asked"][0][field] = value
    path.write_bytes(gzip.compress(json.dumps(held).encode()))
    with pytest.raises(StoreError, match=path.name):
        read(tmp_path)


def test_passages_of_a_measurement_come_back_with_their_run_and_step(tmp_path, monkeypatch):
    points = [
        measured.checkpoint(
            measured.corpus(forgetting=0.1), measured.corpus(name="prompts", role="target"),
            name=f"runs/{run}/checkpoint-8", step=8,
        )
        for run in RUNS
    ]  # fmt: skip
    kept(measured.report(*points), tmp_path, monkeypatch)
    found = read(tmp_path).forgotten
    assert [(one.model, one.run, one.step, one.corpus) for one in found] == [
        (f"{run}/checkpoint-8", run, 8, "wikipedia") for run in RUNS
    ]
    assert found[0].passages == points[0].texts["wikipedia"].passages
    assert found[0].kl_base_tuned == points[0].texts["wikipedia"].kl_base_tuned


def after(quote=lambda text: text, *, runs=RUNS):
    """Trajectories of three runs that were probed, and measurements of their ends."""
    models = [
        probed.model(
            probed.choices(0.8 * kl, quote=quote), probed.refusals(kl, quote=quote), probed.odds(-10 * kl),
            name=f"{run}/checkpoint-{step}", step=step, kl=kl,
        )
        for i, run in enumerate(runs)
        for step, kl in ((10, 0.05 + 0.02 * i), (20, 0.1 + 0.02 * i), (40, 0.2 + 0.02 * i))
    ]  # fmt: skip
    text = measured.corpus(quote=quote)
    forgotten = [
        afterwards.Forgotten(
            model=f"{run}/checkpoint-40", run=run, step=40, corpus=text.corpus, kl_base_tuned=text.kl_base_tuned,
            passages=text.passages,
        )
        for run in runs
    ]  # fmt: skip
    return afterwards.Afterwards(probed=probed.report(*models), forgotten=tuple(forgotten), others=(quote("left"),))


def page(found):
    table = study(np.random.default_rng(0), ranks=(8, 64), seeds=(0, 1))
    about = {"title": "A study", "commands": [], "provenance": {}}
    return reporting.report(table, laws.fit(table), None, after=found, **about)


def test_the_studys_page_has_answers_and_passages_between_its_figures_and_what_was_held_out():
    text = page(after())
    read = Page(text)
    said = " ".join(read.words.split())
    story = [
        "What was seen", "What became of its answers", "to 9 tuned models of 3 runs", "arc_challenge, by character",
        "arc_challenge, by character along training The paper's Figure 4", "against forgetting",
        f"largest change: not what is usual, of {RUNS[2]}/checkpoint-40", "Picked at random: what is usual",
        "advbench, unsafe prompts", "What 0.1 nat of forgetting goes with", "how well that agrees with people",
        "Left out", "Most forgotten passages", "wikipedia, by 3 measured models", "1066", "Held to what they had not",
    ]  # fmt: skip
    places = [said.index(part) for part in story]
    assert places == sorted(places)
    rows = read.grid("answers")
    assert [row["Model"][0] for row in rows] == ["base", *(f"{run}/checkpoint-40" for run in RUNS)]
    without = Page(page(afterwards.Afterwards(probed=None, forgotten=(), others=())))
    assert not {"answers", "passages"} & without.grids.keys()
    assert [entry for entry in without.elements if entry[0] == "section"] != []


def test_a_page_on_one_text_holds_answers_against_what_was_forgotten_of_that_text():
    found = after()
    both = [
        replace(model, forgetting={"code": Estimate(value=2 * kl.value, stderr=kl.stderr, n=kl.n), "wikipedia": kl})
        for model in found.probed.models
        for kl in model.forgetting.values()
    ]
    found = replace(found, probed=replace(found.probed, models=tuple(both)))
    for text, other in (("code", "wikipedia"), ("wikipedia", "code")):
        said = page(found.on(text))
        assert f"Forgetting on {text}, nats per token" in said
        assert f"Forgetting on {other}, nats per token" not in said
        assert {one.corpus for one in exchanges(found.on(text).probed)} == {text}
    assert found.on("code").forgotten == found.forgotten
    nothing = replace(found, probed=None)
    assert nothing.on("code") == nothing


def test_every_share_of_the_page_is_a_division_of_the_counts_inside_it():
    found = after()
    rows = counts(found.probed)
    for (model, result), row in zip(found.probed.rows(), rows.to_dict("records"), strict=True):
        assert (row["model"], row["task"], row["items"]) == (model.name, result.name, len(result.items))
        shares = getattr(result, "accuracy", None) or getattr(result, "refusals", None) or result.favoured
        assert (row["both"] + row["tuned_only"]) / row["items"] == shares.tuned.value
        assert (row["both"] + row["base_only"]) / row["items"] == shares.base.value
        if hasattr(result, "agreement") and row["counted"] == "right":
            assert row["same_answer"] / row["items"] == result.agreement.value


def test_a_hostile_study_draws_its_answers_and_is_silent_and_accessible(tmp_path):
    payload = " ".join(PAYLOADS)
    file = tmp_path / "report.html"
    file.write_text(page(after(lambda text: f"{text}{payload}")), encoding="utf-8")
    with chromium() as browser:
        for width in (1100, 390):
            opened, heard = watched(browser, file, viewport={"width": width, "height": 800})
            opened.wait_for_selector("html[data-drawn]", state="attached")
            assert opened.locator("#answers .chart svg").count() == 6
            assert opened.evaluate("document.documentElement.scrollWidth") == width
            first = opened.locator("#answers .sides dd").first.evaluate("node => node.textContent")
            assert visible(payload) in first
            assert violations(opened) == []
            assert heard == []


def shown(opened, figure):
    """How many marks of a figure are not faded."""
    marks = opened.locator(f"[data-figure={figure}] .mark-symbol.role-mark path")
    return sum(
        value in (None, "1") for value in marks.evaluate_all("all => all.map(one => one.getAttribute('opacity'))")
    )


def test_a_share_picked_in_a_legend_and_a_rank_picked_on_the_page_are_alone_among_answers(tmp_path):
    """Three runs, of which one has rank 64, each probed at three steps, with two shares of each."""
    table = study(np.random.default_rng(0), ranks=(8, 64), seeds=(0, 1))
    file = tmp_path / "report.html"
    file.write_text(page(after(runs=list(dict.fromkeys(table["run"]))[:3])), encoding="utf-8")
    drawn = ("answers-0", "answers-against-forgetting-0")
    with chromium() as browser:
        opened, heard = watched(browser, file)
        opened.wait_for_selector("html[data-drawn]", state="attached")
        assert [shown(opened, figure) for figure in drawn] == [18, 18]
        opened.locator(".isolate button[data-value='64']").click()
        opened.wait_for_timeout(200)
        assert [shown(opened, figure) for figure in drawn] == [6, 6]
        assert shown(opened, "loss-against-forgetting") == (table["r"] == 64).sum() // 2 - 2  # but for step 0
        opened.locator(f"[data-figure={drawn[0]}] .role-legend-symbol path").first.click(force=True)
        opened.wait_for_timeout(200)
        assert [shown(opened, figure) for figure in drawn] == [3, 6]
        opened.locator(".isolate button[data-value='']").click()
        opened.wait_for_timeout(200)
        assert [shown(opened, figure) for figure in drawn] == [9, 18]
        assert heard == []


@pytest.mark.filterwarnings("ignore")
def test_a_sweep_is_made_probed_measured_and_reported_and_the_page_needs_no_torch(
    tiny: Path, texts: tuple[Path, Path], tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the commands to the page, which another machine without torch makes again from what was left beside it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(
        f"model: {tiny}\ndtype: float32\ntarget: {{data: {texts[0]}, held_out: 6}}\nretain: [{texts[1]}]\n"
        "adapter: {lora_alpha: 4}\noptimizer: {learning_rate: 1.0e-2}\nsteps: 8\nbatch_size: 2\ncontext: 64\n"
        "measure: {points: 3, first: 2}\ngrid: {adapter.r: [1, 4]}\n"
    )
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Count to {i}."}) + "\n" for i in range(4)))
    for command in (
        ["sweep", "study.yaml", "--keep-adapters"],
        [
            "probe",
            str(tiny),
            "runs",
            "--task",
            "arc_challenge",
            "--task",
            str(prompts),
            "--limit",
            "6",
            "--max-new-tokens",
            "4",
        ],
        ["measure", str(tiny), "runs", "--text", str(texts[1]), "--context", "64"],
        ["report", "runs", "--output-dir", "left"],
    ):
        said = CliRunner().invoke(app, command)
        assert said.exit_code == 0, said.output
        if command[0] in ("probe", "measure"):
            assert "Kept for holdfast report runs: runs/afterwards/" in said.output
    first = (tmp_path / "left" / "report.html").read_text()
    grid = Page(first).grid("answers")
    assert len(grid) == 3  # base, and the last step of each run
    assert "arc_challenge, by character along training" in first
    assert "Most forgotten passages" in first
    assert "Count to" in first
    assert {path.stem for path in (tmp_path / "left" / "figures").glob("answers-*.png")} >= {"answers-0", "answers-1"}
    hidden = "import sys; sys.modules['torch'] = None; from holdfast.cli import main; main()"
    (tmp_path / "away").mkdir()
    (tmp_path / "left").rename(tmp_path / "away" / "runs")
    monkeypatch.chdir(tmp_path / "away")
    subprocess.run([sys.executable, "-c", hidden, "report", "runs"], check=True, capture_output=True)
    again = (tmp_path / "away" / "runs" / "report.html").read_text()
    assert Page(again).grid("answers") == grid
    assert again.count("<figure>") == first.count("<figure>")


def test_a_folder_that_cannot_be_written_loses_nothing_but_the_keeping(tmp_path, monkeypatch, caplog):
    place(tmp_path, ["runs/4f1c/adapter"], monkeypatch)
    (tmp_path / "runs" / "afterwards").write_text("in the way")
    assert publishing.publish_probe(probed.whole(), html=tmp_path / "page.html", parquet=None, commands=[]) == ()
    assert "not kept for the page of these runs" in caplog.text
    assert (tmp_path / "page.html").is_file()
