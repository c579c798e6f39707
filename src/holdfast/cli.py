"""The command line: one short function a subcommand, no logic; everything heavy is imported inside them."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from holdfast import files, law_commands, report_commands
from holdfast.display import visible
from holdfast.errors import HoldfastError, as_refusal
from holdfast.interrupts import stopping
from holdfast.options import Budget, Device, Json, Retry, Runs, print_json, typed

if TYPE_CHECKING:
    from holdfast.behaviour import ProbeReport
    from holdfast.config import Study

app = typer.Typer(
    help="Measure, predict and control what a language model forgets when it is fine-tuned.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


@app.command()
def demo(
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Where the runs and the page go.")] = Path(
        "demo"
    ),
    max_forgetting: Budget = 0.05,
    device: Device = "auto",
) -> None:
    """Fine-tune a small real model, measure, fit, plan and report: no account, no hub.

    Ten minutes on two cores, twenty where they have no native bf16.

    Example: `holdfast demo --max-forgetting 0.05`
    """
    from holdfast import sweep_screens, terminal
    from holdfast.publishing import publish

    study = Path(__file__).parent / "data" / "demo" / "study.yaml"
    table = sweep_screens.sweep_with_progress(study, output_dir=output_dir / "runs", device=device)
    published = publish(output_dir / "runs", output_dir, commands=[typed()], max_forgetting=max_forgetting)
    terminal.show_published(published)
    if not (table["state"] == "done").all():
        raise typer.Exit(4)


@app.command()
def sweep(
    study: Annotated[Path, typer.Argument(help="Study file; `holdfast schema` describes it to editors.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "-o", help="Folder of run folders.")] = Path("runs"),
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value; repeatable.")] = None,
    device: Device = "auto",
    retry_failed: Retry = False,
    keep_adapters: Annotated[
        bool, typer.Option("--keep-adapters", help="Of each measured step, to probe later.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes side by side: one a core, or a GPU. Default: 1; on a cluster, its room."),
    ] = None,
    pack: Annotated[int, typer.Option(min=1, help="LoRA runs that share each pass, to fill a GPU.")] = 1,
    shard: Annotated[
        int, typer.Option(min=1, help="Devices, a process each, that hold one base together, for one too large.")
    ] = 1,
    executor: Annotated[
        Literal["processes", "ray"], typer.Option(help="Where workers are: on this machine, or on a Ray cluster.")
    ] = "processes",
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="With --executor ray: HOST:PORT, auto; default one of this machine."),
    ] = None,
    mirror: Annotated[
        str | None, typer.Option(help="URL of an object store that keeps the runs too, as s3://bucket/study.")
    ] = None,
    report_to: Annotated[
        list[str] | None, typer.Option(help="wandb, trackio, tensorboard, mlflow; repeatable, or with commas.")
    ] = None,
    until_interval: Annotated[
        float | None,
        typer.Option(
            help="Then go on with runs of its own choice, until the plan's interval is so wide, nats per token."
        ),
    ] = None,
    budget_hours: Annotated[
        float | None, typer.Option(help="With --until-interval: most hours of running, the study's own runs included.")
    ] = None,
    max_forgetting: Annotated[
        float, typer.Option(help="With --until-interval: of the plan, the most forgetting to accept, nats per token.")
    ] = 0.05,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try a few steps, say what it will take, stop.")] = False,
    as_json: Json = False,
) -> None:
    """Make the runs of a study: fine-tune each and measure its forgetting along the way. Finished runs are kept.

    Ctrl-C or a kill loses nothing: the same command goes on, bit for bit. Several processes may work on one folder.

    Example: `holdfast sweep study.yaml --output-dir runs --set steps=128 --set grid.adapter.r=[8,32]`; or
    `holdfast sweep study.yaml --until-interval 0.02 --budget-hours 3`
    """
    from holdfast import sweep_screens
    from holdfast.config import read_study

    read = read_study(study, overrides=overrides or [])
    sweep_screens.check_place(executor, output_dir, alone=dry_run or shard > 1)
    goal = sweep_screens.goal(until_interval, budget_hours, max_forgetting, at_once=(workers or 1) * pack)
    options: dict[str, Any] = {"output_dir": output_dir, "device": device, "retry_failed": retry_failed}
    if mirror is not None:
        sweep_screens.fetched(mirror, output_dir, to_write=True)
    sweep_screens.check_shard(read, shard=shard, device=device, workers=workers or 1, pack=pack)
    if dry_run:
        foreseen = sweep_screens.foreseen(read, goal=goal, shard=shard, **options)
        if as_json:
            print_json(foreseen)
        return
    options |= {"keep_adapters": keep_adapters, "pack": pack, "mirror": mirror}
    options["report_to"] = [name.strip() for part in report_to or [] for name in part.split(",")]
    if executor == "ray" and goal is not None:
        options |= {"address": address, "workers": workers}
        table, ended = sweep_screens.sweep_until_on_cluster(read, goal=goal, **options)
    elif executor == "ray":
        table = sweep_screens.sweep_on_cluster(read, address=address, workers=workers, **options)
    elif goal is None:
        table = sweep_screens.sweep_with_progress(read, workers=workers or 1, shard=shard, **options)
    else:
        table, ended = sweep_screens.sweep_until(read, goal=goal, workers=workers or 1, shard=shard, **options)
    if as_json:
        rows = json.loads(table.to_json(orient="records", double_precision=15))
        print_json(rows if goal is None else {"pursuit": ended.to_dict(), "table": rows})
    if not (table["state"] == "done").all():
        raise typer.Exit(4)


@app.command()
def fetch(
    url: Annotated[str, typer.Argument(help="What a sweep was told as --mirror.")],
    runs: Annotated[Path, typer.Argument(help="Folder to bring them into.")] = Path("runs"),
) -> None:
    """Bring the runs that an object store keeps into a folder, where they are further than what is there.

    Example: `holdfast fetch s3://bucket/study runs`
    """
    from holdfast import sweep_screens

    sweep_screens.fetched(url, runs, to_write=False)


@app.command()
def reproduce(
    paper: Annotated[str, typer.Argument(help="Whose study: kalajdzievski2024.")],
    output_dir: Annotated[Path | None, typer.Option("--output-dir", "-o", help="Default: the paper's name.")] = None,
    openorca: Annotated[
        str, typer.Option(help="Instruction data; `none` leaves it out.")
    ] = "Open-Orca/OpenOrca@train[:20000]",
    news: Annotated[
        str | None, typer.Option(help="Articles newer than the model; the paper's were not released.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value of its study file; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each probe; default the paper's.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes side by side: one a core, or a GPU.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Try a few steps, say what it will take, stop.")] = False,
    device: Device = "auto",
) -> None:
    """Make a paper's study again, from its settings to its page: runs, laws, answers and refusals along training.

    Example: `holdfast reproduce kalajdzievski2024 --news articles.jsonl`
    """
    from holdfast import probing, reproducing, sweep_screens, terminal

    asked = {"openorca": None if openorca == "none" else openorca, "news": news}
    data = {name: spec for name, spec in asked.items() if spec is not None}
    out, made = output_dir or Path(paper), reproducing.studies(paper, data=data, overrides=overrides or [])
    if dry_run:
        for name, study in made.items():
            sweep_screens.estimated(study, output_dir=out / name / "runs", device=device, retry_failed=False)
        return

    def probe(base: str, runs: Path, task: str, limit: int | None) -> ProbeReport:
        with terminal.MeasureProgress() as tell:
            return probing.probe(base=base, tuned=str(runs), tasks=[task], limit=limit, device=device, tell=tell)

    whole = True

    def sweep(study: Study, runs: Path) -> None:
        nonlocal whole
        table = sweep_screens.sweep_with_progress(
            study, output_dir=runs, device=device, keep_adapters=True, workers=workers
        )
        whole &= bool((table["state"] == "done").all())

    for published in reproducing.reproduce(
        made, out, sweep=sweep, probe=probe, limit=limit, commands=[typed()]
    ).values():
        terminal.show_published(published)
    if not whole:
        raise typer.Exit(4)


@app.command()
def status(
    runs: Runs,
    watch: Annotated[bool, typer.Option("--watch", help="Keep it current until every run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """How every run stands: done, running, stopped, waiting, or why it failed; how far it is, and what is left.

    Example: `holdfast status runs --watch`
    """
    from holdfast import progress, status_screens

    if watch and not as_json:
        status_screens.watch_status(runs)
        return
    found = progress.status(runs)
    if as_json:
        print_json({"runs": [run.to_dict() for run in found], "seconds_left": progress.seconds_left(found)})
    else:
        status_screens.show_status(found)


for command in (law_commands.fit, law_commands.plan, law_commands.forecast):
    app.command()(command)
app.command("next")(law_commands.next_)


for writing in (report_commands.report, report_commands.figures, report_commands.card):
    app.command()(writing)


@app.command()
def measure(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[BASE] TUNED...",
            help="The untuned model, unless the adapters name it; then adapters, models or a folder of checkpoint-*.",
        ),
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="What must not be forgotten; repeatable. `self`: sampled from the base.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="The fine-tuning data, to measure on its prompts too.")] = None,
    quantised: Annotated[
        str | None,
        typer.Option("--quantised", "--quantized", help="What the tuned models stand on: 4bit, 8bit, a model."),
    ] = None,
    context: Annotated[int, typer.Option(min=8, help="Tokens in a window.")] = 512,
    documents: Annotated[int | None, typer.Option(min=2, help="Documents per text; default all.")] = None,
    precision: Annotated[
        float | None, typer.Option(help="Read each text only until the 95 % interval is ± this, nats per token.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32 (exact to 0.00001 nats).")] = "auto",
    device: Device = "auto",
    max_forgetting: Budget = None,
    html: Annotated[Path | None, typer.Option(help="Write a page.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write the sums per document.")] = None,
    model_card: Annotated[Path | None, typer.Option(help="Write it on a model card.")] = None,
    as_json: Json = False,
) -> None:
    """What fine-tuned models forgot of their base, where, and how sure that is. Exit code 10 over the budget.

    Example: `holdfast measure builtin:smollm2 demo/runs/RUN/adapter --text builtin:wikipedia --max-forgetting 0.1`
    """
    from holdfast import audit, publishing, terminal

    base, tuned = audit.base_and_tuned(models)
    with terminal.MeasureProgress() as tell:
        report = audit.measure(
            base=base, tuned=tuned, texts=text or ["builtin:wikipedia"], task=task, quantised=quantised,
            context=context, documents=documents, precision=precision, dtype=dtype, device=device, tell=tell,
        )  # fmt: skip
    kept = publishing.publish_measurement(
        report, html=html, parquet=parquet, model_card=model_card, max_forgetting=max_forgetting, commands=[typed()]
    )
    verdict = {"verdict": report.verdict(max_forgetting), "max_forgetting": max_forgetting}
    if as_json:
        print_json(report.to_dict() | verdict)
    else:
        terminal.show_measurement(report, max_forgetting)
        terminal.show_kept(kept)
    if verdict["verdict"] == "over budget":
        raise typer.Exit(10)
    if any(checkpoint.failure for checkpoint in report.checkpoints):
        raise typer.Exit(4)


@app.command()
def probe(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="[BASE] TUNED...",
            help="The untuned model, unless adapters name it; then adapters, models, folders of checkpoint-* or runs.",
        ),
    ],
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="arc_challenge, arc_easy, advbench, xstest, refusal_logodds, side_by_side, lm_eval:NAME, a file of "
            "items, org/name; repeatable. Default: arc_challenge."
        ),
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="How choices are scored: character, token, total, letter; repeatable. Default: character."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items per task; default all.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer to a prompt.")] = 128,
    judge: Annotated[str | None, typer.Option(help="A model to judge answers, in place of the built-in judge.")] = None,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16 or float32.")] = "auto",
    device: Device = "auto",
    html: Annotated[Path | None, typer.Option(help="Write a page.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write every item.")] = None,
    as_json: Json = False,
) -> None:
    """What fine-tuned models answer where their base answered something else, right or wrong.

    Of runs that were swept with --keep-adapters it also says what 0.1 nat of forgetting goes with.

    Example: `holdfast probe builtin:smollm2 demo/runs/RUN/adapter --task arc_challenge --limit 200`
    """
    from holdfast import audit, exchange, probe_screens, probing, publishing, terminal

    base, tuned = audit.base_and_tuned(models)
    with terminal.MeasureProgress() as tell:
        report = probing.probe(
            base=base, tuned=tuned, tasks=task or ["arc_challenge"], protocols=protocol or ["character"], limit=limit,
            max_new_tokens=max_new_tokens, judge=judge, dtype=dtype, device=device, tell=tell,
        )  # fmt: skip
    kept = publishing.publish_probe(report, html=html, parquet=parquet, commands=[typed()])
    if as_json:
        print_json(report.to_dict() | {"exchange": [one.to_dict() for one in exchange.exchanges(report)]})
    else:
        probe_screens.show_probe(report)
        terminal.show_kept(kept)
    if any(model.failure for model in report.models):
        raise typer.Exit(4)


@app.command()
def schema(output: Annotated[Path | None, typer.Argument(help="File to write; default: stdout.")] = None) -> None:
    """Write the JSON schema of a study file, so that editors complete and check it.

    Example: `holdfast schema study.schema.json`, then `# yaml-language-server: $schema=study.schema.json` in the study.
    """
    from holdfast.schemas import study_schema

    text = json.dumps(study_schema(), indent=2) + "\n"
    if output is None:
        print(text, end="")
        return
    with files.refusing(output):
        files.make_folder(output.parent)
        files.write(output, text.encode())


class _Visible(logging.Formatter):
    """What is logged, ours or a library's, may quote a stranger. A class because logging asks for one."""

    def format(self, record: logging.LogRecord) -> str:
        return str(visible(super().format(record)))


def main() -> None:
    """Run the command line; every refusal of ours is one message on stderr and its own exit code, never a traceback."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Visible("%(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("holdfast").setLevel(logging.INFO)
    try:
        with stopping():
            app()
    except HoldfastError as error:
        _stop(error)
    except (OSError, MemoryError, RuntimeError) as error:
        refusal = as_refusal(error)
        if refusal is None:
            raise
        _stop(refusal)


def _stop(error: HoldfastError) -> NoReturn:
    from holdfast import terminal

    terminal.show_error(error)
    sys.exit(error.exit_code)
