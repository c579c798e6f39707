"""What a person sees: times as they are said, and text from elsewhere that cannot act."""

import io

import pytest
from rich.console import Console

import measured
from holdfast import terminal
from holdfast.errors import DataError


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (89, "89 s"), (100, "2 min"), (3600, "60 min"), (12_000, "3 h 20 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert terminal.duration(seconds) == said


@pytest.mark.parametrize(
    "hostile", ["[bold red]x[/]", "\x1b[2J\x1b[31mred", "a\rb", "\u202eabc", "[link=http://x]y[/link]", "[/]"]
)
def test_text_from_elsewhere_is_shown_and_never_acts(hostile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "err", lambda: Console(file=shown, force_terminal=True, color_system=None, width=200))
    terminal.show_error(DataError(f"got {hostile}"))
    terminal.show_warnings([hostile])
    text = shown.getvalue()
    assert not set(text) & {"\x1b", "\r", "\u202e"}
    assert text.count(str(terminal.visible(hostile))) == 2


REPORTS = {
    "5 tuned models against builtin:smollm2": measured.trajectory(names=("wikipedia", "gsm8k prompts")),
    "wikipedia against builtin:smollm2": measured.report(
        *(measured.checkpoint(measured.corpus(), name=f"outputs/checkpoint-{i}", step=i) for i in (1, 2))
    ),
    "4f1c/adapter against builtin:smollm2": measured.report(measured.checkpoint(measured.corpus())),
    "2 tuned models against builtin:smollm2": measured.report(
        *(measured.checkpoint(name=name, failure="no weights") for name in ("a/b", "c/d"))
    ),
}


@pytest.mark.parametrize("title", REPORTS)
def test_a_measurements_table_fits_eighty_columns(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, report = io.StringIO(), REPORTS[title]
    for stream in ("out", "err"):
        monkeypatch.setattr(terminal, stream, lambda: Console(file=shown, color_system=None, width=80))
    terminal.show_measurement(report, 0.5)
    lines = [line.rstrip() for line in shown.getvalue().splitlines()]
    assert lines[0] == title
    rows = [line for line in lines if line.endswith("within budget")]
    assert len(rows) == len(list(report.rows()))
    assert all(" ± " in row and " to " in row and len(row) <= 80 for row in rows)  # no cell was wrapped
