"""Runs the tests that harm things on purpose and writes what came of it into docs/reliability.md.

    python scripts/reliability.py [pytest's options]

A test says what it did by `record_property(SECTION, "what was done | how often | what came of it")`; a section of the
page is the table of its rows, and holds only what was just found. HOLDFAST_KILLS sets how many processes are killed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
TESTS = (
    "test_crash_points", "test_kills", "test_full_disk", "test_interrupts", "test_checkpoints", "test_store",
    "test_hostile_studies", "test_hostile_texts", "test_hostile_models", "test_canaries", "test_secrets",
    "test_hostile_terminal", "test_ray",
)  # fmt: skip
"""Where faults are injected."""


def found(options: list[str]) -> dict[str, list[str]]:
    """Every row the tests recorded, by section."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        tests = [f"tests/{name}.py" for name in TESTS]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *tests, f"--junitxml={report}", "-ojunit_family=xunit1", *options],
            cwd=ROOT,
            check=True,
        )
        rows: dict[str, list[str]] = {}
        for said in ET.parse(report).iter("property"):  # noqa: S314  (pytest's own)
            section, row = said.get("name", ""), said.get("value", "")
            if row not in rows.setdefault(section, []):
                rows[section].append(row)
    return rows


def main() -> None:
    """Replace what stands between each section's marks."""
    recorded = found(sys.argv[1:])
    page = PAGE.read_text(encoding="utf-8")
    for section, rows in recorded.items():
        begin, end = f"<!-- {section} -->\n", f"<!-- end of {section} -->"
        before, rest = page.split(begin)
        table = ["| done | how often | what came of it |", "|---|---|---|", *(f"| {row} |" for row in rows)]
        page = before + begin + "\n" + "\n".join(table) + "\n\n" + end + rest.split(end)[1]
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
