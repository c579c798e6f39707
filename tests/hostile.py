"""How a command line is handed what strangers wrote, and what it must answer; the cases are in `hostile_*`."""

import contextlib
import io
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from holdfast import cli


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a command did: its exit code and all that it printed."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> list[str]:
        """The lines of its refusal, without the name of the error."""
        return self.err.removeprefix(self.err.split(": ", 1)[0] + ": ").splitlines()


def command(*arguments: str | Path, folder: Path) -> Answer:
    """A `holdfast` command in this process, in a folder; what would be a traceback there is an exception here."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    printed = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with _argv("holdfast", *map(str, arguments)), contextlib.chdir(folder), printed[0], printed[1]:
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
    return Answer(code=int(str(code or 0)), out=out.getvalue(), err=err.getvalue())


@contextlib.contextmanager
def _argv(*arguments: str) -> Iterator[None]:
    argv, columns = sys.argv, os.environ.get("COLUMNS", "200")
    sys.argv, os.environ["COLUMNS"] = list(arguments), "500"
    try:
        yield
    finally:
        sys.argv, os.environ["COLUMNS"] = argv, columns


SECTION = "Inputs"


@dataclass(kw_only=True)
class Tally:
    """What a table of cases came to, for docs/reliability.md: mutable, because every case adds to it."""

    lines: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, group: str, answer: Answer, folder: Path, *, line: str | None = None) -> None:
        """Count a case that was answered as it should be, with a line of its refusal, or the last."""
        said = (line or answer.refusal[-1]).replace(f"{folder}/", "").replace("|", "\\|").replace("`", "'")
        self.lines[group].append((answer.code, said if len(said) <= 150 else f"{said[:149]}…"))

    def tell(self, record_property: Callable[[str, object], None]) -> None:
        """A row for each group: how many, and the first of the answers."""
        for group, lines in self.lines.items():
            codes = ", ".join(map(str, sorted({code for code, _ in lines})))
            record_property(SECTION, f"{group} | {len(lines)} | exit code {codes}: `{lines[0][1]}`")


def write_study(folder: Path, *, model: str | Path, target: str, retain: str) -> str:
    """The smallest study, in a folder; returns its name."""
    content = {
        "model": str(model),
        "dtype": "float32",
        "target": {"data": target, "held_out": 2},
        "retain": [retain],
        "adapter": {"r": 2, "lora_alpha": 8},
        "optimizer": {"learning_rate": 1e-3},
        "steps": 1,
        "batch_size": 2,
        "context": 32,
        "measure": {"points": 1, "documents": 4},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return "study.yaml"
