"""One run, one loop, read top to bottom.

A run reads its packed batches, takes its steps, and measures at the steps its config names. Measuring changes nothing:
a measured run trains bit for bit like an unmeasured one. Nor does stopping: a run that goes on from a snapshot is bit
for bit the run that was never stopped.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, TypeAlias, TypeVar

import torch

from holdfast import checkpoints, folders, models
from holdfast.basecache import Batch, Kind
from holdfast.checkpoints import Snapshot
from holdfast.config import RunConfig
from holdfast.corpora import Corpus, Tokens, check_apart, packed_batches, read_corpus, split, tokenise
from holdfast.counts import multiplying_params
from holdfast.errors import DataError, Interrupted, ModelError
from holdfast.evidence import CorpusReport
from holdfast.meter import ObservedBase, measure_on, observe_base
from holdfast.methods import Peft, trains_head
from holdfast.models import Base, Tokenizer, Tuned
from holdfast.sharding import Shard
from holdfast.store import QUANTITIES, Measurement, Role
from holdfast.updates import Diverged, Update, Updated, make_optimizer, update

log = logging.getLogger(__name__)

T = TypeVar("T")
Learning: TypeAlias = Generator[Update, tuple[Updated, float], T]
"""A run under way: it asks for an update, and is told what came of it and the seconds it took."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Event:
    """Something a run did: took update `step` with mean batch `loss` (nats per token), or measured a text of `role`.

    `share` of the run's work is done, in tokens passed through the model, training counted twice.
    """

    step: int
    share: float
    loss: float
    role: Role | None
    report: CorpusReport | None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The texts of a run: what is learned, and what is measured (the held-out part of it, and the retained texts)."""

    training: Corpus
    measured: tuple[tuple[Role, Corpus], ...]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hex SHA-256 of each, to know them again."""
        prints = {f"{role}:{corpus.name}": corpus.fingerprint for role, corpus in self.measured}
        return prints | {"training": self.training.fingerprint}


@dataclass(frozen=True, kw_only=True, eq=False)
class Workbench:
    """What the runs of a study share: the base, the tokens to train on, what the base says of the measured texts."""

    base: Base
    training: tuple[Tokens, ...]
    observed: tuple[tuple[Role, ObservedBase], ...]
    weights_fingerprint: str
    base_params: int
    """By which every token is multiplied."""
    tokenizer: Tokenizer
    shard: Shard | None = None
    """Of the base, where several processes hold it together."""


def read_texts(config: RunConfig) -> Texts:
    """Read every text a run needs.

    Raises:
        DataError: one cannot be read, two measured texts have the same name, or a retained one is trained on.
    """
    target = read_corpus(config.target.data)
    training, held_out = split(target, held_out=config.target.held_out)
    measured: list[tuple[Role, Corpus]] = [("target", held_out)]
    measured += [("retain", read_corpus(spec).sample(config.measure.documents)) for spec in config.retain]
    for _, retained in measured[1:]:
        check_apart(retained, target)
    names = [corpus.name for _, corpus in measured]
    if len(set(names)) < len(names):
        raise DataError(f"got texts named {', '.join(names)}, expected each measured text to have a name of its own")
    return Texts(training=training, measured=tuple(measured))


def prepare(config: RunConfig, texts: Texts, *, device: str, shard: Shard | None = None) -> Workbench:
    """Load the base, tokenise the texts, and observe the base on the measured ones.

    As the run will need it: by cached vectors where its output head stays the base's, else by hidden states. Where
    several processes are to hold it, each reads the base in its turn, checks it, and keeps its part on its device.

    Raises:
        ModelError: the base cannot be loaded, or is quantised.
        DataError: a text cannot be used.
    """
    files = folders.read_files(models.locate(config.model), adapter=False)
    if files.path.is_dir() and (how := files.quantised()):
        raise ModelError(f"got a base quantised by {how}, expected one that is not: no study trains on it, at model")
    tokenizer = models.load_tokenizer(config.model)
    training = tuple(tokenise(document, tokenizer) for document in texts.training.documents)
    with shard.turn() if shard else contextlib.nullcontext():
        base = models.load_base(config.model, dtype=config.dtype, device="cpu" if shard else device)
        fingerprint, base_params = models.weights_fingerprint(base), multiplying_params(base)
        if shard:
            shard.divide(base)
    observed = tuple(
        (
            role,
            observe_base(
                base, corpus, role=role, tokenizer=tokenizer, context=config.context, kind=observed_as(config)
            ),
        )
        for role, corpus in texts.measured
    )
    return Workbench(
        base=base,
        training=training,
        observed=observed,
        weights_fingerprint=fingerprint,
        base_params=base_params,
        tokenizer=tokenizer,
        shard=shard,
    )


def observed_as(config: RunConfig) -> Kind:
    """What must be kept of the base to measure a run."""
    return "states" if trains_head(config.adapter) else "vectors"


@dataclass(frozen=True, kw_only=True, eq=False)
class Ledger:
    """Where a run writes down what it must not lose, and what it had written before: `train` knows no disk or clock.

    What `record` and `keep` are given is safe when they return. `pause` raises when the run should stop, and is asked
    after every update and every batch of a measurement.
    """

    record: Callable[[Measurement], None]
    recorded: Set[tuple[int, str]] = frozenset()
    """(step, corpus) of measurements on record, which are not made again."""
    start: Snapshot | None = None
    keep: Callable[[Snapshot], None] = lambda _: None
    due: Callable[[], bool] = lambda: False
    """Whether it is time to `keep` a snapshot."""
    measured: Callable[[int], None] = lambda _: None
    """Is told of each measured step when all its measurements are on record, whether made now or before."""
    pause: Callable[[], None] = lambda: None


def train(
    tuned: Tuned,
    config: RunConfig,
    bench: Workbench,
    *,
    ledger: Ledger | None,
    tell: Callable[[Event], None] = lambda _: None,
) -> Snapshot:
    """Train one fresh model as its config says and measure it along the way; see `learning`."""
    (end,) = together([learning(tuned, config, bench, ledger=ledger, tell=tell)])
    return end


def learning(
    tuned: Tuned,
    config: RunConfig,
    bench: Workbench,
    *,
    ledger: Ledger | None,
    tell: Callable[[Event], None] = lambda _: None,
) -> Learning[Snapshot]:
    """A run as its config says, measured along the way, that asks for its updates; the one loop of the package.

    Returns the run as it is at its end.

    Every run of a study sees the same batches in the same order (they depend on the data and the seed alone), so
    differences between ranks are not differences between batches. With `ledger=None` nothing is measured.

    Step 0 is the control: what was not trained must have forgotten exactly nothing. Of PEFT's other methods some begin
    elsewhere (virtual tokens, or factors that rounding does not undo): then the control is the base without them, and
    what they begin with is on record as measured. Where memory runs out, half as many rows go through the model at once
    from there on; batches and their order stay what they were.

    Raises:
        Diverged: the loss, the gradient or a measured number is NaN or infinite.
        ModelError: the control fails, so no number of this run would mean anything.
        Interrupted: the ledger said so; what is needed to go on was kept.
    """
    optimizer = make_optimizer(config.optimizer, tuned)
    torch.manual_seed(config.seed)  # dropout's
    first, rows, training_s = 0, config.batch_size, 0.0
    if ledger and ledger.start:
        checkpoints.put(ledger.start, tuned, optimizer)
        first, rows, training_s = ledger.start.step, ledger.start.rows, ledger.start.training_s
    accumulated = config.gradient_accumulation_steps
    batches = packed_batches(bench.training, context=config.context, rows=config.batch_size, seed=config.seed)
    batches = islice(batches, first * accumulated, None)  # those of the steps made before
    measured_at = config.measured_steps() if ledger else ()
    work = len(measured_at) * sum(o.tokens for _, o in bench.observed) + 2 * config.steps * config.batch_tokens
    done = sum(at < first for at in measured_at) * sum(o.tokens for _, o in bench.observed)
    done += 2 * first * config.batch_tokens
    tuned.train()
    loss = math.nan
    for step in range(first, config.steps + 1):
        now = checkpoints.take(tuned, optimizer, step=step, rows=rows, training_s=training_s)
        try:
            if ledger:
                for role, observed in bench.observed if step in measured_at else ():
                    done += observed.tokens
                    if (step, observed.corpus) in ledger.recorded:
                        continue
                    report = _measure(tuned, observed, step, pause=ledger.pause)
                    if step == 0:
                        _check_control(report, tuned, observed, base=bench.base, config=config)
                    ledger.record(_measurement(report, role=role, step=step, tokens=step * config.batch_tokens))
                    tell(Event(step=step, share=done / work, loss=loss, role=role, report=report))
                if step in measured_at:
                    ledger.measured(step)
                ledger.pause()
                if step > first and ledger.due():
                    ledger.keep(now)
            if step < config.steps:
                blocks = list(islice(batches, accumulated))
                made, seconds = yield Update(
                    tuned=tuned, optimizer=optimizer, blocks=blocks, config=config, step=step, rows=rows,
                    random=checkpoints.random_state(tuned), shard=bench.shard,
                )  # fmt: skip
                checkpoints.set_random_state(made.random, tuned)
        except Interrupted:
            if ledger:
                ledger.keep(now)
            raise
        if step < config.steps:
            loss, rows = made.loss, made.rows
            training_s += seconds
            done += 2 * config.batch_tokens
            tell(Event(step=step + 1, share=done / work, loss=loss, role=None, report=None))
    return now


def together(runs: Sequence[Learning[T]]) -> list[T]:
    """Advance runs side by side until all have ended, what each asks for made in one `update`; what each returned.

    What one raises the others are told, so that they can keep what they have, and is raised.
    """
    ended: dict[int, T] = {}
    asking: dict[int, Update] = {}

    def advance(number: int, answer: Callable[[], Update]) -> None:
        asking.pop(number, None)
        try:
            asking[number] = answer()
        except StopIteration as end:
            ended[number] = end.value

    try:
        for number, run in enumerate(runs):
            advance(number, partial(next, run))
        while asking:
            began = time.monotonic()
            made: list[Updated | Exception]
            try:
                made = [*update(list(asking.values()))]
            except (RuntimeError, MemoryError) as error:
                made = [error] * len(asking)
            seconds = (time.monotonic() - began) / len(asking)
            raised: list[BaseException] = []
            for number, outcome in zip(list(asking), made, strict=True):
                answered = partial(runs[number].send, (outcome, seconds)) if isinstance(outcome, Updated) else None
                try:  # all are told what they have become before any is told to stop
                    advance(number, answered or partial(runs[number].throw, outcome))
                except BaseException as error:
                    raised.append(error)
            if raised:
                raise raised[0]
    except BaseException as error:
        for number in asking:
            with contextlib.suppress(type(error), StopIteration):
                runs[number].throw(error)
        raise
    return [ended[number] for number in range(len(runs))]


def _measure(tuned: Tuned, observed: ObservedBase, step: int, *, pause: Callable[[], None]) -> CorpusReport:
    try:
        report = measure_on(tuned, replace(observed, batches=_pausing(observed.batches, pause)))
    except ModelError as error:
        raise Diverged(f"step {step}: {error}") from error
    return report


def _check_control(
    report: CorpusReport, tuned: Tuned, observed: ObservedBase, *, base: Base, config: RunConfig
) -> None:
    """That a text at step 0 shows what it must; see `train`."""
    if not _moved(report):
        return
    found = report
    if isinstance(config.adapter, Peft):
        with _without_adapter(tuned, base) as untouched:
            found = measure_on(untouched, observed)
        if not _moved(found):
            log.warning(
                "%s begins %.3g nats from the base on %s, before any training: so much of every number of the run",
                config.adapter.peft_type, report.kl_base_tuned.value, report.corpus,
            )  # fmt: skip
            return
    raise ModelError(
        f"step 0: got forgetting {found.kl_base_tuned.value:.3g} and agreement {found.agreement.value:.6g} "
        f"before any training, expected exactly 0 and 1, on {report.corpus}"
    )


def _moved(report: CorpusReport) -> bool:
    return bool(report.sums["kl_base_tuned"].any() or (report.sums["agreement"] != report.count).any())


def _pausing(batches: Iterable[Batch], pause: Callable[[], None]) -> Iterator[Batch]:
    for batch in batches:
        pause()
        yield batch


def _measurement(report: CorpusReport, *, role: Role, step: int, tokens: int) -> Measurement:
    estimates = {quantity: report.estimate(quantity) for quantity in QUANTITIES}
    return Measurement(
        step=step, tokens=tokens, corpus=report.corpus, role=role, documents=estimates["nll"].n,
        scored_tokens=int(report.count.sum()),
        values={quantity: (estimate.value, estimate.stderr) for quantity, estimate in estimates.items()},
    )  # fmt: skip


@contextlib.contextmanager
def _without_adapter(tuned: Tuned, base: Base) -> Iterator[Base]:
    """The base that an adapter was put on, as it is without it."""
    if isinstance(tuned, models.Adapted) and models.causal(tuned) is base and not models.prompted(tuned):
        with tuned.disable_adapter():
            yield base
    else:
        yield base


def provenance(bench: Workbench, texts: Texts) -> dict[str, Any]:
    """Where numbers come from: versions, machine, fingerprints of weights and texts. Holds no secret and no name."""
    packages = ("holdfast", "torch", "transformers", "peft", "numpy", "tokenizers", "safetensors")
    device = bench.base.device
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type}, {os.cpu_count()} cores"
    return {
        "started_at": datetime.now(UTC).isoformat(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": hardware,
        "threads": torch.get_num_threads(),
        **({"shard": bench.shard.of} if bench.shard else {}),
        "fingerprints": texts.fingerprints | {"weights": bench.weights_fingerprint},
    }
