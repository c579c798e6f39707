"""Every number on the page comes from the sums and tokens, the verdict is said plainly, and no text on it can act."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats as scipy_stats

import measured
from holdfast.display import visible
from holdfast.evidence import UNMEASURABLE
from holdfast.forgetting import Finding
from holdfast.forgetting_page import forgetting_page
from pages import Page, chromium, watched
from payloads import PAYLOADS

COMMAND = "holdfast measure builtin:smollm2 outputs --max-forgetting 0.1 --html page.html"


def write(report, *, max_forgetting=None, title="What outputs forgot", commands=(COMMAND,), provenance=None):
    return forgetting_page(
        report, max_forgetting=max_forgetting, title=title, commands=commands,
        provenance={"dtype": "float32"} if provenance is None else provenance,
    )  # fmt: skip


def read(report, **about):
    return Page(write(report, **about))


def headline(page):
    """From the title to the first number in large: the sentence, the verdict, and why."""
    words = " ".join(page.words.split())
    return words[: words.index("Forgetting is KL(base‖tuned)")]


def one(**about):
    return measured.report(measured.checkpoint(measured.corpus(**about)))


QUANTISED = measured.report(
    measured.checkpoint(measured.corpus(forgetting=0.03)), quantised="4bit",
    quantisation=[measured.corpus(forgetting=0.02)],
)  # fmt: skip
FAILED = measured.checkpoint(name="outputs/checkpoint-9", step=9, failure="got hidden size 64, expected 32")


def test_the_page_tells_its_story_in_order():
    report = replace(
        measured.trajectory(), quantised="4bit", quantisation=QUANTISED.quantisation,
        checkpoints=(*measured.trajectory().checkpoints, FAILED),
    )  # fmt: skip
    words = " ".join(read(report, max_forgetting=0.1).words.split())
    story = [
        "checkpoint-500 forgot 0.117 nats per token on wikipedia (95 % interval 0.096 to 0.137), the most of 2 texts; "
        "91.2 % of its next-token choices are still the base’s.",
        "Whether it is within the budget of 0.1 nats per token is not measurable with this much text.",
        "What could be mistaken for forgetting", measured.TEMPLATE.consequence, "What was measured",
        "Figure 1. Forgetting along training", "The last checkpoint that is within the budget on every text is "
        "checkpoint-200.", "Figure 2. Forgetting by text", "Figure 3. Forgetting by kind of token",
        "Two numbers that are never added", "Picked by the largest fall in probability, not at random",
        "Models that could not be measured", "What the words mean", COMMAND, "dtype", "float32",
    ]  # fmt: skip
    places = [words.index(part) for part in story]
    assert places == sorted(places)


def test_every_number_of_the_table_follows_from_the_sums_and_tokens():
    """Means, intervals and tails by NumPy and SciPy on the report's own arrays."""
    report = measured.trajectory()
    rows = read(report).grid("measurements")
    assert len(rows) == 10
    for row, (point, text) in zip(rows, report.rows(), strict=True):
        assert (row["Model"][0], row["Text"][0]) == (point.name.removeprefix("outputs/"), text.corpus)
        total, documents = text.count.sum(), len(text.count)

        def close(said, truth):
            assert float(said) == pytest.approx(truth, rel=0.06)

        def jackknife(sums, counts=text.count):
            without = (sums.sum() - sums) / (counts.sum() - counts)
            error = math.sqrt((len(sums) - 1) / len(sums) * ((without - sums.sum() / counts.sum()) ** 2).sum())
            return sums.sum() / counts.sum(), error

        forgetting, error = jackknife(text.sums["kl_base_tuned"])
        value, said = row["Forgetting"][0].split(" ± ")
        close(value, forgetting)
        assert float(said) == pytest.approx(error, rel=0.35)  # one digit of it is printed
        margin = scipy_stats.t.ppf(0.975, documents - 1) * error
        assert [float(end) for end in row["Forgetting"][1].split(" to ")] == pytest.approx(
            [forgetting - margin, forgetting + margin], abs=error / 2
        )
        values = np.sort(text.tokens.kl_base_tuned)
        for column, share in (("Median", 0.5), ("95th", 0.95), ("99th", 0.99), ("99.9th", 0.999)):
            close(row[column][0], values[math.ceil(share * len(values)) - 1])
        close(row["Agreement"][0].removesuffix(" %"), 100 * text.sums["agreement"].sum() / total)
        change, its_error = jackknife(text.sums["nll"] - text.sums["base_nll"])
        assert float(row["Change of loss"][0]) == pytest.approx(change, abs=its_error / 2)
        detectable = (scipy_stats.t.ppf(0.975, documents - 1) + scipy_stats.t.ppf(0.8, documents - 1)) * error
        close(row["Detectable"][0], detectable)
        assert row["Documents, tokens"] == (str(documents), f"{total:,}")


@pytest.mark.parametrize(
    ("about", "budget", "verdict", "said"),
    [
        ({}, None, "forgetting measured", "Forgetting measured: more than chance."),
        ({}, 0.2, "within budget", "Within the budget of 0.2 nats per token."),
        ({}, 0.02, "over budget", "Over the budget of 0.02 nats per token."),
        ({}, 0.08, UNMEASURABLE, "Whether it is within the budget of 0.08 nats per token is not measurable with this "
         "much text. The interval reaches from below the budget of 0.08 to above it"),
        ({"documents": 1}, 0.2, UNMEASURABLE, "is not measurable with this much text. One document gives no interval"),
        ({"documents": 1}, None, UNMEASURABLE, "Whether anything was forgotten is not measurable with this much text."),
        ({"forgetting": 1e-5, "floor": 1e-3}, None, UNMEASURABLE, "Less than 0.001 nats per token cannot be told from"),
        ({"forgetting": 0}, None, "identical", "forgot nothing on wikipedia: not one prediction moved. Identical"),
        ({"forgetting": 0}, 0.0, "within budget", "Within the budget of 0 nats per token."),
    ],
)  # fmt: skip
def test_the_verdict_is_said_plainly(about, budget, verdict, said):
    page = read(one(**about), max_forgetting=budget)
    assert said in headline(page)
    assert [row["Verdict"][0] for row in page.grid("measurements")] == [verdict]


def test_one_document_gives_numbers_without_intervals():
    page = read(one(documents=1))
    assert "(no interval from one document)" in headline(page)
    (row,) = page.grid("measurements")
    assert row["Forgetting"][1] == row["Agreement"][1] == row["Change of loss"][1] == "no interval"
    assert row["Detectable"][0] == "unknown"
    assert "nan" not in page.words.replace("nan-", "")


def test_the_gravest_verdict_names_whose_it_is():
    over = measured.checkpoint(measured.corpus(forgetting=0.3), measured.corpus(name="code"), name="runs/a/adapter")
    fine = measured.checkpoint(measured.corpus(), measured.corpus(name="code"), name="runs/b/adapter")
    said = headline(read(measured.report(over, fine), max_forgetting=0.2))
    assert "b/adapter forgot" in said
    assert "Over the budget of 0.2 nats per token. That holds for a/adapter on wikipedia." in said


def test_prompts_of_what_was_learned_are_shown_and_not_judged():
    learned = measured.corpus(name="gsm8k prompts", role="target", forgetting=0.9)
    page = read(measured.report(measured.checkpoint(measured.corpus(), learned)), max_forgetting=0.2)
    assert "forgot 0.080 nats per token on wikipedia (95 % interval 0.065 to 0.096); 92" in headline(page)
    assert "Within the budget" in headline(page)
    rows = {row["Text"]: row["Verdict"][0] for row in page.grid("measurements")}
    assert rows == {("wikipedia", ""): "within budget", ("gsm8k prompts", "not judged"): "forgetting measured"}


def test_a_section_is_there_only_when_its_data_are():
    bare = replace(measured.corpus(), tokens=None, passages=())
    smallest = read(measured.report(measured.checkpoint(bare)))
    assert set(smallest.grids) == {"measurements", "definitions", "reproduce"}
    assert smallest.count("figure") == 0
    assert smallest.grid("measurements")[0]["99th"][0] == "–"
    assert {"where", "passages"} < set(read(one()).grids)
    assert read(one()).count("figure") == 1  # by kind; one bar alone is no figure
    assert read(one(), max_forgetting=0.1).count("figure") == 2
    assert {"training", "findings"} < set(read(measured.trajectory()).grids)
    assert "quantisation" in read(QUANTISED).grids
    same_step = [measured.checkpoint(measured.corpus(), name=name, step=7) for name in ("a/adapter", "b/adapter")]
    assert "training" not in read(measured.report(*same_step)).grids


def test_quantisation_damage_stands_beside_forgetting_and_is_added_nowhere():
    page = read(QUANTISED)
    (row,) = page.grid("quantisation")
    damage, forgotten = QUANTISED.quantisation["wikipedia"].kl_base_tuned, QUANTISED["wikipedia"].kl_base_tuned
    assert row["Quantising changed, nats per token"][0] == str(damage)
    assert row["Tuning forgot, nats per token"][0] == str(forgotten)
    assert f"{damage.value + forgotten.value:.3f}" not in page.words
    assert "against builtin:smollm2 quantised (4bit)" in " ".join(page.words.split())


def test_models_that_failed_are_named_with_their_reason_and_nothing_else_is_said_of_them():
    page = read(measured.report(measured.checkpoint(measured.corpus()), FAILED))
    assert page.grid("failed") == [{"Model": ("checkpoint-9", ""), "Reason": (FAILED.failure, "")}]
    assert "1 tuned model on 1 text, against builtin:smollm2. 1 could not be measured." in headline(page)
    nothing = read(measured.report(FAILED), max_forgetting=0.1)
    assert "No tuned model could be measured" in headline(nothing)
    assert set(nothing.grids) == {"failed", "definitions", "reproduce"}
    assert nothing.count("script") == 1  # which sorts tables
    assert not nothing.count("figure")


def test_a_finding_says_which_models_it_is_of_unless_it_is_of_all():
    points = [measured.checkpoint(measured.corpus(), name=f"runs/{x}/adapter", findings=[measured.PADDING, *more])
              for x, more in (("a", []), ("b", [measured.TEMPLATE]))]  # fmt: skip
    words = " ".join(read(measured.report(*points)).words.split())
    assert f"{measured.TEMPLATE.what} of b/adapter{measured.TEMPLATE.consequence}" in words
    assert f"{measured.PADDING.what}{measured.PADDING.consequence}" in words


def test_models_are_named_by_as_much_of_their_path_as_tells_them_apart():
    names = ["x/runs/1/adapter", "y/runs/1/adapter", "z/out/checkpoint-10", "hub/model"]
    rows = read(measured.report(*(measured.checkpoint(measured.corpus(), name=n) for n in names))).grid("measurements")
    assert [row["Model"][0] for row in rows] == [
        "x/runs/1/adapter",
        "y/runs/1/adapter",
        "z/out/checkpoint-10",
        "hub/model",
    ]


def test_passages_show_what_each_model_would_say_and_white_space_by_signs():
    words = " ".join(read(one()).words.split())
    assert "14 October 1066 between" in words
    assert "probability of the marked token94 % → 4 % base would say1066 94 % tuned would say2016 31 %" in words
    assert "tuned would say↵ 22 %" in words
    assert "wikipedia.jsonl:1" in words


def test_passages_past_the_first_few_are_there_for_who_asks():
    many = replace(measured.corpus(), passages=measured.corpus().passages * 4)
    page = read(measured.report(measured.checkpoint(many)))
    assert "7 more" in page.words
    assert page.count("mark") == 12
    assert page.count("details") == 1
    assert read(one()).count("details") == 0


def test_figures_hold_every_measurement_and_the_same_report_makes_the_same_page():
    text = write(measured.trajectory(), max_forgetting=0.1)
    specs = [json.loads(code) for code in Page(text).codes["script"][:-1]]
    assert len(specs) == 3
    drawn = [row for data in specs[0]["datasets"].values() for row in data if "step" in row]
    assert {(row["step"], row["text"]) for row in drawn} == {
        (point.step, corpus.corpus) for point, corpus in measured.trajectory().rows()
    }
    assert write(measured.trajectory(), max_forgetting=0.1) == text
    assert len(text.encode()) < 1.5e6


def hostile(payload):
    """This text in every field of a report that holds text."""

    def quote(text):
        return f"{text}{payload}"

    whole = measured.trajectory(quote=quote)
    finding = Finding(what=payload, consequence=payload)
    failed = measured.checkpoint(name=quote("outputs/checkpoint-600"), step=600, failure=payload, findings=[finding])
    return replace(
        whole, base=payload, quantised=payload, dtype=payload, device=payload,
        quantisation=whole.checkpoints[0].texts,
        checkpoints=(*(replace(point, findings=(finding,)) for point in whole.checkpoints), failed),
    )  # fmt: skip


def everywhere(payload):
    return {"title": payload, "commands": [payload], "provenance": {payload: payload, "nested": {payload: [payload]}}}


@pytest.fixture(scope="module")
def mild():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("holdfast.figures.still", lambda _: "")
        return read(hostile("mild"), max_forgetting=0.1, **everywhere("mild"))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_is_shown_and_does_nothing(payload, mild, monkeypatch):
    monkeypatch.setattr("holdfast.figures.still", lambda _: "")  # still drawings are checked in the browser
    page = read(hostile(payload), max_forgetting=0.1, **everywhere(payload))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in mild.elements]
    assert [set(attrs) for _, attrs in page.elements] == [set(attrs) for _, attrs in mild.elements]
    assert page.codes["style"] == mild.codes["style"]
    assert {row["Reason"][0] for row in page.grid("failed")} == {visible(payload)}
    name = visible(payload).rstrip("/")  # what a path that is a name is shown as
    assert page.words.count(name) >= mild.words.count("mild")


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def test_a_hostile_page_draws_its_figures_and_is_silent(browser, tmp_path):
    payload = " ".join(PAYLOADS)
    file = tmp_path / "page.html"
    file.write_text(write(hostile(payload), max_forgetting=0.1, **everywhere(payload)), encoding="utf-8")
    page, heard = watched(browser, file)
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert page.locator(".chart svg").count() == 3
    assert page.locator(".chart .mark-symbol.role-mark path").count() == 10
    for scheme, ink in (("dark", "rgb(228, 233, 230)"), ("light", "rgb(26, 33, 31)")):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("getComputedStyle(document.querySelectorAll('.chart')[2].querySelector("
                             "'.mark-rule.role-mark line')).stroke") == ink  # fmt: skip
    page.locator(".chart .mark-symbol.role-mark path").nth(5).hover(force=True)
    assert "95 % interval" in page.locator("#vg-tooltip-element").inner_text()
    shown = visible(payload)
    read_back = {
        "#findings dt bdi": shown, "#findings dd bdi": shown, "#failed td.words bdi": shown, "title": shown,
        "#passages mark": f"1066{shown}", "#passages dd code": f"1066{shown}",
    }  # fmt: skip
    for selector, text in read_back.items():
        assert page.locator(selector).first.evaluate("node => node.textContent") == text
    still, said = watched(browser, file, java_script_enabled=False)
    assert still.locator(".passages li").count() == 6
    assert heard + said == []


def test_the_page_is_as_wide_as_a_phone_and_needs_no_script(browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(write(measured.trajectory(), max_forgetting=0.1), encoding="utf-8")
    phone = {"width": 390, "height": 844}
    page, heard = watched(browser, file, viewport=phone)
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert page.locator(".chart svg").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth") == phone["width"]
    still, said = watched(browser, file, viewport=phone, java_script_enabled=False)
    assert still.locator(".chart svg").count() == 3
    assert heard + said == []
