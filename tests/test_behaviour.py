"""A report of answers: what it counts, prints and gives away, without any model."""

import json

import numpy as np
import pytest

from holdfast.behaviour import ChoiceResult, ProbedModel, ProbeReport
from holdfast.forgetting import Finding


def result(base: list[int], tuned: list[int], *, answers: list[int], task: str = "quiz") -> ChoiceResult:
    def scored(choices: list[int]) -> tuple[np.ndarray, ...]:
        return tuple(np.where(np.arange(4) == choice, -1.0, -3.0) for choice in choices)

    n = len(base)
    return ChoiceResult(
        task=task, protocol="character", items=tuple(f"q{i}" for i in range(n)), questions=("Why <b>?</b>",) * n,
        choices=(("w", "x", "y", "z"),) * n,
        answers=np.array(answers), base=np.array(base), tuned=np.array(tuned),
        base_scores=scored(base), tuned_scores=scored(tuned),
    )  # fmt: skip


def report(*results: ChoiceResult, name: str = "runs/4f1c/adapter", failure: str | None = None) -> ProbeReport:
    finding = Finding(what="another template", consequence="both were given the base's")
    model = ProbedModel(
        name=name,
        step=20,
        run="runs",
        forgetting={},
        merged=True,
        findings=(finding,),
        results=results,
        failure=failure,
    )
    return ProbeReport(base="builtin:smollm2", dtype="float32", device="cpu", models=(model,))


# right and right; lost; gained; wrong and the same; wrong and moved, twice
ONE = result([0, 0, 1, 2, 2, 3], [0, 1, 0, 2, 3, 1], answers=[0] * 6)


def test_what_accuracy_hides_is_counted() -> None:
    accuracy = ONE.accuracy
    assert (accuracy.both, accuracy.lost, accuracy.gained, accuracy.neither) == (1, 1, 1, 3)
    assert accuracy.change == 0
    assert (ONE.agreement.count, ONE.agreement.n) == (2, 6)
    assert ONE.moved_wrong.count == 2
    assert ONE.chance_adjusted_agreement.value == pytest.approx((2 / 6 - 1 / 4) / (3 / 4))
    assert "accuracy 33.3 % → 33.3 % (not measurable below 100.0 points); 66.7 % of answers" in ONE.in_words()


def test_examples_are_the_largest_changes_and_as_many_at_random_and_say_which() -> None:
    shown = ONE.moved(each=2, seed=0)
    assert [one.picked for one in shown] == ["largest change", "largest change", "at random", "at random"]
    assert {one.item for one in ONE.moved(each=4, seed=0)[:4]} == {"q1", "q2", "q4", "q5"}
    (lost,) = (one for one in ONE.moved(each=4, seed=0)[:4] if one.item == "q1")
    assert (lost.right, lost.base, lost.tuned) == ("w", "w", "x")
    assert ONE.moved(each=2, seed=0) == shown
    assert [one.picked for one in ONE.moved(each=6, seed=0)] == ["largest change"] * 4 + ["at random"] * 6
    drawn = {one.item for seed in range(50) for one in ONE.moved(each=1, seed=seed)[1:]}
    assert drawn == set(ONE.items)


def test_a_choice_moved_by_what_both_models_prefer() -> None:
    assert ONE.change().tolist() == [0, 4, 4, 0, 4, 4]


def test_a_report_is_read_by_task_and_written_as_json() -> None:
    whole = report(ONE, result([0], [0], answers=[1], task="other"))
    assert whole["quiz"] is ONE
    with pytest.raises(KeyError, match=r"got 'arc', expected one of \['other', 'quiz'\]"):
        whole["arc"]
    told = json.loads(json.dumps(whole.to_dict(), allow_nan=False))
    assert told["models"][0]["results"][0]["lost"] == 1
    assert told["findings"] == [{"what": "another template", "consequence": "both were given the base's"}]
    assert len(whole.to_frame()) == 7


def test_a_report_without_results_says_so() -> None:
    empty = report(failure="NaN in lora_A")
    assert "runs/4f1c/adapter  not probed: NaN in lora_A" in str(empty)
    with pytest.raises(ValueError, match="got no model that could be probed"):
        empty["quiz"]
    with pytest.raises(ValueError, match="got no model that could be probed"):
        empty.to_frame()


def test_text_from_elsewhere_cannot_act_in_a_notebook_or_a_terminal() -> None:
    hostile = report(result([0], [0], answers=[0], task="<script>alert(1)</script>\x1b[2J"), name="a<b>\u202e")
    page = hostile._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    for text in (page, str(hostile)):
        assert "\x1b" not in text
        assert "\u202e" not in text
