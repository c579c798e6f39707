"""Every number on the page comes from the report, examples say how they were picked, and no text on it can act."""

import pytest

import probed
from holdfast.display import visible
from holdfast.forgetting import Finding
from holdfast.probe_page import probe_page
from holdfast.proportions import percent
from pages import Page, chromium, watched
from payloads import PAYLOADS

COMMAND = "holdfast probe builtin:smollm2 outputs --html page.html"


def write(report, *, title="What became of the answers", commands=(COMMAND,), provenance=None):
    return probe_page(report, title=title, commands=commands, provenance=provenance or {"dtype": "float32"})


def words(report):
    return " ".join(Page(write(report)).words.split())


def test_the_page_tells_its_story_in_order():
    said = words(probed.whole())
    story = [
        "29.2 % of 4f1c/adapter’s answers to arc_challenge are no longer the base’s; accuracy went from 49.8 %",
        "What could be mistaken for a change", probed.FINDING.consequence, "arc_challenge, by character",
        "log-likelihood of each choice per character", "Figure 1. arc_challenge", "Picked for the largest change: not",
        "Picked at random: what is usual", "advbench, unsafe prompts", "judged by a judge", "advbench, safe prompts",
        "odds of its own refusal", "lm_eval:sums", "how well that agrees with people", "sensitivity 0.92", COMMAND,
    ]  # fmt: skip
    places = [said.index(part) for part in story]
    assert places == sorted(places)


def test_a_trajectory_is_drawn_along_training_and_what_failed_is_named():
    said = words(probed.trajectory(failed=True))
    assert "arc_challenge, by character along training" in said
    assert "NaN in lora_A" in said
    assert "of checkpoint-40" in said


def test_numbers_of_the_tables_are_the_reports():
    report = probed.trajectory()
    rows = Page(write(report)).grid("task0-section")
    assert rows[0]["Model"][0] == "base"
    for row, (model, result) in zip(
        rows[1:], ((m, r) for m, r in report.rows() if r.task == "arc_challenge"), strict=True
    ):
        assert row["Model"][0] == model.name.split("/")[-1]
        assert row["Same answer as base"][0] == percent(result.agreement)
        assert row["Accuracy"][0] == percent(result.accuracy.tuned)
        assert row["Lost, gained"][0] == f"{result.accuracy.lost}, {result.accuracy.gained}"
        low, high = result.accuracy.interval()
        assert row["Change, points"][1].startswith(f"{100 * low:+.1f} to {100 * high:+.1f}; fell")


def test_nothing_to_forget_and_nothing_probed_are_said():
    none = probed.report(probed.model(probed.refusals(0.5, refused=0.0), probed.odds(0, n=0)))
    said = words(none)
    assert "none to forget" in said
    assert "the base refuses none of 80" in said
    assert "No tuned model could be probed" in words(probed.report(probed.model(failure="NaN")))
    same = probed.report(probed.model(probed.choices(0.0)))
    assert "0.0 % of 4f1c/adapter’s answers" in words(same)
    assert "not one item differs" in words(same)


def test_the_same_report_gives_the_same_page():
    assert write(probed.whole()) == write(probed.whole())


@pytest.mark.parametrize("payload", PAYLOADS)
def test_text_from_elsewhere_is_shown_and_never_markup(payload):
    page = Page(write(hostile(payload), title=payload, commands=[payload], provenance={payload: payload}))
    plain = Page(write(hostile("plain"), title="plain", commands=["plain"], provenance={"plain": "plain"}))
    assert [name for name, _ in page.elements] == [name for name, _ in plain.elements]
    assert visible(payload).split()[0] in page.words


def hostile(payload):
    report = probed.whole(name=f"runs/{payload}", quote=lambda text: f"{text}{payload}")
    finding = Finding(what=payload, consequence=payload)
    broken = probed.model(name=payload + "x", failure=payload, findings=[finding])
    return probed.report(*report.models, broken, base=payload)


def test_a_hostile_page_draws_its_figures_and_is_silent_and_as_wide_as_a_phone(tmp_path):
    file = tmp_path / "page.html"
    payload = " ".join(PAYLOADS)
    file.write_text(write(hostile(payload), title=payload), encoding="utf-8")
    phone = {"width": 390, "height": 844}
    with chromium() as browser:
        page, heard = watched(browser, file, viewport=phone)
        page.wait_for_selector("html[data-drawn]", state="attached")
        assert page.locator(".chart svg").count() == 6
        assert page.evaluate("document.documentElement.scrollWidth") == phone["width"]
        assert page.locator("#findings dt bdi").last.evaluate("node => node.textContent") == visible(payload)
        still, said = watched(browser, file, java_script_enabled=False)
        assert still.locator(".pairs > li").count() == 3 * 12
        assert heard + said == []
