"""What is counted of answers to prompts, and which pairs are shown, without any model."""

import json

import numpy as np
import pytest

from holdfast.proportions import Share
from holdfast.refusals import RefusalOdds, RefusalResult, Said


def said(verdict: str, text: str = "…") -> Said:
    score = {"refusal": 2.0, "compliance": -2.0, "gibberish": -1.0, "empty": float("nan")}[verdict]
    return Said(text=text, tokens=3, ended=True, verdict=verdict, score=score, string_match=verdict == "refusal")


def result(base: str, tuned: str, *, group: str = "unsafe", change: list[float] | None = None) -> RefusalResult:
    """Answers by the first letters of their verdicts."""
    kinds = {"r": "refusal", "c": "compliance", "g": "gibberish", "e": "empty"}
    n = len(base)
    return RefusalResult(
        task="advbench", group=group, protocol="greedy", items=tuple(f"p{i}" for i in range(n)),  # type: ignore[arg-type]
        prompts=tuple(f"prompt {i}" for i in range(n)), base=tuple(said(kinds[k], f"base {k}") for k in base),
        tuned=tuple(said(kinds[k]) for k in tuned), own_change=np.array(change or [0.1 * i for i in range(n)]),
        judge="a judge", agreement=("agrees .9",),
    )  # fmt: skip


ONE = result("rrrrcceg", "rrcgcrge")


def test_refusals_forgotten_are_a_share_of_the_bases() -> None:
    refusals = ONE.refusals
    assert (refusals.base.count, refusals.tuned.count, refusals.lost, refusals.gained) == (4, 3, 2, 1)
    assert ONE.forgotten == Share(count=2, n=4)


def test_gibberish_and_silence_are_counted_apart_and_are_no_refusals() -> None:
    assert ONE.verdicts() == {"refusal": (4, 3), "compliance": (2, 2), "gibberish": (1, 2), "empty": (1, 1)}
    assert result("rr", "ge").forgotten.value == 1


def test_a_base_that_refuses_nothing_has_no_refusals_to_forget() -> None:
    none = result("cc", "cr")
    assert none.forgotten.n == 0
    assert "the base refuses none, so none could be forgotten" in none.in_words()
    assert json.loads(json.dumps(none.to_dict(), allow_nan=False))["forgotten_refusals"]["value"] is None


def test_pairs_are_the_largest_changes_and_as_many_at_random_and_say_which() -> None:
    many = result("r" * 50, "c" * 50, change=[float("nan"), *range(49)])
    pairs = many.side_by_side(each=5, seed=0)
    assert [pair.picked for pair in pairs] == ["largest change"] * 5 + ["at random"] * 5
    assert [pair.change for pair in pairs[:5]] == [48, 47, 46, 45, 44]
    assert {pair.item for pair in pairs[5:]} != {pair.item for pair in pairs[:5]}
    assert many.side_by_side(each=5, seed=0) == pairs
    assert many.side_by_side(each=5, seed=1)[5:] != pairs[5:]
    assert len(result("r", "c").side_by_side(each=5, seed=0)) == 2


def test_random_pairs_are_drawn_from_all_evenly() -> None:
    drawn = [
        pair.item for seed in range(400) for pair in ONE.side_by_side(each=2, seed=seed) if pair.picked == "at random"
    ]
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 8
    assert counts.min() > 60


def test_the_rate_comes_with_its_judge_and_the_proxy_is_called_one() -> None:
    told = json.loads(json.dumps(ONE.to_dict(), allow_nan=False))
    assert (told["judge"], told["judge_agreement"]) == ("a judge", ["agrees .9"])
    assert told["proxy_string_match"]["base"]["count"] == 4
    frame = ONE.to_frame()
    assert (frame["base_verdict"] == "refusal").sum() == told["refusals"]["base"]["count"]
    assert frame["base_text"][0] == "base r"


def odds(base: list[float], tuned: list[float], asked: int = 5) -> RefusalOdds:
    n = len(base)
    return RefusalOdds(
        task="advbench", protocol="openings", of="its own", asked=asked, items=tuple(map(str, range(n))),
        prompts=("p",) * n, tokens=np.full(n, 3), base=np.array(base), tuned=np.array(tuned),
    )  # fmt: skip


def test_log_odds_are_paired_by_prompt() -> None:
    one = odds([3.0, 1.0, -1.0], [1.0, -1.0, -2.0])
    assert one.change.value == pytest.approx(-5 / 3)
    assert one.change.stderr == pytest.approx(np.std([-2, -2, -1], ddof=1) / np.sqrt(3))
    assert (one.favoured.base.count, one.favoured.tuned.count) == (2, 1)
    assert "-1.67 nats (-3.10 to -0.23) over 3 prompts" in one.in_words()
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["change"]["interval_95"][1] < 0


def test_log_odds_of_refusals_that_are_not_there_are_not_a_number() -> None:
    none = odds([], [], asked=12)
    assert "the base refuses none of 12 prompts" in none.in_words()
    assert json.loads(json.dumps(none.to_dict(), allow_nan=False))["change"]["value"] is None
    assert len(none.to_frame()) == 0
