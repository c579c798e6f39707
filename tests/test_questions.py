"""How questions are put and scored."""

import pytest

from holdfast.questions import PROTOCOLS, Prompt, Question, chosen, context, continuations, form, scores

TIDE = Question(
    id="q",
    question="What pulls the tide?",
    choices=("the moon", "kelp", "a current of air"),
    answer=0,
    place="q.jsonl:1",
)


def test_a_question_as_lm_evaluation_harness_puts_arc() -> None:
    assert context(TIDE, "cloze") == "Question: What pulls the tide?\nAnswer:"
    assert continuations(TIDE, "cloze") == (" the moon", " kelp", " a current of air")


def test_a_question_with_its_choices_listed() -> None:
    listed = "Question: What pulls the tide?\nA. the moon\nB. kelp\nC. a current of air\nAnswer:"
    assert context(TIDE, "letter") == listed
    assert continuations(TIDE, "letter") == (" A", " B", " C")


def test_protocols_differ_in_what_a_choice_is_divided_by() -> None:
    found = {p: scores(TIDE, log_likelihoods=(-8, -4, -16), tokens=(2, 2, 4), protocol=p) for p in PROTOCOLS}
    assert found["total"] == found["letter"] == (-8, -4, -16)
    assert found["token"] == (-4, -2, -4)
    assert found["character"] == (-1, -1, -1)
    assert [form(p) for p in PROTOCOLS] == ["cloze", "cloze", "cloze", "letter"]


def test_the_first_of_equal_choices_is_chosen() -> None:
    assert chosen((-2, -1, -1)) == 1


@pytest.mark.parametrize("change", [{"question": "x"}, {"choices": ("a", "b")}, {"answer": 1}])
def test_a_digest_is_of_all_that_is_asked_and_of_nothing_else(change: dict) -> None:
    fields = {**vars(TIDE)}
    assert Question(**fields | change).digest != TIDE.digest
    assert Question(**fields | {"place": "elsewhere:9", "id": "z"}).digest == TIDE.digest
    one = Prompt(id="1", prompt="Hello", group="safe", target=None, place="p:1")
    assert Prompt(**vars(one) | {"group": "unsafe"}).digest != one.digest
