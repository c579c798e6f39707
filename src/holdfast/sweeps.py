"""A sweep: the runs of a study one after another, each in its own folder, none ever dropped from the record."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from pathlib import Path

import pandas as pd

from holdfast import adapters, archive, checkpoints, files, models
from holdfast.config import RunConfig, Study, read_study
from holdfast.counts import count
from holdfast.errors import DataError, ModelError, StoreError
from holdfast.interrupts import Stop
from holdfast.kernels import fastest_dtype
from holdfast.mirrors import Mirror
from holdfast.models import Tuned
from holdfast.sharding import Shard
from holdfast.store import Recorder, State, owning, read_run, standing, tabulate
from holdfast.training import (
    Event,
    Learning,
    Ledger,
    Texts,
    Workbench,
    learning,
    observed_as,
    prepare,
    provenance,
    read_texts,
    together,
    train,
)
from holdfast.updates import Diverged

log = logging.getLogger(__name__)

CHECKPOINT_EVERY_S = 120.0
"""Most work that is done twice after a crash."""

NOTE_EVERY_S = 2.0
"""How often a run leaves word of how far it is."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """Where a sweep is: `run` number `index` (from 0) of `runs` is in `state`, and `event` is the last thing it did."""

    run: RunConfig
    index: int
    runs: int
    state: State
    reason: str | None
    event: Event | None


def sweep(
    study: str | Path | Study,
    *,
    out: str | Path,
    device: str = "auto",
    retry_failed: bool = False,
    keep_adapters: bool = False,
    pack: int = 1,
    mirror: str | None = None,
    stop: Stop | None = None,
    checkpoint_every_s: float = CHECKPOINT_EVERY_S,
    tell: Callable[[Progress], None] = lambda _: None,
) -> pd.DataFrame:
    """Make every run of a study that is not made yet, and return the table of them all (see `archive.table`).

    Finished runs are read back; unfinished ones go on from their last checkpoint, as if they had never been stopped;
    failed and diverged ones stay as they are, or with `retry_failed` the failed and damaged ones are tried again. A run
    that fails or diverges is recorded with its reason and the sweep goes on. `tell` hears of every step, measurement
    and end of a run.

    Runs in a `runs.parquet` of the folder (see `archive`) count as made: a study begun elsewhere goes on here.

    With `keep_adapters` a run's folder also holds `checkpoint-<step>`, a PEFT folder or a whole model's, for each
    measured step after the first: `measure` and `probe` take such a run for the trajectory it is.

    With `pack` so many runs advance side by side: those that differ in plain LoRA alone (rank, scale, seed, learning
    rate; one shape of batch) make each update in one pass over their batches together, which fills a large GPU that a
    small model alone leaves idle. The numbers are the same but for rounding, in which the others of a pack count.

    Several processes may work on one study. A run that another one owns is left to it, and waited for at the end.

    With `mirror`, the URL of an object store, every run is put there too, after each checkpoint and at its end, and
    begins with what is there where that is further; see `mirrors`.

    Raises:
        ConfigError: the study file is wrong, or PEFT knows no such method or field.
        DataError: a text cannot be used, or is no longer the one that a run was begun with.
        ModelError: the base cannot be used.
        ResourceError: the folder cannot be written, or the disk is full.
        Interrupted: `stop` was asked for; what is needed to go on is on disk.
    """
    if not isinstance(study, Study):
        study = read_study(Path(study))
    adapters.check_methods(study)
    making = Making(
        root=Path(out), device=models.choose_device(device), retry=retry_failed, stop=stop or Stop(),
        keep_adapters=keep_adapters, checkpoint_every_s=checkpoint_every_s, mirror=mirror,
    )  # fmt: skip
    return make_all(study, making, pack=pack, tell=tell)


def make_all(study: Study, making: Making, *, pack: int = 1, tell: Callable[[Progress], None]) -> pd.DataFrame:
    """Make the runs of a study that are not made yet, and wait for those that others make; see `sweep`."""
    configs = resolved(study.runs, making.device)
    for config in configs:
        making.texts_of(config)  # what cannot be read is refused before anything is written
    archive.restore(making.root)
    for config in configs:  # so that whoever looks sees every run there will be
        with owning(config, root=making.root):
            pass
    says = {
        config.name: partial(Progress, run=config, index=index, runs=len(configs))
        for index, config in enumerate(configs)
    }
    others = [config for packed in packs(configs, pack) for config in making.make(packed, says, tell)]
    for config in others:
        log.info("run %s is another process's; waiting for its end", config.name)
        making.make([config], says, tell, wait=True)
    return tabulate(read_run(making.root / config.name) for config in configs)


class Making:
    """The making of runs one after another. A class because the base and texts of one are kept for the next."""

    def __init__(
        self, *, root: Path, device: str, retry: bool, keep_adapters: bool, stop: Stop,
        checkpoint_every_s: float = CHECKPOINT_EVERY_S, shard: Shard | None = None, mirror: str | None = None,
    ) -> None:  # fmt: skip
        self.mirror = None if mirror is None else Mirror(mirror)
        self.root, self.device, self.retry, self.stop, self.every_s = root, device, retry, stop, checkpoint_every_s
        self.keep_adapters, self.shard = keep_adapters, shard
        self._pause = partial(shard.check, stop) if shard else stop.check  # all processes of a base at one point
        self._texts: tuple[object, Texts] | None = None
        self._bench: tuple[object, Workbench] | None = None

    def make(
        self, packed: Sequence[RunConfig], says: Mapping[str, Callable[..., Progress]],
        tell: Callable[[Progress], None], *, wait: bool = False,
    ) -> list[RunConfig]:  # fmt: skip
        """Make runs side by side, each that is to be made; those that another process owns are returned.

        With `wait` they are waited for instead: for one run alone, or two processes may wait for each other.
        """
        visits = [self._visit(config, says[config.name], tell, wait=wait, alone=len(packed) == 1) for config in packed]
        return [config for config, ours in zip(packed, together(visits), strict=True) if not ours]

    def _visit(
        self, config: RunConfig, say: Callable[..., Progress], tell: Callable[[Progress], None], *, wait: bool = False,
        alone: bool = True,
    ) -> Learning[bool]:  # fmt: skip
        """Make a run if it is to be made and nobody else is at it; False if somebody is.

        One that is not `alone` has modules of its own around the base's weights.
        """
        with owning(config, root=self.root, wait=self.stop.check if wait else None) as recorder:
            if recorder is None:
                return False
            if self.mirror:
                self.mirror.pull(recorder.folder)
            texts = self.texts_of(config)
            state, reason = _standing(recorder, texts, retry=self.retry)
            if state == "in progress":
                began = time.monotonic()
                tell(say(state="in progress", reason=None, event=None))
                if self.shard:
                    self.shard.told(config.canonical())
                bench = self._bench_of(config, texts)
                hear = _Notes(recorder, lambda event: tell(say(state="in progress", reason=None, event=event)))
                state, reason = yield from self._make(config, bench, texts, recorder, hear, began, alone=alone)
            if self.mirror:
                self.mirror.push(recorder.folder)
            tell(say(state=state, reason=reason, event=None))
        return True

    def texts_of(self, config: RunConfig) -> Texts:
        """The texts of a run; read once for runs that share them."""
        key = config.target, config.retain, config.measure.documents
        if self._texts is None or self._texts[0] != key:
            self._texts = key, read_texts(config)
        return self._texts[1]

    def _bench_of(self, config: RunConfig, texts: Texts) -> Workbench:
        key = shared_part(config)
        if self._bench is None or self._bench[0] != key:
            self._bench = None  # let the old base go before the next is loaded
            self._bench = key, prepare(config, texts, device=self.device, shard=self.shard)
        return self._bench[1]

    def follow(self) -> None:
        """Where several processes hold a base: make every pass that the first makes of its runs, and write nothing."""
        assert self.shard is not None  # noqa: S101  (who is alone follows nobody)
        while (run := self.shard.told()) is not None:
            config = RunConfig.model_validate_json(run)
            bench = self._bench_of(config, self.texts_of(config))
            with contextlib.suppress(Diverged, ModelError):  # as in the first process, which writes it down
                tuned = adapters.attach_adapter(bench.base, config.adapter, seed=config.seed)
                try:
                    with self.stop.at_checks():
                        ledger = self._following(config, *self.shard.told())
                        train(tuned, config, bench, ledger=ledger)
                finally:
                    adapters.detach_adapter(tuned)

    def _following(self, config: RunConfig, recorded: Sequence[tuple[int, str]], step: int | None) -> Ledger:
        """The first process's ledger for one that writes nothing: what is on record, and where the run goes on from."""
        folder = self.root / config.name / "checkpoint"
        start = None if step is None else checkpoints.newest(folder, at_most=step)
        if start is not None and start.step != step:
            raise StoreError(f"got a checkpoint of step {start.step}, expected that of step {step}, at {folder}")
        places = {(at, corpus) for at, corpus in recorded}
        return Ledger(record=lambda _: None, recorded=places, start=start, pause=self._pause)

    def _make(
        self, config: RunConfig, bench: Workbench, texts: Texts, recorder: Recorder, tell: Callable[[Event], None],
        began: float, *, alone: bool,
    ) -> Learning[tuple[State, str | None]]:  # fmt: skip
        """Make one run in its folder, or the rest of it; returns how it ended and why. `began` with its workbench."""
        base = bench.base if alone else adapters.same_weights(bench.base)
        bench = replace(bench, base=base)
        tuned = None
        try:
            tuned = adapters.attach_adapter(base, config.adapter, seed=config.seed)
            counts, result = count(tuned, base_params=bench.base_params), adapters.result_bytes(tuned)
            origin = provenance(bench, texts) | {"trainable_params": counts.trained, "base_params": counts.frozen}
            needed = checkpoints.most_bytes(counts.trained, result) + files.passing_bytes(recorder.folder, result)
            needed += result * len(config.measured_steps()) * self.keep_adapters
            files.check_room(recorder.folder, needed)
            recorder.begin(origin)
            with self.stop.at_checks():
                ledger = self._ledger(config, bench, recorder, tuned)
                if self.shard:
                    self.shard.told([sorted(ledger.recorded), ledger.start.step if ledger.start else None])
                end = yield from learning(tuned, config, bench, ledger=ledger, tell=tell)
                name = adapters.result_of(tuned)
                saved = adapters.save_adapter(tuned, recorder.folder / name, tokenizer=bench.tokenizer)
                recorder.finish(
                    {
                        name: saved,
                        "finished_at": datetime.now(UTC).isoformat(),
                        "rows_at_once": end.rows,
                        "training_s": end.training_s,
                        "wall_time_s": time.monotonic() - began,
                    }
                )
            return "done", None
        except Diverged as error:
            recorder.fail("diverged", str(error))
            return "diverged", str(error)
        except (ModelError, RuntimeError, MemoryError) as error:  # torch's refusals, out of memory too
            if self.shard and not isinstance(error, ModelError):  # the others may not have had it
                raise
            recorder.fail("failed", f"{type(error).__name__}: {error}")
            return "failed", str(error)
        finally:
            if tuned is not None:
                adapters.detach_adapter(tuned)

    def _ledger(self, config: RunConfig, bench: Workbench, recorder: Recorder, tuned: Tuned) -> Ledger:
        def kept(step: int) -> Path | None:
            return recorder.folder / f"checkpoint-{step}" if self.keep_adapters and step else None

        def measured(step: int) -> None:
            folder = kept(step)
            if folder is not None and not folder.is_dir():
                adapters.save_adapter(tuned, folder, tokenizer=bench.tokenizer)

        def keep(snapshot: checkpoints.Snapshot) -> None:
            checkpoints.save_snapshot(snapshot, recorder.checkpoints)
            if self.mirror:
                self.mirror.push(recorder.folder, must=False)

        wanted = {(step, observed.corpus) for step in config.measured_steps() for _, observed in bench.observed}
        lacking = {step for step, _ in wanted - recorder.recorded}
        lacking |= {step for step, _ in wanted if (folder := kept(step)) is not None and not folder.is_dir()}
        missing = min(lacking, default=config.steps)
        return Ledger(
            record=recorder.append,
            recorded=recorder.recorded,
            start=checkpoints.newest(recorder.checkpoints, at_most=missing),
            keep=keep,
            due=_Clock(self.every_s),
            measured=measured,
            pause=self._pause,
        )


class _Clock:
    """True when so many seconds have passed since it last was, or since it was made. A class because it remembers."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._last = every_s, time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self._last < self._every_s:
            return False
        self._last = time.monotonic()
        return True


class _Notes:
    """Tells on what a run does, and leaves word of it in its folder. A class because it remembers when it last did."""

    def __init__(self, recorder: Recorder, tell: Callable[[Event], None]) -> None:
        self._recorder, self._tell = recorder, tell
        self._due, self._began = _Clock(NOTE_EVERY_S), time.monotonic()
        self._share: float | None = None

    def __call__(self, event: Event) -> None:
        if self._share is None:
            self._share = event.share
        if self._due():
            self._recorder.note(
                {
                    "loss": None if math.isnan(event.loss) else event.loss,
                    "pid": os.getpid(),
                    "seconds": time.monotonic() - self._began,
                    "share": event.share,
                    "share_before": self._share,
                    "step": event.step,
                }
            )
        self._tell(event)


def resolved(configs: Sequence[RunConfig], device: str) -> list[RunConfig]:
    """The runs with `dtype: auto` replaced by what this machine is fastest in, each once: only then have they names."""
    if any(config.dtype == "auto" for config in configs):
        fastest = fastest_dtype(device)  # once, so that a study never mixes precisions by chance
        configs = [c.model_copy(update={"dtype": fastest}) if c.dtype == "auto" else c for c in configs]
    return list({config.name: config for config in configs}.values())


def packs(configs: Sequence[RunConfig], most: int) -> Iterator[list[RunConfig]]:
    """The runs in their order, at most so many at a time, each time of one base, texts and shape of batch."""
    for _, alike in groupby(configs, lambda c: (shared_part(c), c.batch_size, c.gradient_accumulation_steps)):
        members = list(alike)
        yield from (members[start : start + most] for start in range(0, len(members), most))


def shared_part(config: RunConfig) -> tuple[object, ...]:
    """What a workbench is made of; runs that agree on it share one."""
    texts = config.target, config.retain, config.measure.documents, config.context
    return config.model, config.dtype, *texts, observed_as(config)


def _standing(recorder: Recorder, texts: Texts, *, retry: bool) -> tuple[State, str | None]:
    """How a run stands, every record of a finished one checked; with `retry` a failed or damaged one is in progress."""
    folder = recorder.folder
    try:
        state, reason = standing(folder)
        if state == "done":
            read_run(folder)
    except StoreError as error:
        if not retry:
            raise StoreError(f"{error}; --retry-failed makes it again from what is sound") from error
        state, reason = "failed", None
    if state == "failed" and retry:
        recorder.retry()
        state, reason = "in progress", None
    _check_texts(folder, texts, begun=state != "in progress")
    if state == "done":
        recorder.tidy()
    return state, reason


def _check_texts(folder: Path, texts: Texts, *, begun: bool) -> None:
    """A run is made with one set of texts from beginning to end."""
    try:
        path = folder / "provenance.json"
        before = files.read_json(path).get("fingerprints", {}) if path.is_file() else texts.fingerprints
    except StoreError:
        if begun:
            raise
        return  # it is set aside when the run goes on
    changed = [name for name, print_ in texts.fingerprints.items() if before.get(name) != print_]
    if changed:
        raise DataError(
            f"got other texts ({', '.join(changed)}) than run {folder.name} was begun with, expected the same in one "
            f"folder; sweep into another with --output-dir, or restore them, at {folder}"
        )
