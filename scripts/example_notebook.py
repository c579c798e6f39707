"""Write docs/example.ipynb, run from top to bottom on a real study's stored rows.

python scripts/example_notebook.py
"""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat

TO = Path(__file__).parent.parent / "docs" / "example.ipynb"

CELLS = [
    "# What does learning cost?\n\nThe rows of a real study (the built-in 135M model learns grade-school maths, "
    "Wikipedia is what it must not forget). `holdfast.table('runs')` gives the same table of your own runs.",
    "import pandas as pd\n\nimport holdfast\n\n"
    'table = pd.read_csv("../studies/gsm8k-seeds/runs.csv", dtype={"run": str})\n'
    'table[["run", "state", "r", "step", "corpus", "nll", "kl_base_tuned"]].dropna().groupby("run").tail(1)',
    "The laws: forgetting from the loss on what is learned, and both from parameters and steps.",
    "laws = holdfast.fit(table)\nlaws",
    'laws.lines["kl_base_tuned"]',
    "How far were they off on what they had not seen?",
    "print(holdfast.validate(table))",
    "How far to go, under a budget of 0.05 nats per token?",
    "plan = holdfast.plan(laws, max_forgetting=0.05)\nplan",
    "Every figure is an Altair chart, and can be restyled as one; here as SVG, to be seen without scripts.",
    'import altair\n\naltair.renderers.enable("svg")\n\n'
    "from holdfast import figures\nfrom holdfast.laws import points\n\n"
    "chart = figures.loss_against_forgetting(points(table, skip_fraction=0), laws)\nchart",
    'chart.properties(width=300, height=200, title="Restyled")',
]


def main() -> None:
    """Write the notebook with what its cells said."""
    new = {True: nbformat.v4.new_code_cell, False: nbformat.v4.new_markdown_cell}
    code = [text.startswith(("import", "laws", "print", "plan", "from", "chart")) for text in CELLS]
    notebook = nbformat.v4.new_notebook(
        cells=[new[is_code](text, id=f"cell-{i}") for i, (text, is_code) in enumerate(zip(CELLS, code, strict=True))]
    )
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(TO.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    nbformat.write(notebook, TO)


if __name__ == "__main__":
    main()
