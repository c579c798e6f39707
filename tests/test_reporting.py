"""Every number on the page comes from the rows, no text on it can act, and it asks nothing of anyone."""

import dataclasses
import json
import math
import re

import numpy as np
import pandas as pd
import pytest

from holdfast import forms, laws, planning, reporting, validation
from holdfast.display import visible
from holdfast.stats import Estimate, rounded
from pages import Page, chromium, watched
from payloads import PAYLOADS
from simulated import study

COMMANDS = ["holdfast sweep study.yaml", "holdfast report runs --max-forgetting 0.5"]
PROVENANCE = {"versions": {"torch": "2.13.0"}, "threads": 2, "fingerprints": {"wikipedia": "sha256:0f"}}


def failed(run="f" * 12, state="failed", reason="out of memory at step 3", **about):
    return (
        {**study(ranks=(8,), seeds=(0,)).iloc[0].to_dict(), "run": run, "state": state, "reason": reason}
        | dict.fromkeys(("step", "nll", "kl_base_tuned"), math.nan)
        | about
    )


def estimate(row, quantity):
    return str(Estimate(value=row[quantity], stderr=row[f"{quantity}_stderr"], n=int(row["documents"])))


def write(table, fitted, plan, **other):
    trial = None if fitted is None else validation.validate(table, corpus=fitted.corpus)
    arguments = {"title": "A study", "commands": COMMANDS, "provenance": PROVENANCE, "validation": trial} | other
    return reporting.report(table, fitted, plan, **arguments)


@pytest.fixture(scope="module")
def table():
    whole = study(np.random.default_rng(0), ranks=(8, 64, 256), seeds=(0, 1))
    return pd.concat([whole, pd.DataFrame([failed()])], ignore_index=True)


@pytest.fixture(scope="module")
def fitted(table):
    return laws.fit(table)


@pytest.fixture(scope="module")
def planned(fitted):
    return planning.plan(fitted, max_forgetting=0.55)


@pytest.fixture(scope="module")
def text(table, fitted, planned):
    return write(table, fitted, planned)


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_page_tells_its_story_in_order(page, fitted):
    story = [
        planning.price_in_words(fitted), "What to run", "Figure 1", "Figure 2", "Figure 3", "The laws",
        "What each run measured last", "Runs without a result", "What the words mean", "How to make this page again",
    ]  # fmt: skip
    places = [page.words.index(part) for part in story]
    assert places == sorted(places)
    for part in (*COMMANDS, "versions / torch", "2.13.0", "sha256:0f", *fitted.warnings):
        assert part in page.words


def test_the_printed_lines_follow_from_the_rows(page, table, fitted):
    """Slope, intercept, R², residual and counts, by NumPy on the rows themselves (T7)."""
    done = table[(table["state"] == "done") & (table["step"] > 50 / 260 * table["total_steps"])]
    both = done[done["role"] == "retain"].merge(
        done[done["role"] == "target"], on=["run", "step"], suffixes=("", "_target")
    )
    printed = [row for row in page.grid("laws") if row["Quantity"][1] == "ordinary least squares"]
    assert len(printed) == 2
    for row, quantity in zip(printed, laws.FORGETTING, strict=True):
        x, y = both["nll_target"].to_numpy(), both[quantity].to_numpy()
        gradient, intercept = np.polyfit(x, y, 1)
        residual = y - gradient * x - intercept
        parameters = fitted.lines[quantity].parameters
        assert row["Slope"][0] == rounded(-gradient, parameters["slope"].stderr)
        assert row["Intercept"][0] == rounded(intercept, parameters["intercept"].stderr)
        assert row["R²"][0] == f"{1 - residual.var() / y.var():.4f}"
        assert row["Residual"][0] == f"{math.sqrt(np.mean(residual**2)):.2g}"
        assert (row["Runs"][0], row["Points"][0]) == (str(both["run"].nunique()), str(len(both)))
        low, high = parameters["slope"].interval(0.9)
        assert [float(end) for end in row["Slope"][1].split(" to ")] == pytest.approx([low, high], abs=0.01)


def test_the_printed_joint_laws_predict_the_rows(page, table, fitted):
    measured = laws.points(table)
    for row, quantity in zip(page.grid("laws", 1), ("target_nll", "kl_base_tuned", "hard_cross_entropy"), strict=True):
        fit = fitted.joint[quantity]
        value = {name: estimate.value for name, estimate in fit.parameters.items()}
        p, n = (measured[name] / fit.reference[name] for name in ("trainable_params", "steps"))
        residual = measured[quantity] - value["asymptote"] - value["K"] * p ** -value["x"] * n ** -value["y"]
        assert row["Residual"][0] == f"{math.sqrt(np.mean(residual**2)):.2g}"
        for column, name in (
            ("Asymptote or start", "asymptote"),
            ("K", "K"),
            ("x, parameters", "x"),
            ("y, steps", "y"),
        ):
            assert row[column][0] == rounded(value[name], fit.parameters[name].stderr)


def test_every_number_of_a_run_is_its_last_row(page, table):
    done = table[table["state"] == "done"]
    printed = page.grid("runs")
    assert sorted(row["Run"][0] for row in printed) == sorted(done["run"].unique())
    for row in printed:
        of_run = done[done["run"] == row["Run"][0]]
        last = of_run[of_run["step"] == of_run["step"].max()].set_index("role")
        first = of_run[(of_run["step"] == 0) & (of_run["role"] == "retain")].iloc[0]
        retained = {"KL": "kl_base_tuned", "Hard loss": "hard_cross_entropy", "Agreement": "agreement"}
        assert row["Target loss before"][0] == estimate(last.loc["target"], "base_nll")
        assert row["after"][0] == estimate(last.loc["target"], "nll")
        assert {name: row[name][0] for name in retained} == {
            name: estimate(last.loc["retain"], quantity) for name, quantity in retained.items()
        }
        assert row["Hard loss"][1] == f"base {estimate(first, 'hard_cross_entropy')}"
        assert int(row["Steps"][0]) == last["step"].iloc[0]
        assert int(row["Documents"][0]) == last.loc["retain", "documents"]
        assert int(row["Seed"][0]) == last["seed"].iloc[0]


def test_the_recommendation_and_its_risk_are_the_plans(page, planned):
    words = " ".join(page.words.split())
    assert f"Train rank {planned.r} for {planned.steps} steps" in words
    assert f"Chance that one such run exceeds 0.55{planning.percent(planned.probability_over_budget)}" in words
    ends = re.search(r"forget [\d.]+ nats per token on \w+ (\(90 % of runs [\d.]+ to [\d.]+\))", planned.reasons[1])
    assert words.count(ends.group(1).strip("()")) == 2
    for sentence in (*planned.reasons, *planned.warnings):
        assert sentence in page.words


def test_a_plan_out_of_reach_says_so(table, fitted):
    planned = planning.plan(fitted, max_forgetting=0.001, target_loss=0.1)
    words = Page(write(table, fitted, planned)).words
    assert "Nothing within reach meets a budget of 0.001 nats of forgetting and a target loss of 0.1" in words
    assert "Train rank" not in words


def test_runs_that_failed_are_named_with_their_reason(table, fitted):
    diverged = failed("e" * 12, "diverged", "loss is nan at step 9", step=5.0, r=16)
    more = pd.concat([table, pd.DataFrame([diverged])], ignore_index=True)
    page = Page(write(more, fitted, None))
    assert [tuple(cell[0] for cell in row.values()) for row in page.grid("unfinished")] == [
        ("f" * 12, "failed", "8", "none", "not measured", "not measured", "out of memory at step 3"),
        ("e" * 12, "diverged", "16", "5", "not measured", "not measured", "loss is nan at step 9"),
    ]
    assert more["run"].nunique() == 2 + len(page.grid("runs"))


def test_none_is_said_when_no_run_failed_and_no_plan_was_made(table, fitted):
    words = Page(write(table[table["state"] == "done"], fitted, None)).words
    assert "None: all 6 runs finished." in words
    assert "nothing is recommended" in words


def test_without_laws_the_measurements_remain(table):
    short = table[(table["step"] <= 60) | table["step"].isna()]
    page = Page(write(short, None, None, why_no_laws="got 3 points, expected at least 5"))
    assert page.words.count("got 3 points, expected at least 5") == 2
    assert len(page.grid("runs")) == 6
    assert page.count("figure") == 3


def test_without_any_finished_run_the_page_is_still_a_page():
    page = Page(write(pd.DataFrame([failed()]), None, None, why_no_laws="no run finished"))
    assert page.count("figure") == 0
    assert "None: got no finished run among 1" in page.words
    assert "None: no run finished." in page.words
    assert len(page.grid("unfinished")) == 1


def test_one_run_gives_numbers_without_intervals():
    one = study(np.random.default_rng(0), ranks=(8,), seeds=(0,))
    page = Page(write(one, laws.fit(one), None))
    for row in page.grid("laws") + page.grid("laws", 1):
        assert {note for value, note in row.values()} <= {
            "", "no interval", "one size only", "ordinary least squares", "orthogonal least squares",
            "steps",
        }  # fmt: skip
    assert "nan" not in page.words


def test_a_parameter_the_data_leave_open_shows_no_number(table, fitted):
    fit = fitted.joint["target_nll"]
    open_ = {**fit.parameters, "x": dataclasses.replace(fit.parameters["x"], stderr=math.nan)}
    joint = {**fitted.joint, "target_nll": dataclasses.replace(fit, parameters=open_)}
    rows = Page(write(table, dataclasses.replace(fitted, joint=joint), None)).grid("laws", 1)
    assert rows[0]["x, parameters"] == ("not identified", "")


def test_several_retained_texts_have_a_row_each(table):
    other = table[table["role"] == "retain"].assign(corpus="code")
    two = pd.concat([table, other], ignore_index=True)
    rows = Page(write(two, laws.fit(two, corpus="wikipedia"), None)).grid("runs")
    assert sorted(row["Retained text"][0] for row in rows) == ["code"] * 6 + ["wikipedia"] * 6


def test_figures_hold_every_measurement_and_say_which_the_fits_used(page, table, fitted):
    drawn = [json.loads(code) for code in page.codes["script"] if '"in_fit"' in code and code.startswith("{")]
    every = laws.points(table, skip_fraction=0)
    assert len(drawn) == 3
    for spec in drawn:
        marks = spec["datasets"][spec["layer"][-1]["data"]["name"]]
        assert {(row["run"], row["steps"]) for row in marks} == set(zip(every["run"], every["steps"], strict=True))
        assert sum(row["in_fit"] for row in marks) == fitted.lines["kl_base_tuned"].n_points


def test_the_same_study_makes_the_same_page_byte_for_byte(table, fitted, planned, text):
    again = table.sample(frac=1, random_state=1)
    assert write(again, fitted, planned) == text


def test_a_large_study_stays_a_small_file():
    large = study(np.random.default_rng(0), ranks=(8, 16, 32, 64, 128, 256), seeds=range(8))
    written = write(large, laws.fit(large), None)
    assert len(laws.points(large, skip_fraction=0)) > 1000
    assert len(written.encode()) <= 2.5e6


def hostile(table, payload):
    """The same table with this text in every column that holds text; a lone surrogate is not text to pandas."""
    payload = payload.replace("\ud800", "")
    texts = dict.fromkeys(("model", "target", "method", "optimizer", "schedule", "dtype"), payload)
    return table.assign(
        **texts,
        run=table["run"] + payload,
        corpus=table["corpus"] + payload,
        reason=table["reason"].where(table["reason"].isna(), payload),
    )


def everywhere(payload):
    return {"title": payload, "commands": [payload], "provenance": {payload: payload, "nested": {payload: [payload]}}}


BROKEN = pd.DataFrame([failed(), failed("e" * 12, "diverged")])


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_is_shown_and_does_nothing(payload):
    mild = Page(write(BROKEN, None, None, why_no_laws="why", **everywhere("mild")))
    page = Page(write(hostile(BROKEN, payload), None, None, why_no_laws=payload, **everywhere(payload)))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in mild.elements]
    assert [set(attrs) for _, attrs in page.elements] == [set(attrs) for _, attrs in mild.elements]
    assert page.codes["style"] == mild.codes["style"]
    for row in page.grid("unfinished"):
        assert row["Reason"] == (visible(payload.replace("\ud800", "")), "")
    assert page.words.count(visible(payload)) >= 8


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def test_a_hostile_page_draws_its_figures_and_is_silent(browser, tmp_path, table):
    payload = " ".join(PAYLOADS)
    bad = hostile(table, payload)
    fitted = laws.fit(bad)
    file = tmp_path / "report.html"
    plan = planning.plan(fitted, max_forgetting=0.55)
    file.write_text(write(bad, fitted, plan, **everywhere(payload)), encoding="utf-8")
    page, heard = watched(browser, file)
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert page.locator(".chart svg").count() == 6
    marks = "[data-figure={}] .mark-symbol.role-mark path"
    for name in ("loss-against-forgetting", "trajectories-target", "trajectories-forgetting"):
        assert page.locator(marks.format(name)).count() == len(laws.points(bad, skip_fraction=0))
    trial = validation.validate(bad).predictions()
    assert page.locator(marks.format("held-out-target")).count() == (trial["quantity"] == "target_nll").sum()
    for scheme, ink in (("dark", "rgb(228, 233, 230)"), ("light", "rgb(26, 33, 31)")):
        page.emulate_media(color_scheme=scheme)
        line = page.locator("[data-figure=loss-against-forgetting] .mark-line path").first
        assert line.evaluate("path => getComputedStyle(path).stroke") == ink
    page.locator(marks.format("loss-against-forgetting")).nth(60).hover(force=True)
    assert "Target loss" in page.locator("#vg-tooltip-element").inner_text()
    reason = page.locator("#unfinished td.words").first.evaluate("cell => cell.textContent")
    assert reason == visible(payload.replace("\ud800", ""))
    assert heard == []


def test_the_page_is_as_wide_as_a_phone_and_needs_no_script(browser, tmp_path, text):
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    phone = {"width": 390, "height": 844}
    page, heard = watched(browser, file, viewport=phone)
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert page.locator(".chart svg").count() == 6
    assert page.evaluate("document.documentElement.scrollWidth") == phone["width"]
    still, said = watched(browser, file, viewport=phone, java_script_enabled=False)
    assert still.locator(".chart svg").count() == 6
    assert still.locator(".chart svg").first.is_visible()
    assert heard + said == []


def test_every_form_stands_beside_its_error_on_what_it_had_not_seen(table, fitted):
    compared = forms.compare_forms(laws.points(table))
    page = Page(write(table, fitted, None, forms=compared))
    printed = page.grid("held-out", 1)
    assert len(printed) == len(compared.scores()) == 12
    for row, score in zip(printed, compared.scores(), strict=True):
        assert (row["Quantity"][0], row["Form"][0]) == (reporting.NAMES[score.quantity], score.form)
        assert row["R² in sample"][0] == f"{score.r2:.4f}"
        for part, error in score.errors.items():
            assert row[part][0] == f"{error:.2g}"
            assert (row[part][1] == "nearest") == (compared.nearest(score.quantity)[part] == score.form)
