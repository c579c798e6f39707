"""A study's page in a real browser: what it does, that it does nothing else, and that everyone can use it."""

import base64
import gzip
import importlib.util
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from holdfast import comparison, forms, laws, planning, reporting, validation
from holdfast.display import visible
from pages import Page, chromium, watched
from payloads import PAYLOADS
from simulated import study

ROWS = Path(__file__).parent.parent / "studies" / "gsm8k-seeds" / "runs.csv"
RANKS = (8, 64)


def several(rng):
    """A study of two methods and two retained texts, with a run that failed."""
    table = study(rng, ranks=RANKS, seeds=(0, 1))
    text = table[table["role"] == "retain"].assign(corpus="code")
    text["kl_base_tuned"] *= 0.6
    method = table.assign(method="dora", run="d" + table["run"].str[1:])
    failed = {**table.iloc[0].to_dict(), "run": "f" * 12, "state": "failed", "reason": "out of memory at step 3"}
    return pd.concat([table, method, text, pd.DataFrame([failed])], ignore_index=True)


def write(table, budget, **about):
    fitted = laws.fit(table, corpus="wikipedia")
    used = laws.points(table, corpus="wikipedia")
    held = forms.compare_forms(used, runs=fitted.runs)
    return reporting.report(
        table, fitted, planning.plan(fitted, max_forgetting=budget), forms=held,
        validation=validation.validate(table, corpus="wikipedia"),
        compared=comparison.beside_the_paper(used, fitted, held),
        **{"title": "A study", "commands": ["holdfast report runs"], "provenance": {"torch": "2.13.0"}} | about,
    )  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return several(np.random.default_rng(0))


@pytest.fixture(scope="module")
def file(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(write(table, 0.55), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The page of a real sweep, from its stored rows."""
    path = tmp_path_factory.mktemp("real") / "report.html"
    path.write_text(write(pd.read_csv(ROWS, dtype={"run": str}), 0.05), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


def drawn(page):
    page.wait_for_selector("html[data-drawn]", state="attached")
    return page


def violations(page):
    """What axe-core finds, by rule and place."""
    source = Path(importlib.util.find_spec("axe_playwright_python").origin).with_name("axe.min.js")
    page.evaluate(source.read_text(encoding="utf-8") + "\nnull;")
    found = page.evaluate("axe.run().then(found => found.violations)")
    return [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_axe_finds_nothing_and_the_page_is_silent(browser, real, file, scheme, width):
    for path in (real, file):
        page, heard = watched(browser, path, color_scheme=scheme, viewport={"width": width, "height": 900})
        assert violations(drawn(page)) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert heard == []
        page.context.close()


def test_axe_finds_nothing_without_scripts(browser, file):
    """Axe is itself a script, so the page's own are taken out before a browser that runs them sees it."""
    bare = file.with_name("bare.html")
    text = file.read_text(encoding="utf-8")
    start = text.rindex("<script>")
    bare.write_text(text[:start] + text[text.index("</script>", start) :].removeprefix("</script>"), encoding="utf-8")
    page, _ = watched(browser, bare)
    assert violations(page) == []


def test_pointing_at_a_mark_tells_its_run_step_and_values_with_intervals(browser, file, table):
    page, heard = watched(browser, file)
    drawn(page)
    page.locator("[data-figure=loss-against-forgetting] .mark-symbol.role-mark path").nth(30).hover(force=True)
    said = dict(row.split("\t") for row in page.locator("#vg-tooltip-element tr").all_inner_texts())
    row = table[(table["run"] == said["Run"]) & (table["step"] == int(said["Step"].replace(",", "")))]
    retained = row[(row["role"] == "retain") & (row["corpus"] == "wikipedia")].iloc[0]
    value, rest = said["Forgetting, KL(base || tuned)"].split(" ± ")
    low, high = rest[rest.index("(") + 1 : -1].split(" to ")
    assert float(value) == pytest.approx(retained["kl_base_tuned"], abs=1e-4)
    assert float(low) < retained["kl_base_tuned"] < float(high)
    assert heard == []


def opacities(page, figure):
    marks = page.locator(f"[data-figure={figure}] .mark-symbol.role-mark path")
    return marks.evaluate_all("marks => marks.map(mark => [mark.getAttribute('opacity'), mark.getAttribute('stroke')])")


def shown(page, figure):
    """Colours of the marks that are not faded."""
    return {colour for opacity, colour in opacities(page, figure) if opacity in (None, "1")}


FIGURES = ("loss-against-forgetting", "loss-against-forgetting-2", "trajectories-forgetting", "by-text")


def test_a_rank_picked_in_a_legend_or_by_key_is_alone_in_every_figure(browser, file):
    """Two methods of two ranks are four series; a panel is of one method."""
    page, heard = watched(browser, file)
    drawn(page)
    every = {figure: len(shown(page, figure)) for figure in FIGURES}
    assert every == dict.fromkeys(FIGURES, 4) | {"loss-against-forgetting-2": 2}
    assert page.locator(".isolate button").all_inner_texts() == ["all", "8", "64", "dora 8", "dora 64"]
    page.locator("[data-figure=loss-against-forgetting] .role-legend-symbol path").first.click(force=True)
    page.wait_for_selector(".isolate button[data-value='8'][aria-pressed=true]")
    page.wait_for_timeout(200)
    first = {tuple(shown(page, figure)) for figure in FIGURES}
    assert len(first) == 1
    assert len(first.pop()) == 1
    page.locator(".isolate button[data-value='64']").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(200)
    assert {len(shown(page, figure)) for figure in FIGURES} == {1}
    assert page.locator(".isolate button[aria-pressed=true]").inner_text() == "64"
    page.keyboard.press("Space")  # picked again, all come back
    page.wait_for_timeout(200)
    assert {figure: len(shown(page, figure)) for figure in FIGURES} == every
    page.locator(".isolate button[data-value='dora 64']").click()
    page.wait_for_timeout(200)
    assert {len(shown(page, figure)) for figure in FIGURES if not figure.endswith("2")} == {1}
    assert shown(page, "loss-against-forgetting-2") == set()
    assert heard == []


def test_the_frontier_follows_a_rank_and_a_part_held_out_is_picked_in_its_own_legend(browser, file):
    page, heard = watched(browser, file)
    drawn(page)
    every = {figure: len(shown(page, figure)) for figure in ("frontier", "held-out-forgetting", "held-out-target")}
    assert min(every.values()) > 1
    page.locator("[data-figure=held-out-forgetting] .role-legend-symbol path").first.click(force=True)
    page.wait_for_timeout(200)
    assert len(shown(page, "held-out-forgetting")) == 1
    assert len(shown(page, "held-out-target")) == every["held-out-target"]
    page.locator("[data-figure=frontier] .role-legend-symbol path").first.click(force=True)
    page.wait_for_timeout(200)
    assert len(shown(page, "frontier")) < every["frontier"]
    assert heard == []


def test_tables_sort_by_number_or_name_both_ways_and_by_key(browser, file):
    page, _ = watched(browser, file)
    grid = page.locator("#runs table")
    column = [head.strip() for head in grid.locator("th").all_inner_texts()].index("KL")
    button = grid.locator("th").nth(column).locator("button")
    assert button.get_attribute("aria-label") == "Sort by KL"
    button.focus()
    for key, order in (("Enter", "ascending"), ("Space", "descending")):
        page.keyboard.press(key)
        assert grid.locator("th").nth(column).get_attribute("aria-sort") == order
        values = [float(text.split(" ±")[0]) for text in grid.locator(f"td:nth-child({column + 1})").all_inner_texts()]
        assert values == sorted(values, reverse=order == "descending")
    grid.locator("th button").first.click()
    names = grid.locator("td:first-child").all_inner_texts()
    assert names == sorted(names)


def test_the_rows_inside_the_page_are_the_table(browser, file, table):
    """Saved by a script as plain CSV, without one compressed; either way every number to its last digit."""
    every = table.sort_values(["run", "step", "role", "corpus"]).reset_index(drop=True)
    (link,) = [
        attrs for tag, attrs in Page(file.read_text(encoding="utf-8")).elements if attrs.get("id") == "rows-file"
    ]
    packed = gzip.decompress(base64.b64decode(link["href"].partition(",")[2]))
    assert link["download"] == "rows.csv.gz"
    held = pd.read_csv(io.BytesIO(packed), dtype={"run": str})
    assert held.fillna("").to_dict("records") == every.fillna("").to_dict("records")
    for scripts in (True, False):
        page, heard = watched(browser, file, java_script_enabled=scripts)
        if scripts:
            page.wait_for_selector("#rows-shown")
        with page.expect_download() as saved:
            page.locator("#rows-file").click()
        assert saved.value.suggested_filename == ("rows.csv" if scripts else "rows.csv.gz")
        content = Path(saved.value.path()).read_bytes()
        assert (content if scripts else gzip.decompress(content)) == packed
        assert [what for what in heard if what[0] != "request"] == []


def test_a_runs_name_leads_to_its_rows(browser, file, table):
    page, _ = watched(browser, file)
    page.wait_for_selector("#rows-shown")
    link = page.locator("#runs a[data-run]").nth(3)
    run = link.inner_text()
    link.click()
    assert page.locator("#rows-run").input_value() == run
    of_run = table[table["run"] == run]
    assert page.locator("#rows-table tbody tr").count() == len(of_run)
    heads = [head.strip() for head in page.locator("#rows-table th").all_inner_texts()]
    values = page.locator(f"#rows-table td:nth-child({heads.index('kl_base_tuned') + 1})").all_inner_texts()
    assert sorted(map(float, values)) == sorted(of_run["kl_base_tuned"])


def test_every_link_on_the_page_leads_somewhere_on_it(file):
    elements = Page(file.read_text(encoding="utf-8")).elements
    places = {attrs["id"] for _, attrs in elements if "id" in attrs}
    links = [attrs["href"] for tag, attrs in elements if tag == "a" and attrs.get("id") != "rows-file"]
    assert len(links) > 20
    assert {link.removeprefix("#") for link in links} <= places
    assert {"term-kl", "term-nll", "term-hard", "term-agreement", "term-price", "rows"} <= {link[1:] for link in links}


def test_each_method_has_a_panel_with_its_own_line(file, table):
    page = Page(file.read_text(encoding="utf-8"))
    words = " ".join(page.words.split())
    assert all(panel in words for panel in ("dora: each nat", "lora: each nat"))
    assert "code, lora" not in words  # another text has a page of its own
    assert "Forgetting by text, at the end of each run" in words


def test_the_papers_constants_stand_beside_ours(file, table):
    grids = Page(file.read_text(encoding="utf-8"))
    joint, lines = grids.grid("laws", 2), grids.grid("laws", 3)
    assert [row["Of"][0] for row in joint] == ["this study", "kalajdzievski2024-openorca", "kalajdzievski2024-news"] * 2
    assert lines[1]["Slope"][0] == "1.73"  # equation 4 of the paper, OpenOrca
    assert lines[2]["Intercept"][0] == "3.13"  # News
    assert joint[1]["asymptote"][0] == "0.613"  # s of table 1


def test_the_page_prints_whole(browser, file):
    """To A4: light whatever the screen, every figure, and no control that paper cannot work."""
    page, _ = watched(browser, file, color_scheme="dark")
    drawn(page)
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for hidden in (".isolate", ".sort", "#rows-shown"):
        assert not page.locator(hidden).first.is_visible()
    assert page.locator(".chart svg").count() == Page(file.read_text(encoding="utf-8")).count("figure")
    printed = page.pdf(prefer_css_page_size=True)
    assert printed.startswith(b"%PDF")
    assert len(printed) > 50_000


def test_hostile_text_in_every_field_of_a_drawn_page_does_nothing(browser, tmp_path, table):
    """A hundred and more texts at once, in every column that holds text, in figures, tables, rows and commands."""
    assert len(set(PAYLOADS)) > 100
    payload = " ".join(PAYLOADS).replace("\ud800", "")
    texts = dict.fromkeys(("model", "target", "optimizer", "schedule", "dtype"), payload)
    bad = table.assign(
        **texts,
        run=table["run"] + payload,
        method=table["method"] + payload,
        corpus=table["corpus"] + payload,
        reason=table["reason"].where(table["reason"].isna(), payload),
    )
    fitted = laws.fit(bad, corpus=f"wikipedia{payload}")
    text = reporting.report(
        bad, fitted, planning.plan(fitted, max_forgetting=0.55), title=payload, commands=[payload],
        provenance={payload: [payload]},
        validation=validation.validate(bad, corpus=f"wikipedia{payload}"),
    )  # fmt: skip
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    page, heard = watched(browser, file)
    drawn(page)
    page.wait_for_selector("#rows-shown")
    page.locator("#runs a[data-run]").first.click()
    for figure in ("loss-against-forgetting", "by-text"):
        page.locator(f"[data-figure={figure}] .mark-symbol.role-mark path").first.hover(force=True)
        assert visible(payload)[:40] in page.locator("#vg-tooltip-element").inner_text()
    assert page.evaluate("document.querySelectorAll('script').length") == text.count("<script")
    said = page.locator("#unfinished td.words").first.evaluate("cell => cell.textContent")
    assert said == visible(payload)
    assert violations(page) == []
    assert heard == []


def test_fifty_real_sized_runs_are_a_small_file_whose_first_figure_is_soon_there(browser, tmp_path, record_property):
    large = study(np.random.default_rng(0), ranks=(8, 16, 32, 64, 128), seeds=range(10))
    text = reporting.report(large, laws.fit(large), None, title="Fifty runs", commands=[], provenance={})
    assert large["run"].nunique() == 50
    assert len(text.encode()) <= 2.5e6
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    page, heard = watched(browser, file)
    drawn(page)
    record_property("bytes", len(text.encode()))
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    record_property("first paint, still figures in it, ms", page.evaluate(paint))
    record_property(
        "first figure drawn by script, ms", page.evaluate("performance.getEntriesByName('drawn')[0].startTime")
    )
    assert heard == []
