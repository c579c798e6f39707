"""How runs stand, as a person reads it; and that a study's own words cannot act in a terminal."""

import io
import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

import crashes
from holdfast import archive, following, progress, status_screens, sweeps
from holdfast.display import visible
from holdfast.errors import Interrupted
from holdfast.interrupts import Stop
from test_cli import run
from test_store import made, measured


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    monkeypatch.setattr(
        status_screens, "out", lambda: Console(file=text, force_terminal=True, color_system=None, width=90)
    )
    return text


def test_runs_stand_side_by_side_by_what_they_differ_in(tmp_path: Path, shown: io.StringIO) -> None:
    made(tmp_path, r=2, rows=tuple(measured(step, 0.1 * step) for step in range(5)))
    made(tmp_path, r=16, rows=(measured(0), measured(1)), end="in progress")
    made(tmp_path, r=8, end="failed")
    status_screens.show_status(progress.status(tmp_path))
    text = shown.getvalue()
    done = next(line for line in text.splitlines() if " done " in line)
    assert "4/4" in done
    assert done.rstrip().endswith("▁▃▅▆█ 0.400")
    assert "forgetting,\n" in "".join(f"{line.rstrip()}\n" for line in text.splitlines()[:1])
    assert text.splitlines()[1].split()[-1] == "keep"
    assert text.index(" done ") < text.index(" stopped ") < text.index(" failed ")
    assert "failed: because" in text
    assert "3 runs: 1 done, 1 stopped, 1 failed" in text
    assert "all with method lora, learning rate 0.001, seed 0, target learn" in " ".join(text.split())


@pytest.mark.parametrize(("width", "curves", "left"), [(110, True, True), (70, False, True), (60, False, False)])
def test_in_a_narrow_terminal_no_number_is_cut(
    width: int, curves: bool, left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What can be done without goes before what was asked for is cut short."""
    text = io.StringIO()
    monkeypatch.setattr(status_screens, "out", lambda: Console(file=text, width=width))
    for r in (2, 16):
        made(tmp_path, r=r, rows=tuple(measured(step, 0.1 * step) for step in range(5)))
    stand = (
        replace(run, about={**run.about, "target": target}, forgetting={**run.forgetting, "prose": run.losses})
        for run, target in zip(progress.status(tmp_path), ("some/where/learn", "builtin:gsm8k"), strict=True)
    )
    status_screens.show_status(tuple(stand))
    rows = text.getvalue()
    assert "…" not in rows
    assert {"0.400", "learn", "gsm8k"} <= set(rows.split())
    assert ("▁▃▅▆█ 0.400" in rows, " left " in rows) == (curves, left)


def test_of_a_study_of_many_settings_every_number_is_whole_in_eighty_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words fold; no number is cut or folded."""
    text = io.StringIO()
    monkeypatch.setattr(status_screens, "out", lambda: Console(file=text, width=80))
    for r in (8, 256):
        made(tmp_path, r=r, rows=tuple(measured(step, 0.1 * step) for step in range(5)))
    stand = tuple(
        replace(
            run, about={**run.about, "target": target, "learning_rate": rate, "seed": seed, "method": method},
            losses=run.forgetting["keep"], forgetting=dict.fromkeys(("wikipedia", "wikitext"), run.forgetting["keep"]),
        )
        for run, (target, rate, seed, method) in zip(
            progress.status(tmp_path), (("data/instructions", 1e-3, 0, "lora"), ("news", 1e-4, 1, "top 3 layers")),
            strict=True,
        )
    )  # fmt: skip
    status_screens.show_status(stand)
    rows = text.getvalue()
    assert "…" not in rows
    assert {"0.001", "0.0001", "256", "4/4", run_name(stand[0]), run_name(stand[1])} <= set(rows.split())
    assert rows.split().count("0.400") == 6
    assert rows.rstrip().endswith("2 done")


def run_name(run: progress.RunStatus) -> str:
    return run.run[:8]


def test_watching_ends_when_every_run_has(tmp_path: Path, shown: io.StringIO) -> None:
    made(tmp_path, rows=(measured(0), measured(4)))
    status_screens.watch_status(tmp_path, every_s=0)
    assert "1 run: 1 done" in shown.getvalue()


@pytest.mark.parametrize("hostile", ["\x1b[2J\x1b[31mred", "[bold]x[/]", "[/]", "a\rb\x07", "\u202eabc", "\u2028x"])
def test_a_reason_from_elsewhere_cannot_act(hostile: str, tmp_path: Path, shown: io.StringIO) -> None:
    one = progress.status(made(tmp_path, end="failed").parent)[0]
    changed = progress.RunStatus(
        **{**vars(one), "reason": hostile, "run": hostile, "about": {**one.about, "target": hostile}}
    )
    status_screens.show_status([one, changed])
    text = shown.getvalue()
    assert not set(text) & {"\x1b", "\r", "\x07", "\u202e", "\u2028"}
    assert " ".join(str(visible(hostile)).split()) in " ".join(text.split())


def test_a_run_stopped_between_two_texts_of_one_step_is_followed_when_it_goes_on(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured in an earlier life is not measured again, and so cannot be told."""
    study, stop = crashes.study(tiny, tmp_path), Stop()

    def tell(at: sweeps.Progress) -> None:
        if at.event and at.event.report and at.event.step == 4 and at.event.role == "target":
            stop.asked = signal.SIGTERM

    with pytest.raises(Interrupted):
        sweeps.sweep(study, out=tmp_path / "runs", stop=stop, tell=tell)
    with following.SweepProgress() as progress:
        sweeps.sweep(study, out=tmp_path / "runs", tell=progress)
    said = capsys.readouterr().err
    first, second, *_ = (line for line in said.splitlines() if "run 1/2, r = 2, step" in line)
    assert "step 4/24: forgetting" in first
    assert "step 7/24: held-out loss" in second
    table = archive.table(tmp_path / "runs", only=["r=2"]).query("role == 'target'").sort_values("step")
    ends = [f"{table['nll'].iloc[place]:.3f}" for place in (0, -1)]
    assert f"run 1/2, r = 2: done, held-out loss {ends[0]} → {ends[1]}, forgetting" in said


def test_what_is_left_is_told_by_the_estimate_at_first_and_by_the_pace_later(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of a few seconds that were thought to take an hour."""
    with following.SweepProgress(3600) as progress:
        sweeps.sweep(crashes.study(tiny, tmp_path), out=tmp_path / "runs", tell=progress)
    left = [line.split("about ")[1] for line in capsys.readouterr().err.splitlines() if "about " in line]
    assert int(left[0].removesuffix(" min left")) > 30
    assert left[-1] == "0 s left"
    assert all(" min" not in said for said in left[len(left) // 2 :])


def test_status_as_json_is_only_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, rows=(measured(0), measured(4)))
    code, out, err = run(["status", str(tmp_path), "--json"], monkeypatch, capsys)
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["seconds_left"] == 0
    assert found["runs"][0]["standing"] == "done"
