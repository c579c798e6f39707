"""Figures and tables for a paper: a column wide, fonts embedded, every number that of the fits, no LaTeX from names."""

import io
import re
import shutil
import subprocess
import zlib

import numpy as np
import pandas as pd
import pytest

import simulated
from holdfast import papers, study_figures, tables
from holdfast.errors import ConfigError, FitError
from holdfast.stats import rounded
from payloads import PAYLOADS
from test_publishing import made


@pytest.fixture(scope="module")
def rows():
    return simulated.study(np.random.default_rng(0), ranks=(8, 64, 256), seeds=(0, 1))


@pytest.fixture(scope="module")
def found(rows):
    return tables.examine(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("papers")
    for r in (1, 2, 4):
        made(root / "runs", r=r)
    written = papers.draw_study(
        root / "runs", root / "out", formats=("pdf", "svg", "png"), style="paper", max_forgetting=0.1
    )
    assert sorted(path.name for path in written) == sorted(path.name for path in (root / "out").iterdir())
    return root / "out"


def test_every_figure_is_a_column_wide_with_its_fonts_inside(folder):
    drawn = sorted(folder.glob("*.pdf"))
    assert {path.stem for path in drawn} >= {"frontier", "loss-against-forgetting", "trajectories-forgetting"}
    for path in drawn:
        content = path.read_bytes()
        assert [float(n) for n in re.search(rb"/MediaBox ?\[([\d. ]+)\]", content)[1].split()][2] == papers.COLUMN
        fonts, files = re.findall(rb"/BaseFont ?/(\S+)", content), re.findall(rb"/FontFile\d? ", content)
        assert fonts
        assert files
        assert all(re.match(rb"[A-Z]{6}\+", font) for font in fonts)  # a subset, which only an embedded font is
        assert path.with_suffix(".svg").read_text().startswith("<svg")
        assert path.with_suffix(".png").read_bytes()[16:20] == (int(papers.COLUMN * papers.PIXELS)).to_bytes(4, "big")


def test_no_axis_title_is_cut(rows, found):
    """Every title's text is shorter than the side it stands on, by the drawing itself."""
    for name, chart in study_figures.charts(rows, found.laws, None, found.validation).items():
        drawn = papers._drawn(chart, "svg", "paper").decode()
        assert "…" not in drawn, name
        assert "per token" not in drawn, name
        assert "(nats)" in drawn, name


def test_the_tables_hold_what_was_fitted(rows, found):
    made = papers.tables(rows, found)
    assert set(made) == {"runs", "laws", "held-out", "table-1"}
    read = pd.read_csv(io.StringIO(made["laws"].to_csv(index=False)))
    slope = found.laws.lines["kl_base_tuned"].parameters["slope"]
    (row,) = read[
        (read["quantity"] == "kl_base_tuned") & (read["constant"] == "slope") & read["estimator"].str.startswith("ord")
    ].to_dict("records")
    assert (row["value"], row["value_stderr"]) == (slope.value, slope.stderr)
    assert (row["low"], row["high"]) == slope.interval(0.9)
    printed = papers.latex(made["laws"])
    assert rf"${rounded(slope.value, slope.stderr)} \pm {rounded(slope.stderr, slope.stderr)}$" in printed
    last = rows[(rows["role"] == "retain") & (rows["step"] == rows["total_steps"])]
    assert sorted(made["runs"]["kl_base_tuned"]) == sorted(last["kl_base_tuned"])


def test_a_constant_the_data_leave_open_has_no_number(rows, found):
    table = papers.tables(rows, found)["table-1"]
    ours = table[table["of"] == "this study"]
    for name in ("asymptote", "K", "x", "y", "w", "curvature"):
        assert (ours[name].isna() | ours[f"{name}_stderr"].notna()).all()
    theirs = table[(table["of"] == "kalajdzievski2024-openorca") & (table["law"] == "line")].iloc[0]
    assert (theirs["slope"], theirs["intercept"]) == (1.7334, 2.0481)


def test_a_constant_without_an_interval_keeps_its_number():
    """Two runs: leaving one out leaves a joint law open, which says nothing against its constants."""
    few = simulated.study(np.random.default_rng(0), ranks=(8, 64), seeds=(0,))
    made = papers.tables(few, tables.examine(few))["laws"]
    law = made[(made["quantity"] == "target_nll") & (made["constant"] == "asymptote")].iloc[0]
    assert np.isfinite(law["value"])
    assert np.isnan(law["value_stderr"])


ACTS = r"\input{/etc/passwd} \immediate\write18{x} $x$ % & # _ ~ ^ { } \begin{a}"


@pytest.mark.parametrize("payload", [*PAYLOADS, ACTS])
def test_no_name_is_latex(payload):
    made = papers.latex(pd.DataFrame({"run": [payload.replace("\ud800", "")], "kl": [0.1], "kl_stderr": [0.01]}))
    line = made.splitlines()[3 + 1]
    cell = line.split(" & $")[0]
    for known in papers.LATEX.values():
        cell = cell.replace(known, "")
    assert not set(cell) & set(r"\&%$#_{}~^")
    assert line.endswith(r"& $0.100 \pm 0.010$ \\")
    assert len(made.splitlines()) == 7


def test_runs_without_a_law_are_refused(tmp_path):
    made(tmp_path / "runs", r=1, end="diverged")
    with pytest.raises(FitError, match="got no finished run"):
        papers.draw_study(tmp_path / "runs", tmp_path, formats=("pdf",), style="paper")


def test_another_format_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="got format 'eps', expected one of pdf, svg, png"):
        papers.draw_study(tmp_path, tmp_path, formats=("eps",), style="paper")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX on this machine")
def test_latex_reads_the_tables(folder, tmp_path):
    body = "".join(path.read_text() + "\n\n" for path in sorted(folder.glob("*.tex")))
    (tmp_path / "a.tex").write_text(
        r"\documentclass{article}\usepackage{booktabs}\usepackage[T1]{fontenc}\begin{document}"
        + body
        + r"\end{document}"
    )
    subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"], cwd=tmp_path, check=True)


def test_a_drawing_is_the_same_twice(rows, found):
    chart = study_figures.charts(rows, found.laws, None, None)["loss-against-forgetting"]
    assert papers._drawn(chart, "svg", "paper") == papers._drawn(chart, "svg", "paper")
    assert zlib.crc32(papers._drawn(chart, "png", "page")) == zlib.crc32(papers._drawn(chart, "png", "page"))


def test_powers_of_ten_are_not_variables():
    made = papers.latex(pd.DataFrame({"rate": [5e-5, 0.25], "price": [3.1e-7, 1.5], "price_stderr": [1e-8, 0.1]}))
    assert r"$5 \times 10^{-5}$" in made
    assert r"\times 10^{-7} \pm" in made
    assert "$0.25$" in made
    assert not re.search(r"\de[-+]", made)
