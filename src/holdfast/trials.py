"""What a sweep will take: a few steps and a short measurement are timed on this machine, and the rest is arithmetic."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from holdfast import adapters, archive, checkpoints, files, models
from holdfast.basecache import Kind
from holdfast.config import RunConfig, Study
from holdfast.corpora import packed_batches
from holdfast.costs import SweepCost
from holdfast.counts import Counts, count
from holdfast.errors import StoreError
from holdfast.meter import batch_plan, measure_on, observe
from holdfast.methods import Adapter, columns
from holdfast.sharding import Shard, told
from holdfast.store import read_run
from holdfast.sweeps import resolved, shared_part
from holdfast.training import Texts, Workbench, observed_as, prepare, read_texts
from holdfast.updates import Update, Updated, make_optimizer, update

TRIED_DOCUMENTS = 2
"""Of each measured text."""

TRIED_S = 4.0
"""Updates are timed until so many seconds have passed, and at least twice."""


@dataclass(frozen=True, kw_only=True)
class _Speed:
    """Of one adapter: seconds an update, and seconds a token measured."""

    params: int
    update_s: float
    measured_s: float


def estimate_cost(
    study: Study, *, out: str | Path, device: str = "auto", retry_failed: bool = False, shard: Shard | None = None
) -> SweepCost:
    """What is left to make of a study will take, by trying the smallest and the largest of each kind of run.

    Time and memory of ranks in between lie on a line between the two. Nothing is written but the folders of archived
    runs. Where several processes are to hold the base, all of them try it, each as its `shard`.

    Raises:
        ConfigError: PEFT knows no such method or field.
        DataError, ModelError: a text or the base cannot be used; better now than after hours.
        ResourceError: a single row does not fit in memory.
    """
    adapters.check_methods(study)
    place = models.choose_device(device)
    configs = resolved(study.runs, place)

    def lacking() -> list[float]:
        archive.restore(Path(out))
        return [_left(config, Path(out), retry=retry_failed) for config in configs]

    left = dict(zip(configs, told(shard, lacking), strict=True))
    to_make = [config for config, share in left.items() if share]
    groups = [_Trial(members, place, shard) for members in _grouped(to_make, shared_part).values()]
    memory = [max(each) for each in zip(*(trial.memory_bytes for trial in groups), strict=True)] or [0]
    seconds = sum(trial.prepare_s for trial in groups)
    seconds += sum(left[config] * trial.run_s(config) for trial in groups for config in trial.members)
    sizes = {config: trial.sizes[config.adapter] for trial in groups for config in trial.members}
    tokens = {config: round(left[config] * config.steps * config.batch_tokens) for config in sizes}
    return SweepCost(
        runs=len(sizes),
        seconds=seconds,
        tokens=sum(tokens.values()),
        flop=sum(many * sizes[config].counts.flop_per_token for config, many in tokens.items()),
        memory_bytes=max(memory),
        device_memory_bytes=memory,
        disk_bytes=sum(size.result_bytes for size in sizes.values())
        + files.passing_bytes(Path(out).absolute(), max((size.result_bytes for size in sizes.values()), default=0))
        + max((checkpoints.most_bytes(size.counts.trained, size.result_bytes) for size in sizes.values()), default=0),
        free_bytes=files.free_bytes(Path(out).absolute()),
    )


@dataclass(frozen=True, kw_only=True)
class _Size:
    """Of what one method trains, and of what it leaves."""

    counts: Counts
    result_bytes: int


class _Trial:
    """Runs that share a base and texts, tried. A class because trying the next adapter needs the base of the last."""

    def __init__(self, members: list[RunConfig], device: str, shard: Shard | None = None) -> None:
        self.members, config = members, members[0]
        texts = read_texts(config)
        few = tuple((role, corpus.sample(TRIED_DOCUMENTS)) for role, corpus in texts.measured)
        began = time.monotonic()
        self._bench = prepare(config, Texts(training=texts.training, measured=few), device=device, shard=shard)
        prepared_s = time.monotonic() - began
        tried = sum(observed.tokens for _, observed in self._bench.observed)
        tokenizer = models.load_tokenizer(config.model)
        plans = [batch_plan(c, tokenizer, context=config.context, part="answer") for _, c in texts.measured]
        self._measured_tokens = sum(block.ids.size for plan in plans for block in plan)
        observed_s = _observed_s(self._bench, observed_as(config)) / tried
        self.prepare_s = prepared_s + observed_s * (self._measured_tokens - tried)
        self.sizes = {adapter: self._size(adapter) for adapter in dict.fromkeys(c.adapter for c in members)}
        self.params = {adapter: size.counts.trained for adapter, size in self.sizes.items()}
        self._speeds = {kind: self._ends(same) for kind, same in _grouped(members, _kind).items()}
        head = models.output_head(self._bench.base)
        each = {"vectors": 4 * head.shape[1] + 32, "states": head.element_size() * head.shape[1]}[observed_as(config)]
        kept = (self._measured_tokens - tried) * each
        peak = _peak_bytes(self._bench) + kept
        self.memory_bytes = [round(each) for each in shard.each(peak)] if shard else [peak]

    def run_s(self, config: RunConfig) -> float:
        """Seconds of one whole run."""
        small, large = self._speeds[_kind(config)]
        span = large.params - small.params
        share = (self.params[config.adapter] - small.params) / span if span else 0.0
        update_s = small.update_s + share * (large.update_s - small.update_s)
        measured_s = small.measured_s + share * (large.measured_s - small.measured_s)
        return config.steps * update_s + len(config.measured_steps()) * self._measured_tokens * measured_s

    def _size(self, adapter: Adapter) -> _Size:
        tuned = adapters.attach_adapter(self._bench.base, adapter, seed=0)
        try:
            counts = count(tuned, base_params=self._bench.base_params)
            return _Size(counts=counts, result_bytes=adapters.result_bytes(tuned))
        finally:
            adapters.detach_adapter(tuned)

    def _ends(self, members: list[RunConfig]) -> tuple[_Speed, _Speed]:
        """The speeds of the smallest and of the largest adapter."""
        by_size = sorted(members, key=lambda config: self.params[config.adapter])
        ends = [self._speed(config) for config in dict.fromkeys((by_size[0], by_size[-1]))]
        return ends[0], ends[-1]

    def _speed(self, config: RunConfig) -> _Speed:
        """Timed at a learning rate that moves next to nothing, so that no trial diverges."""
        still = config.optimizer.model_copy(update={"learning_rate": 1e-12})
        config = config.model_copy(update={"optimizer": still})
        tuned = adapters.attach_adapter(self._bench.base, config.adapter, seed=config.seed)
        try:
            tuned.train()
            optimizer = make_optimizer(config.optimizer, tuned)
            batches = packed_batches(
                self._bench.training, context=config.context, rows=config.batch_size, seed=config.seed
            )
            rows = config.batch_size
            took: list[float] = []
            while told(self._bench.shard, lambda: len(took) < 3 or sum(took[1:]) < TRIED_S):
                began = time.monotonic()
                asked = Update(
                    tuned=tuned, optimizer=optimizer, blocks=[next(batches)], config=config, step=0, rows=rows,
                    shard=self._bench.shard,
                )  # fmt: skip
                (made,) = update([asked])
                if isinstance(made, Updated):
                    rows = made.rows
                took.append(time.monotonic() - began)
            began = time.monotonic()
            for _, observed in self._bench.observed:
                measure_on(tuned, observed)
            measured_s = time.monotonic() - began
        finally:
            adapters.detach_adapter(tuned)
        return _Speed(
            params=self.params[config.adapter],
            update_s=statistics.median(took[1:]) * config.gradient_accumulation_steps,  # the first one warms up
            measured_s=measured_s / sum(observed.tokens for _, observed in self._bench.observed),
        )


def _grouped(configs: Iterable[RunConfig], key: Callable[[RunConfig], object]) -> dict[object, list[RunConfig]]:
    groups: dict[object, list[RunConfig]] = {}
    for config in configs:
        groups.setdefault(key(config), []).append(config)
    return groups


def _left(config: RunConfig, out: Path, *, retry: bool) -> float:
    """The share of a run that is still to be made, by the steps that were measured."""
    try:
        run = read_run(out / config.name)
    except StoreError:
        return 1.0
    if run.state == "in progress" or (retry and run.state == "failed"):
        return 1 - max((one.step for one in run.measurements), default=0) / (config.steps + 1)
    return 0.0


def _kind(config: RunConfig) -> tuple[object, ...]:
    """What makes updates take the same time but for the number of trained parameters."""
    other = {name: value for name, value in columns(config.adapter).items() if name in ("method", "adapter")}
    return config.batch_size, config.gradient_accumulation_steps, config.optimizer.name, *other.values()


def _observed_s(bench: Workbench, kind: Kind) -> float:
    began = time.monotonic()
    for _, observed in bench.observed:
        for _ in observe(bench.base, observed.blocks, kind=kind, corpus=observed.corpus):
            pass
    return time.monotonic() - began


def _peak_bytes(bench: Workbench) -> int:
    if bench.base.device.type == "cuda":
        return torch.cuda.max_memory_allocated(bench.base.device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
