"""What a tenth of a nat goes with: rates and errors over runs, and what was measured beside what was probed."""

import json
from pathlib import Path

import numpy as np
import pytest

import holdfast
from holdfast import probe_figures, probe_page, probe_screens
from holdfast.exchange import exchanges
from probed import choices, model, odds, report, sweep


def test_the_rate_is_of_sums_and_its_error_over_runs_left_out():
    made = sweep(runs=3)
    [found] = [one for one in exchanges(made) if one.quantity == "answers moved"]
    x = np.array([m.forgetting["wikipedia"].value for m in made.models]).reshape(3, 3)
    y = np.array([100 * (1 - m.results[0].agreement.value) for m in made.models]).reshape(3, 3)
    rates = [np.delete(y, i, 0).sum() / np.delete(x, i, 0).sum() for i in range(3)]
    whole = y.sum() / x.sum()
    assert found.per_tenth.value == pytest.approx(0.1 * whole)
    assert found.per_tenth.stderr == pytest.approx(0.1 * np.sqrt(2 / 3 * np.sum((np.array(rates) - whole) ** 2)))
    assert found.correlation == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1])
    assert (found.models, found.per_tenth.n, found.low, found.high) == (9, 3, x.min(), x.max())
    assert found.per_tenth.value == pytest.approx(8, abs=1)  # 0.8 of answers per nat


def test_more_checkpoints_of_one_run_say_no_more_of_how_runs_differ():
    one = exchanges(sweep(runs=1))
    assert one
    for found in one:
        assert np.isnan(found.per_tenth.stderr)
        assert "one run, so no interval" in found.in_words()


@pytest.mark.parametrize(
    "models",
    [
        [model(choices(kl), name=f"runs/{kl}/adapter", kl=kl) for kl in (0.1, 0.2)],
        [model(choices(0.1), name=f"runs/{kl}/adapter", kl=kl) for kl in (0.1, 0.2, 0.3)],
        [model(choices(share), name=f"runs/{share}/adapter") for share in (0.1, 0.2, 0.3)],
        [model(choices(kl + 0.1), name=f"runs/{kl}/adapter", kl=kl) for kl in (-0.001, 0.2, 0.3)],
    ],
    ids=["two models", "nothing differs", "forgetting not known", "forgetting below its noise"],
)
def test_where_no_rate_can_be_had_none_is_given(models):
    assert not [one for one in exchanges(report(*models)) if one.quantity == "answers moved"]


def test_every_kind_of_task_has_its_quantities():
    found = {(one.task, one.quantity): one for one in exchanges(sweep())}
    assert found["advbench, unsafe prompts", "refusals"].per_tenth.value < 0
    assert found[odds(0).name, "log-odds of refusing"].per_tenth.value == pytest.approx(-1, abs=0.15)


def test_a_terminal_and_a_page_say_it(capsys):
    probe_screens.show_probe(sweep())
    assert "0.1 nat of forgetting on wikipedia goes with" in " ".join(capsys.readouterr().out.split())
    page = probe_page.probe_page(sweep(), title="t", commands=["holdfast probe runs"], provenance={})
    assert "What 0.1 nat of forgetting goes with" in page
    assert "against forgetting" in page


def test_the_figure_holds_every_checkpoint_at_its_forgetting():
    made = sweep()
    rows = [(one, one.results[0]) for one in made.models]
    drawn = json.loads(probe_figures.against_forgetting(rows, "wikipedia").to_json())
    [values] = [v for v in drawn["datasets"].values() if len(v) == 2 * len(rows)]
    assert {v["nats"] for v in values} == {m.forgetting["wikipedia"].value for m in made.models}


@pytest.mark.filterwarnings("ignore")
def test_a_swept_folder_is_probed_at_its_measured_steps_with_what_it_measured(
    tiny: Path, texts: tuple[Path, Path], tmp_path: Path, cache: Path
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        f"model: {tiny}\ntarget: {{data: {texts[0]}, held_out: 2}}\nretain: [{texts[1]}]\nadapter: {{r: 2}}\n"
        "optimizer: {learning_rate: 0.05}\nsteps: 4\nbatch_size: 1\ncontext: 32\ndtype: float32\n"
        "measure: {points: 2, first: 2, documents: 2}\ngrid: {seed: [0, 1]}\n"
    )
    table = holdfast.sweep(study, out=tmp_path / "runs", keep_adapters=True)
    rows = [
        {"id": str(i), "question": f"How long is kelp {i}?", "choices": ["long", "short"], "answerKey": "A"}
        for i in range(12)
    ]
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = holdfast.probe(base=str(tiny), tuned=str(tmp_path / "runs"), tasks=[str(quiz)], dtype="float32")
    assert [(one.name.split("/")[-2], one.step) for one in found.models] == [
        (run, step) for run in sorted(set(table["run"])) for step in (2, 4)
    ]
    for one in found.models:
        row = table[
            (table["run"] == one.run.split("/")[-1]) & (table["step"] == one.step) & (table["role"] == "retain")
        ]
        assert one.forgetting["kelp"].value == row["kl_base_tuned"].item() > 0
        assert one.forgetting["kelp"].stderr == row["kl_base_tuned_stderr"].item()
