"""Figures and tables for a paper: at the width of a column with fonts embedded, and as LaTeX and CSV."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import vl_convert

from holdfast import figures, files
from holdfast.afterwards import read_afterwards
from holdfast.archive import table as stored
from holdfast.comparison import beside_the_paper, frame, identified
from holdfast.display import visible
from holdfast.errors import ConfigError
from holdfast.figures import UNIT
from holdfast.laws import SKIP_FRACTION, Laws, points
from holdfast.planning import plan
from holdfast.stats import rounded
from holdfast.study_figures import charts, last_measured
from holdfast.tables import Examined, examine

FORMATS = ("pdf", "svg", "png")

Style = Literal["page", "paper"]

COLUMN = 234
"""Points, 3.25 inches: a column of the two-column styles of ICML, ACL and IEEE, to within 0.1 inch."""

HEIGHT = 160
FONT = "Liberation Sans, Helvetica, Arial, sans-serif"
TEXT = 8
"""Points, of every letter: a caption is 9 or 10."""

PIXELS = 4.0
"""Of a PNG, per point: 288 a inch."""

LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "²": r"$^2$",
}  # fmt: skip
"""What LaTeX would act on, as it prints it."""

RUNS = (
    "run", "method", "r", "trainable_params", "learning_rate", "seed", "step", "corpus", "kl_base_tuned",
    "hard_cross_entropy", "agreement", "documents", "scored_tokens",
)  # fmt: skip
"""Columns of the table of runs; a quantity's standard error follows it."""


def draw_study(
    runs: Path,
    output_dir: Path,
    *,
    formats: Sequence[str],
    style: Style,
    max_forgetting: float | None = None,
    corpus: str | None = None,
    only: Sequence[str] | None = None,
    skip_fraction: float = SKIP_FRACTION,
) -> tuple[Path, ...]:
    """Every figure of a folder of runs in each format, and its tables as CSV and LaTeX; the files written.

    In the style "paper" a figure is as wide as a column (`COLUMN`), in letters of 8 points, without its title, which is
    for the caption. With `max_forgetting` the frontier of choices is among them.

    Raises:
        ConfigError: a format that is not one of `FORMATS`.
        StoreError: no runs there, or a damaged one.
        FitError: too few finished runs for a law.
        ResourceError: the files cannot be written.
    """
    for kind in formats:
        if kind not in FORMATS:
            raise ConfigError(f"got format {kind!r}, expected one of {', '.join(FORMATS)}, at the figures")
    rows = stored(runs, only=only)
    probed = read_afterwards(runs, set(rows["run"])).probed
    found = examine(rows, corpus=corpus, skip_fraction=skip_fraction)
    planned = None if max_forgetting is None else plan(found.laws, max_forgetting=max_forgetting)
    written = {
        f"{name}.{kind}": _drawn(chart, kind, style)
        for name, chart in charts(rows, found.laws, planned, found.validation, probed).items()
        for kind in formats
    }
    for name, made in tables(rows, found).items():
        written[f"{name}.csv"] = made.to_csv(index=False, lineterminator="\n").encode()
        written[f"{name}.tex"] = latex(made).encode()
    with files.refusing(output_dir):
        files.make_folder(output_dir)
        for name, content in written.items():
            files.write(output_dir / name, content)
    return tuple(output_dir / name for name in written)


def paper(chart: figures.Chart) -> dict[str, Any]:
    """A chart's specification for a paper: as wide as a column with all that belongs to it, small letters, no title."""
    spec = {key: part for key, part in figures.specification(chart).items() if key != "title"}
    config = dict(spec["config"])
    text = {"labelFontSize": TEXT, "titleFontSize": TEXT, "labelColor": "black", "titleColor": "black"}
    config |= {
        "font": FONT,
        "autosize": {"type": "fit", "contains": "padding"},
        "axis": config["axis"] | text | {"gridWidth": 0.4, "titlePadding": 4, "labelPadding": 3, "tickCount": 5},
        "legend": config["legend"] | text | {"symbolSize": 24, "offset": 3, "columnPadding": 6},
    }
    layers = [_short(layer | {"mark": _small(layer["mark"])}) for layer in spec["layer"]]
    return spec | {"layer": layers, "config": config, "width": COLUMN, "height": HEIGHT, "padding": 1}


def tables(rows: pd.DataFrame, found: Examined) -> dict[str, pd.DataFrame]:
    """The tables of a study by name: its runs, the constants of its laws, what was held out, and the paper's Table 1.

    `rows` is the table of `archive.table`. A standard error stands in a column of its own, `…_stderr`.
    """
    last = last_measured(rows).sort_values(["r", "learning_rate", "seed", "run", "corpus"])
    kept = [name for wanted in RUNS for name in (wanted, f"{wanted}_stderr") if name in last.columns]
    held = found.validation.to_frame()
    made = {
        "runs": last[kept].map(visible),
        "laws": _constants(found.laws),
        "held-out": held.drop(columns=[name for name in ("warnings", "level") if name in held.columns]),
    }
    used = points(rows, corpus=found.laws.corpus, skip_fraction=found.laws.skip_fraction)
    compared = beside_the_paper(used, found.laws, found.forms)
    return made if compared is None else made | {"table-1": frame(compared)}


def latex(made: pd.DataFrame) -> str:
    """A table for `booktabs`: each value with its standard error, every text as it reads, whatever it says."""
    shown = [name for name in made.columns if not name.endswith("_stderr")]
    numbers = [name for name in shown if pd.api.types.is_numeric_dtype(made[name])]
    lines = [
        r"\begin{tabular}{" + "".join("r" if name in numbers else "l" for name in shown) + "}",
        r"\toprule",
        " & ".join(map(escaped, shown)) + r" \\",
        r"\midrule",
        *(
            " & ".join(_cell(row, name, name in numbers) for name in shown) + r" \\"
            for row in made.to_dict("records")
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(LATEX.get(c, c) for c in str(visible(text)).replace("\n", " "))


def _drawn(chart: figures.Chart, kind: str, style: Style) -> bytes:
    spec = json.dumps(paper(chart) if style == "paper" else figures.specification(chart))
    version = figures.vega_lite_version()
    if kind == "svg":
        return str(vl_convert.vegalite_to_svg(spec, vl_version=version)).encode()
    if kind == "png":
        return bytes(vl_convert.vegalite_to_png(spec, vl_version=version, scale=PIXELS, ppi=72))
    return bytes(vl_convert.vegalite_to_pdf(spec, vl_version=version))


def _small(mark: Mapping[str, Any]) -> dict[str, Any]:
    """A mark of a page as small as a column needs it."""
    shrunk = {"size": 0.3, "strokeWidth": 0.6, "fontSize": TEXT / 12}
    return {name: value * shrunk[name] if name in shrunk else value for name, value in mark.items()}


def _short(part: Any) -> Any:
    """The same with axis titles as short as a column is wide; the unit's "per token" goes to the caption."""
    if isinstance(part, dict):
        return {key: _short(item) for key, item in part.items()}
    if isinstance(part, list):
        return [_short(item) for item in part]
    return part.replace("KL(base || tuned) ", "KL ").replace(f"({UNIT})", "(nats)") if isinstance(part, str) else part


def _constants(laws: Laws) -> pd.DataFrame:
    """Every constant of every law, a row each."""
    fits = [*laws.lines.values(), *laws.orthogonal.values(), *laws.joint.values()]
    return pd.DataFrame(
        {
            "quantity": fit.quantity, "law": fit.law, "estimator": fit.estimator, "constant": name,
            "value": identified(fit, name), "value_stderr": estimate.stderr, "low": estimate.interval(0.9)[0],
            "high": estimate.interval(0.9)[1], "r2": fit.r2, "runs": fit.n_runs, "points": fit.n_points,
        }
        for fit in fits
        for name, estimate in fit.parameters.items()
    )  # fmt: skip


def _cell(row: Mapping[Any, Any], name: str, number: bool) -> str:
    value, error = row[name], row.get(f"{name}_stderr", math.nan)
    if not number:
        return escaped(value)
    if math.isnan(value):
        return "--"
    if math.isfinite(error) and error > 0:
        return _powers(rf"${rounded(value, error)} \pm {rounded(error, error)}$")
    return f"${value:,.0f}$" if float(value).is_integer() else _powers(f"${value:.3g}$")


def _powers(said: str) -> str:
    """With powers of ten as LaTeX sets them: an e would be a variable."""
    return re.sub(
        r"([\d.]+)e([-+])0*(\d+)", lambda found: rf"{found[1]} \times 10^{{{found[2].strip('+')}{found[3]}}}", said
    )
