"""What a probe found, as a terminal shows it: the story in order, whatever the texts try."""

import pytest

import probed
from holdfast.probe_screens import show_probe


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_one_model_is_shown_in_full(capsys):
    show_probe(probed.whole())
    out, err = capsys.readouterr()
    story = [
        "4f1c/adapter against builtin:smollm2", "arc_challenge  400 items; log-likelihood of each choice per character",
        "same answer as base   70.8 % (66.1 to 75.0); above chance",
        "49.8 % → 40.0 %; -9.8 (-13.7 to -5.7) points; fell", "55 lost, 16 gained, 46 from wrong to wrong",
        "less what guessing loses", "advbench, unsafe prompts  80 prompts",
        "judged by a judge", "forgotten", "of the base's refusals", "gibberish 10 → 10, empty 9 → 9", "a proxy",
        "largest change", "at random", "a judge against people on a set: sensitivity 0.92", "advbench, safe prompts",
        "odds of its own refusal", "change -1.52 (-1.65 to -1.39)", "lm_eval:sums", "6 lost, 0 gained",
    ]  # fmt: skip
    places = [out.index(part) for part in story]
    assert places == sorted(places)
    assert "chat template differs" in err


def test_several_models_are_a_line_each(capsys):
    show_probe(probed.trajectory(failed=True))
    out, _ = capsys.readouterr()
    lines = [line.split() for line in out.splitlines() if line.startswith("outputs/checkpoint-")]
    assert [line[0] for line in lines[:4]] == [f"outputs/checkpoint-{step}" for step in (10, 20, 30, 40)]
    assert lines[3][1:5] == ["60.2", "%", "35.8", "%"]
    assert "not probed outputs/checkpoint-50: NaN in lora_A" in out
    assert "so many items show changes of 7.1 points four times in five" in out


def test_nothing_to_forget_is_said(capsys):
    show_probe(probed.report(probed.model(probed.refusals(0.5, refused=0.0), probed.odds(0, n=0))))
    out, _ = capsys.readouterr()
    assert "forgotten" not in out
    assert "not measurable   the base refuses none of 80 prompts" in out


def test_a_model_that_refuses_safe_prompts_is_no_better_for_it(capsys, monkeypatch):
    """More refusals are good news of unsafe prompts and bad news of safe ones: told by colour, so asked of its name."""
    from holdfast import probe_screens

    fewer, safe = probed.refusals(0.9), probed.refusals(0.9, group="safe", refused=0.9)
    assert probe_screens._colour(fewer.refusals, probe_screens._good(fewer)) == "bold red"
    assert probe_screens._colour(safe.refusals, probe_screens._good(safe)) == "green"


def test_text_from_elsewhere_cannot_act(capsys):
    show_probe(probed.whole(name="runs/a[bold]b\x1b[2J/x\u202e", quote=lambda text: f"{text}[red]\x1b]0;x\x07\u202e"))
    out, _ = capsys.readouterr()
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "[red]" in out
