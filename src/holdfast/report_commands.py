"""The commands that write things down: a page, figures and tables for a paper, a model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from holdfast.errors import ConfigError
from holdfast.options import SKIP_FRACTION, Budget, Corpus, Device, Goal, Only, Risk, Runs, Skip, typed


def report(
    runs: Runs,
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-o", help="Default: the folder of runs.")] = None,
    max_forgetting: Budget = None,
    target_loss: Goal = None,
    risk: Risk = 0.1,
    corpus: Corpus = None,
    only: Only = None,
    skip_fraction: Skip = SKIP_FRACTION,
    watch: Annotated[bool, typer.Option("--watch", help="Keep it current until every run has ended.")] = False,
) -> None:
    """Write one self-contained page, `report.html`, and its figures as PNG and SVG.

    Of runs with several targets or retained texts it is an overview, beside a folder with a page for each.

    Example: `holdfast report runs --max-forgetting 0.1`, or while a sweep runs `holdfast report runs --watch`
    """
    from holdfast import overview, publishing, terminal

    def write(reload_s: int | None) -> publishing.Published:
        def page(folder: Path, of: Sequence[str], text: str | None) -> publishing.Published:
            return publishing.publish(
                runs, folder, commands=[typed()], max_forgetting=max_forgetting, target_loss=target_loss, risk=risk,
                corpus=text, only=of, skip_fraction=skip_fraction, reload_s=reload_s,
            )  # fmt: skip

        published = overview.publish_each(
            runs,
            output_dir or runs,
            page,
            only=only,
            corpus=corpus,
            skip_fraction=skip_fraction,
            commands=[typed()],
            reload_s=reload_s,
        )
        if reload_s is not None:
            terminal.show_written([published.page])
        return published

    terminal.show_published(publishing.keep_current(runs, write) if watch else write(None))


def figures(
    runs: Runs,
    output_dir: Annotated[
        Path | None, typer.Option("--output-dir", "-o", help="Default: `figures` in the folder of runs.")
    ] = None,
    format_: Annotated[
        list[str] | None,
        typer.Option("--format", help="pdf, svg, png; repeatable. Default: pdf; fonts are embedded."),
    ] = None,
    style: Annotated[
        Literal["page", "paper"], typer.Option(help="As on the page, or for a column of a paper: 3.25 inches.")
    ] = "paper",
    max_forgetting: Budget = None,
    corpus: Corpus = None,
    only: Only = None,
    skip_fraction: Skip = SKIP_FRACTION,
) -> None:
    """Write every figure of a study for a paper, and its tables as LaTeX and CSV.

    Example: `holdfast figures runs --format pdf --style paper`
    """
    from holdfast import papers, terminal

    written = papers.draw_study(
        runs, output_dir or runs / "figures", formats=format_ or ["pdf"], style=style, max_forgetting=max_forgetting,
        corpus=corpus, only=only, skip_fraction=skip_fraction,
    )  # fmt: skip
    terminal.show_written(written)


def card(
    models: Annotated[
        list[str],
        typer.Argument(metavar="[BASE] TUNED", help="The untuned model, unless the adapter names it; a folder."),
    ],
    text: Annotated[list[str] | None, typer.Option(help="What must not be forgotten; repeatable.")] = None,
    documents: Annotated[int | None, typer.Option(min=2, help="Documents per text; default all.")] = None,
    context: Annotated[int, typer.Option(min=8, help="Tokens in a window.")] = 512,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    device: Device = "auto",
    max_forgetting: Budget = None,
    push: Annotated[
        str | None, typer.Option(help="org/name on the hub, whose card it becomes; without it nothing is sent.")
    ] = None,
) -> None:
    """Measure a fine-tuned model and write what it forgot on its model card, `README.md` in its folder.

    Example: `holdfast card outputs/adapter --text builtin:wikipedia`
    """
    from holdfast import audit, cards, terminal

    base, tuned = audit.base_and_tuned(models)
    with terminal.MeasureProgress() as tell:
        measured = audit.measure(
            base=base, tuned=tuned, texts=text or ["builtin:wikipedia"], context=context, documents=documents,
            dtype=dtype, device=device, tell=tell,
        )  # fmt: skip
    folder = Path(measured.checkpoints[-1].name)
    if not folder.is_dir():
        raise ConfigError(f"got {folder}, expected a folder whose card can be written, at the model to describe")
    cards.write_card(measured, folder / "README.md", commands=[typed()], max_forgetting=max_forgetting)
    terminal.show_measurement(measured, max_forgetting)
    terminal.show_written([folder / "README.md"])
    if push is not None:
        terminal.show_written([cards.push_card(folder / "README.md", push)])
