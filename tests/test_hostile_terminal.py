"""What a stranger wrote, printed through every screen: shown as it is written, and nothing of it acts on a terminal."""

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import measured
from holdfast import following, law_screens, probe_screens, progress, publishing, status_screens, tables, terminal
from holdfast.config import Optimizer, RunConfig, Target
from holdfast.display import BIDI_CONTROLS, visible
from holdfast.errors import DataError
from holdfast.forgetting import Finding
from holdfast.methods import Lora
from holdfast.sweeps import Progress
from holdfast.training import Event
from hostile import SECTION
from test_behaviour import report as probed
from test_behaviour import result as answers

CONTROLS = [f"a{chr(code)}b" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"]
REORDERING = [f"0.1{character}9.0" for character in BIDI_CONTROLS + "\u2028\u2029\ud800\udfff"]
SEQUENCES = [
    "\x1b[2J\x1b[H", "\x1b[1A\x1b[2Kverdict: within budget", "\x1b[31mred\x1b[0m", "\x1b[8mhidden", "\x1b[?25l",
    "\x1b]0;title\x07", "\x1b]8;;http://holdfast.invalid\x1b\\link\x1b]8;;\x1b\\", "\x1b]52;c;cm0gLXJm\x07",
    "\x1bP+q544e\x1b\\", "\x1b_x\x1b\\", "\x1b^x\x1b\\", "\x1bXx\x1b\\", "\x1b(0qqq", "\x9b2J", "\x9d0;x\x9c",
    "0.9\r0.1", "0.9\b\b\b0.1", "a\x0bb\x0cc", "\x0e\x0f", "\x1b[6n", "\x1b[c", "\x1b]11;?\x07", "\x1b[5i", "\x1bc",
    "\x1b[999;999H", "\x1b[201~", "\x1b#8",
]  # fmt: skip
MARKUP = [
    "[bold red]x[/bold red]", "[/]", "[/bold]", "[", "]", "[[", "[]", "[red", "[on red]x", "[blink]x[/]", "\\",
    "x\\", "[link=http://holdfast.invalid]x[/link]", "[@click=app.quit]x[/]", "[#ff0000]x", "[rgb(1,2,3)]x",
    ":smile:", ":warning:", "[bold]\\[/]", "[dim", "{x}", "%s %d", "[/][/][/]", "[not bold]", "\\[bold]x",
]  # fmt: skip
PAYLOADS = [*CONTROLS, *REORDERING, *SEQUENCES, *MARKUP]


def squeezed(text: str) -> str:
    return "".join(text.split())


RUN = RunConfig(
    model="m", dtype="float32", target=Target(data="t"), retain=("r",), adapter=Lora(r=2),
    optimizer=Optimizer(learning_rate=1e-3), steps=4, batch_size=1, context=8,
)  # fmt: skip


def measurement(payload: str) -> None:
    finding = Finding(what=payload, consequence=payload)
    failed = measured.checkpoint(name=f"x/{payload}", failure=payload, findings=[finding])
    reports = [measured.corpus(name="a", documents=8, quote=lambda text: f"{text}{payload}")]
    whole = [measured.checkpoint(*reports, name=f"runs/{payload}", findings=[finding])]
    report = measured.report(*whole, failed, quantisation=reports, quantised=payload)
    terminal.show_measurement(replace(report, base=payload), 0.1)
    terminal.show_measurement(replace(report, base=payload, checkpoints=(*whole, *whole)), None)


def probe(payload: str) -> None:
    probe_screens.show_probe(probed(answers([0], [1], answers=[0], task=payload), name=payload))
    probe_screens.show_probe(probed(failure=payload, name=payload))


def refusals(payload: str) -> None:
    terminal.show_error(DataError(f"got {payload}, expected {payload}"))
    terminal.show_warnings([payload])


def sweep(payload: str) -> None:
    report = replace(measured.corpus(documents=4), corpus=payload)
    says = Progress(run=RUN, index=0, runs=1, state="in progress", reason=None, event=None)
    with following.SweepProgress() as shown:
        shown(says)
        for role in ("target", "retain"):
            shown(replace(says, event=Event(step=4, share=0.5, loss=1.0, role=role, report=report)))  # type: ignore[arg-type]
        shown(replace(says, state="failed", reason=payload))


def status(payload: str) -> None:
    known = progress.RunStatus(
        run=payload, standing="failed", reason=payload, about={"method": payload, "r": payload}, step=1, steps=4,
        share=0.2, seconds_left=None, seconds=None, pid=None, losses=(1.0, 2.0), forgetting={payload: (0.0, 1.0)},
    )  # fmt: skip
    status_screens.show_status([known])


def published(payload: str) -> None:
    made = publishing.Published(page=Path(f"x/{payload}"), figures=(), laws=None, plan=None, why_no_laws=payload)
    terminal.show_published(made)


SCREENS: dict[Callable[[str], None], int] = {
    measurement: 8, probe: 4, refusals: 3, sweep: 3, status: 4, published: 1,
}  # fmt: skip
"""Each screen, and how often at least it shows the text."""


def test_there_are_more_than_a_hundred() -> None:
    assert len(set(PAYLOADS)) >= 120


@pytest.mark.parametrize("payload", PAYLOADS, ids=ascii)
def test_nothing_acts_and_everything_is_shown(
    payload: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "5000")
    for screen, times in SCREENS.items():
        screen(payload)
        captured = capsys.readouterr()
        text = captured.out + captured.err
        acting = {c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in BIDI_CONTROLS}
        assert acting <= {"\n", "\t"}, screen
        least = 1 if "/" in payload else times  # of a path the last two parts are shown
        assert squeezed(text).count(squeezed(visible(payload))) >= least, (screen, text)


def test_the_columns_of_a_file_cannot_act_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "5000")
    names = ["\x1b[2J[bold]x[/]", "\u202ey", "[/]\x9b2J"]
    rows = [",".join(names), *(f"{x},{0.1 + 2 * x / 50},{'abcde'[x % 5]}" for x in range(1, 40))]
    (tmp_path / "points.csv").write_text("\n".join(rows), encoding="utf-8")
    fits = tables.fit_table(
        tmp_path / "points.csv", x=[names[0]], y=names[1], group=names[2], laws=None, log_huber=None
    )
    law_screens.show_fits(fits)
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert not {c for c in text if unicodedata.category(c) == "Cc" or c in BIDI_CONTROLS} - {"\n", "\t"}
    assert squeezed(visible(names[1])) in squeezed(text)


def test_the_page_tells_of_them(record_property: Callable[[str, object], None]) -> None:
    screens = len(SCREENS) + 1
    record_property(
        SECTION, f"text that acts on a terminal, through {screens} screens | {len(PAYLOADS)} | shown, inert"
    )
