"""Write docs/reference from the commands' own help and the public names' own docstrings.

    python scripts/reference.py

`tests/test_site.py` fails where the pages are not what this writes.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import typer

import holdfast
from holdfast.cli import app

FOLDER = Path(__file__).parent.parent / "docs" / "reference"


def commands() -> str:
    """Every command: what it does, its arguments and options with their defaults."""
    group: Any = typer.main.get_command(app)
    lines = ["# Commands", "", "Written by `scripts/reference.py` from the help that `--help` shows.", ""]
    for name, command in group.commands.items():
        lines += [f"## holdfast {name}", "", inspect.cleandoc(command.help or ""), ""]
        for parameter in command.params:
            if parameter.name == "help":
                continue
            names = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
            if parameter.param_type_name == "argument":
                names = f"`{parameter.metavar or parameter.name.upper()}`"
            default = parameter.default
            said = "" if default in (None, False, ()) or callable(default) else f" Default: `{default}`."
            lines.append(f"* {names}: {_one_line(getattr(parameter, 'help', '') or '')}{said}")
        lines.append("")
    return "\n".join(lines)


def names() -> str:
    """Every public name: its signature and docstring."""
    lines = ["# Python", "", "Written by `scripts/reference.py` from docstrings. `import holdfast` loads no torch.", ""]
    for name in holdfast.__all__:
        thing = getattr(holdfast, name)
        lines += [f"## holdfast.{name}", "", "```text", _signature(name, thing), "```", "", "```text"]
        lines += [inspect.cleandoc(thing.__doc__ or ""), "```", ""]
        for part, member in vars(thing).items() if inspect.isclass(thing) else ():
            known = isinstance(member, property) or inspect.isfunction(member)
            if known and not part.startswith("_") and member.__doc__:
                lines.append(f"* `{part}`: {_one_line(inspect.cleandoc(member.__doc__).split(chr(10) * 2)[0])}")
        lines.append("")
    return "\n".join(lines)


def _signature(name: str, thing: Any) -> str:
    parameters = inspect.signature(thing).parameters.values()
    written = []
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and "*" not in written:
            written.append("*")
        kind = each.annotation if isinstance(each.annotation, str) else inspect.formatannotation(each.annotation)
        shown = "…" if callable(each.default) else repr(each.default)
        default = "" if each.default is each.empty else f" = {shown}"
        written.append(f"{each.name}: {kind}{default}")
    return f"holdfast.{name}(\n    " + ",\n    ".join(written) + ",\n)"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main() -> None:
    """Write both pages."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "commands.md").write_text(commands(), encoding="utf-8")
    (FOLDER / "python.md").write_text(names(), encoding="utf-8")


if __name__ == "__main__":
    main()
