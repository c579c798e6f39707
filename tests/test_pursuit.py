"""A sweep that goes on until its plan's interval is narrow: on runs drawn from the paper's law, and on real ones."""

import json
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

import crashes
import simulated
from holdfast import archive, pursuit, store, trials
from holdfast.config import Measure, Optimizer, RunConfig, Study, Target, read_study
from holdfast.design import next_runs
from holdfast.errors import ConfigError, Interrupted
from holdfast.laws import fit
from holdfast.methods import Ia3, Lora, named
from holdfast.offers import possible_runs
from holdfast.pursuit import Goal, look_ahead, pursue, runs_of
from holdfast.store import QUANTITIES, Measurement, owning
from test_cli import run

FLOP_S, POINT_S = 1e-15, 2.0
"""What the simulated runs take."""


def config(r: int, *, steps: int = 65, seed: int = 0, learning_rate: float = 5e-5) -> RunConfig:
    return RunConfig(
        model="m", dtype="float32", target=Target(data="learn"), retain=("keep",), adapter=Lora(r=r), steps=steps,
        optimizer=Optimizer(learning_rate=learning_rate), batch_size=16, context=1024, seed=seed,
        measure=Measure(points=12, first=10),
    )  # fmt: skip


def study(*runs: RunConfig) -> Study:
    return Study(source="study.yaml", runs=runs or tuple(config(r) for r in (8, 64, 256)), raw={}, places={})


STUDY = study()
GOAL = Goal(max_forgetting=0.55, interval=0.018, budget_s=1e9)


class Made:
    """Writes runs as a sweep does, from the truth, each with noise of its own name; `dies` in the middle of the n-th.

    A class because it counts what it has made.
    """

    def __init__(self, out: Path, *, dies: int | None = None, fails: tuple[int, ...] = ()) -> None:
        self.out, self.dies, self.fails = out, dies, fails
        self.made: list[RunConfig] = []

    def __call__(self, part: Study) -> None:
        for one in part.runs:
            with owning(one, root=self.out) as recorder:
                assert recorder is not None
                if store.standing(recorder.folder)[0] == "in progress":
                    self._make(one, recorder)

    def _make(self, one: RunConfig, recorder: store.Recorder) -> None:
        params = (named(one.adapter)[1] or 1) * simulated.PARAMS_PER_RANK
        recorder.begin({"trainable_params": params, "base_params": 6.6e9, "fingerprints": {}})
        self.made.append(one)
        if len(self.made) in self.fails:
            return recorder.fail("diverged", "step 7: loss is nan")
        rng, steps = np.random.default_rng(zlib.crc32(one.name.encode())), one.measured_steps()
        noise = {name: simulated.run_noise(rng, len(steps), run_sd=0.004, checkpoint_sd=0.003) for name in QUANTITIES}
        for i, step in enumerate(steps):
            if self.dies == len(self.made) and i == 5:
                raise Interrupted("killed", exit_code=75)
            for role, corpus in (("target", "learn"), ("retain", "keep")):
                values = dict.fromkeys(QUANTITIES, (0.0, 0.001))
                for name, law in (("nll", "target_nll"), *((each, each) for each in simulated.TRUTH)):
                    if step and name in QUANTITIES:
                        true = float(simulated.truth(law, trainable_params=params, steps=step))
                        values[name] = (true + noise[name][i], 0.001)
                if (step, corpus) not in recorder.recorded:
                    recorder.append(
                        Measurement(
                            step=step, tokens=step * one.batch_tokens, corpus=corpus, role=role, documents=9,
                            scored_tokens=99, values=values,
                        )
                    )  # fmt: skip
        training = FLOP_S * (4 * 6.6e9 + 6 * params) * one.steps * one.batch_tokens
        return recorder.finish({"training_s": training, "wall_time_s": training + POINT_S * len(steps)})


def names(out: Path) -> set[str]:
    return {path.parent.name for path in out.glob("*/done.json")}


def silent(_: object) -> None:
    pass


def test_it_makes_what_next_advises_until_the_interval_is_narrow(tmp_path: Path) -> None:
    make, seen = Made(tmp_path), []
    ended = pursue(STUDY, out=tmp_path, goal=GOAL, make=make, tell=seen.append)
    assert ended.ended == "interval"
    assert max(ended.width, ended.expected_width) <= GOAL.interval
    assert f"within {GOAL.interval}" in ended.reason
    assert ended.made == len(make.made) == len(seen) + 2
    assert tuple(make.made[:3]) == STUDY.runs
    assert len(make.made) > 4
    for count, bought in enumerate(make.made[3:], 3):
        table = store.tabulate(store.read_run(tmp_path / one.name) for one in make.made[:count])
        laws = fit(table)
        offers = [each for each in possible_runs(laws, table) if 8 <= each.r <= 256 and each.steps <= 130]
        found = next_runs(laws, table, max_forgetting=0.55, candidates=offers, tolerance=GOAL.interval, least=0.01)
        choice = found.chosen[0].candidate
        assert (bought.adapter.r, bought.steps) == (choice.r, choice.steps)
        assert seen[count - 3].width == found.width
    assert len({(one.adapter.r, one.steps, one.seed) for one in make.made}) == len(make.made)


def test_it_stops_before_the_budget_is_exceeded_and_goes_on_with_more(tmp_path: Path) -> None:
    whole = Made(tmp_path / "whole")
    in_all = pursue(STUDY, out=whole.out, goal=GOAL, make=whole, tell=silent)
    last = store.read_run(whole.out / whole.made[-1].name).summary["wall_time_s"]
    assert in_all.spent_s == pytest.approx(
        sum(store.read_run(whole.out / one.name).summary["wall_time_s"] for one in whole.made)
    )
    make = Made(tmp_path / "runs")
    goal = replace(GOAL, budget_s=in_all.spent_s - last / 2)
    ended = pursue(STUDY, out=make.out, goal=goal, make=make, tell=silent)
    assert ended.ended == "budget"
    assert ended.spent_s <= goal.budget_s
    assert "are spent" in ended.reason
    assert max(ended.width, ended.expected_width) > goal.interval
    assert make.made[:-1] == whole.made[: len(make.made) - 1]
    again = pursue(STUDY, out=make.out, goal=goal, make=make, tell=silent)
    assert again == ended
    assert pursue(STUDY, out=make.out, goal=GOAL, make=make, tell=silent).ended == "interval"


@pytest.mark.parametrize("dies", [2, 4, 5])
def test_stopped_anywhere_the_same_call_ends_with_the_same_runs(dies: int, tmp_path: Path) -> None:
    whole, cut = Made(tmp_path / "whole"), Made(tmp_path / "cut", dies=dies)
    expected = pursue(STUDY, out=whole.out, goal=GOAL, make=whole, tell=silent)
    with pytest.raises(Interrupted):
        pursue(STUDY, out=cut.out, goal=GOAL, make=cut, tell=silent)
    assert names(cut.out) < names(whole.out)
    ended = pursue(STUDY, out=cut.out, goal=GOAL, make=Made(cut.out), tell=silent)
    assert names(cut.out) == names(whole.out)
    assert replace(ended, spent_s=0) == replace(expected, spent_s=0)
    assert ended.spent_s == pytest.approx(expected.spent_s)


def test_what_is_in_progress_is_looked_at_first(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        pursue(STUDY, out=tmp_path, goal=GOAL, make=Made(tmp_path, dies=4), tell=silent)
    ahead = look_ahead(STUDY, out=tmp_path, goal=GOAL)
    assert [one.name for one in ahead.runs] == [one.name for one in runs_of(STUDY, tmp_path) if one.state != "done"]
    assert ahead.ended is None
    assert ahead.width is None


def test_other_runs_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    for out in (tmp_path / "alone", tmp_path / "beside"):
        if out.name == "beside":
            Made(out)(study(config(8, learning_rate=1e-3), config(8).model_copy(update={"adapter": Ia3(method="ia3")})))
        pursue(STUDY, out=out, goal=GOAL, make=Made(out), tell=silent)
    assert len(names(tmp_path / "beside") - names(tmp_path / "alone")) == 2
    assert names(tmp_path / "alone") < names(tmp_path / "beside")


def test_where_a_run_diverged_none_is_made_again(tmp_path: Path) -> None:
    make = Made(tmp_path, fails=(4, 5))
    ended = pursue(STUDY, out=tmp_path, goal=GOAL, make=make, tell=silent)
    assert ended.ended == "interval"
    cells = [(one.adapter.r, one.steps) for one in make.made]
    assert cells[3] not in cells[4:]
    assert cells[4] not in cells[5:]
    assert any("diverged" in warning for warning in ended.warnings)


def test_several_at_once_are_those_that_count_on_each_other(tmp_path: Path) -> None:
    Made(tmp_path)(STUDY)
    table = archive.table(tmp_path)
    ahead = look_ahead(STUDY, out=tmp_path, goal=replace(GOAL, at_once=3))
    laws = fit(table)
    offers = [each for each in possible_runs(laws, table) if 8 <= each.r <= 256 and each.steps <= 130]
    found = next_runs(laws, table, max_forgetting=0.55, candidates=offers, number=3)
    assert [(one.adapter.r, one.steps) for one in ahead.runs] == [
        (p.candidate.r, p.candidate.steps) for p in found.chosen
    ]
    assert len({one.name for one in ahead.runs}) == 3
    assert json.loads(json.dumps(ahead.to_dict(), allow_nan=False))["runs"][0]["run"] == ahead.runs[0].name


@pytest.mark.parametrize(
    ("runs", "goal", "message"),
    [
        ((config(8), config(8, learning_rate=1e-3)), GOAL, "differ in more than rank, steps and seed"),
        ((config(8).model_copy(update={"adapter": Ia3(method="ia3")}),), GOAL, "got method ia3, expected lora"),
        ((config(8).model_copy(update={"retain": ("keep", "also")}),), GOAL, "got 2 texts to retain, expected one"),
        ((config(8),), replace(GOAL, interval=0.0), r"got interval 0.0, expected a number above 0"),
        ((config(8),), replace(GOAL, budget_s=math.nan), "got budget_s nan, expected a number above 0"),
    ],
)
def test_what_cannot_be_pursued_is_refused(
    runs: tuple[RunConfig, ...], goal: Goal, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        pursue(study(*runs), out=tmp_path, goal=goal, make=Made(tmp_path), tell=silent)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def real(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(trials, "TRIED_S", 0.0)
    path = crashes.study(tiny, tmp_path)
    content = yaml.safe_load(path.read_text())
    content |= {
        "steps": 6,
        "measure": {"points": 4, "first": 2, "documents": 4},
        "grid": {"adapter.r": [2, 4, 8], "seed": [0, 1]},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_command_goes_on_where_it_was_stopped_and_ends_the_same(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real runs, stopped after the second that was chosen; once more, without a stop before."""
    monkeypatch.setattr(pursuit, "look_ahead", few := Few(3))
    command = ["sweep", str(real), "--until-interval", "0.02", "--budget-hours", "1", "--json", "--output-dir"]
    code, out, err = run([*command, str(tmp_path / "whole")], monkeypatch, capsys)
    assert code == 0, err
    found = json.loads(out)
    assert found["pursuit"]["ended"] == "budget"
    assert found["pursuit"]["made"] == 8
    assert len({row["run"] for row in found["table"]}) == 8
    assert "6 runs in " in err
    assert "What follows narrows it most" in err
    few.left, few.dies = 2, True
    with pytest.raises(RuntimeError, match="here"):
        run([*command, str(tmp_path / "cut")], monkeypatch, capsys)
    few.left, few.dies = 2, False
    code, out, err = run([*command, str(tmp_path / "cut")], monkeypatch, capsys)
    assert crashes.canonical(archive.table(tmp_path / "cut")) == crashes.canonical(archive.table(tmp_path / "whole"))
    rows = json.loads(out)["table"]
    assert rows == found["table"]


class Few:
    """The look ahead for a little less than there is, whose budget is spent, or whose process dies, after so many.

    A class because it counts.
    """

    def __init__(self, left: int) -> None:
        self.left, self.dies, self._look = left, False, look_ahead

    def __call__(self, study: Study, *, out: Path, goal: Goal) -> pursuit.Outlook:
        self.left -= 1
        if not self.left and self.dies:
            raise RuntimeError("here")
        width = self._look(study, out=out, goal=replace(goal, interval=1e9)).width
        goal = goal if width is None else replace(goal, interval=0.9 * width)
        return self._look(study, out=out, goal=goal if self.left else replace(goal, budget_s=1e-9))


def test_an_interval_that_is_wide_enough_needs_no_run_and_a_dry_run_writes_none(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "sweep",
        str(real),
        "--until-interval",
        "0.02",
        "--budget-hours",
        "1",
        "--output-dir",
        str(tmp_path / "o"),
    ]
    code, out, err = run([*command, "--dry-run", "--json"], monkeypatch, capsys)
    assert code == 0
    assert json.loads(out)["next"] is None
    assert "What is run after them follows from what they measure." in err
    assert not list((tmp_path / "o").iterdir())
    assert len(read_study(real).runs) == 6
    assert run(["sweep", str(real), "--output-dir", str(tmp_path / "o")], monkeypatch, capsys)[0] == 0
    before = sorted(path.name for path in (tmp_path / "o").rglob("*"))
    code, out, err = run([*command, "--dry-run", "--json"], monkeypatch, capsys)
    ahead = json.loads(out)["next"]
    assert ahead["ended"] is None
    assert len(ahead["runs"]) == 1
    assert sorted(path.name for path in (tmp_path / "o").rglob("*")) == before
    command[3] = "1e9"
    code, out, err = run([*command, "--json"], monkeypatch, capsys)
    assert (code, json.loads(out)["pursuit"]["ended"]) == (0, "interval")
    assert sorted(path.name for path in (tmp_path / "o").rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--until-interval", "0.1"], "got --until-interval 0.1 and --budget-hours None, expected both or neither"),
        (["--budget-hours", "1"], "expected both or neither"),
        (["--until-interval", "nan", "--budget-hours", "1"], "got interval nan, expected a number above 0"),
        (["--until-interval", "1", "--budget-hours", "1e-9"], "got runs that take about"),
    ],
)
def test_a_goal_that_is_none_is_a_mistake(
    options: list[str], message: str, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    code, _, err = run(["sweep", str(real), "--output-dir", str(tmp_path / "o"), *options], monkeypatch, capsys)
    assert code == 2
    assert message in err
    assert not list(tmp_path.glob("o/*"))
