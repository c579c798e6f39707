"""What a person sees: times as they are said, and text from elsewhere that cannot act."""

import io

import pytest
from rich.console import Console

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
