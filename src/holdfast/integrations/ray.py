"""A study's runs placed on a Ray cluster: an existing one, or one of this machine behind a token on loopback.

Ray places and nothing else: what a worker is given and says is JSON, what it makes goes into the run folders, and they
alone say what is made. A worker that dies, or whose node does, loses what it was at; the next one goes on from the
run's checkpoint. Where the driver dies Ray ends its workers, and the same command goes on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from holdfast import archive, store
from holdfast.config import RunConfig, Study
from holdfast.costs import SweepCost
from holdfast.errors import ConfigError, ResourceError, first_line
from holdfast.interrupts import EXIT_CODES, Stop
from holdfast.methods import Peft
from holdfast.mirrors import Mirror
from holdfast.remote import Worker, content
from holdfast.sharing import marked

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.2
STOP_WITHIN_S = 120.0
"""How long workers that were asked to stop have to write their checkpoints."""

LIVES = 3
"""So many workers may die at one run without getting it any further."""

_OURS = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # for Ray a cluster is what other machines reach; else it is on loopback
    "RAY_USAGE_STATS_ENABLED": "0",
}
_LOGS = {"RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one worker has of a cluster."""

    cores: int
    gpus: int
    device: str


def sweep_on_ray(
    study: Study,
    *,
    out: Path,
    address: str | None = None,
    workers: int | None = None,
    device: str = "auto",
    retry_failed: bool = False,
    keep_adapters: bool = False,
    pack: int = 1,
    mirror: str | None = None,
    report_to: Sequence[str] = (),
    checkpoint_every_s: float | None = None,
    stop: Stop | None = None,
    look: Callable[[], None] = lambda: None,
    foresee: Callable[[SweepCost], None] | None = None,
    aloud: bool = True,
) -> pd.DataFrame:
    """`sweeps.sweep` by workers on a Ray cluster, and the same table; `out` must be on a file system all nodes share.

    With a `mirror` nodes share that alone: each worker makes runs in a temporary folder of its own, and `out` is here.

    Without an `address` a cluster of this machine is started, which listens on loopback alone and asks for a token, and
    ends with the sweep; inside `connected` it is that one. Without `workers` there are as many as the cluster has GPUs,
    or cores; a GPU is for one worker, and the cores are shared out between them. With `foresee`, which may refuse, what
    the sweep will take is tried on one of them first. `look` is called about every fifth of a second; `aloud` what
    workers say is said here.

    Raises:
        Interrupted: `stop` was asked for; the workers have stopped as well.
        ResourceError: no cluster, a node that does not share the folder, or a run at which workers die again and again.
        ConfigError, DataError, ModelError: as `sweeps.sweep`.
    """
    check_installed()
    if any(isinstance(run.adapter, Peft) for run in study.runs):
        from holdfast.adapters import check_methods

        check_methods(study)
    stop = stop or Stop()
    root = out.absolute()
    work = {
        "root": str(root), "device": device, "retry": retry_failed, "keep_adapters": keep_adapters,
        "report_to": list(report_to), "every_s": checkpoint_every_s, "cwd": str(Path.cwd()),
        "version": importlib.metadata.version("holdfast"), "runs": len(study.runs), "pack": pack, "mirror": mirror,
    }  # fmt: skip
    with connected(address, aloud=aloud) as nodes, marked(root) as mark:
        many, place = shares(nodes(), workers=workers, most=-(-len(study.runs) // pack), device=device)
        kept = None if mirror is None else Mirror(mirror)

        def bring(runs: Sequence[RunConfig], *, both_ways: bool = False) -> None:
            for config in runs:  # a folder for each, so that whoever looks sees every run there will be
                with store.owning(config, root=root) as recorder:
                    if kept and recorder:
                        kept.pull(recorder.folder)
                        if both_ways:
                            kept.push(recorder.folder)

        def lacking(runs: Sequence[RunConfig]) -> list[RunConfig]:
            return [run for run in runs if not (root / run.name / "done.json").is_file()]

        crew = _Crew(work | {"device": place.device}, place, mark, look=look, stop=stop)
        try:
            with stop.at_checks():
                packed = crew.resolve(study.runs)
                configs = [config for runs in packed for config in runs]
                if foresee is not None:  # a worker does not see what is whole in a folder that it does not share
                    foresee(crew.estimate(lacking(configs) if kept else configs))
                archive.restore(root)
                bring(configs, both_ways=True)
                packed = [lacking(runs) for runs in packed] if kept else packed
                crew.make([runs for runs in packed if runs], many, ended=bring)
        except BaseException:
            crew.stop()
            raise
    return store.tabulate(store.read_run(root / config.name) for config in configs)


def check_installed() -> None:
    """Refuse where Ray is not there.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("got ray, which is not installed: pip install 'holdfast[ray]', at --executor")


def shares(nodes: Sequence[Mapping[str, float]], *, workers: int | None, most: int, device: str) -> tuple[int, Place]:
    """How many workers there will be on nodes with such resources, and what each has; `most` can be of use.

    Raises:
        ConfigError: one GPU is named: which one a worker has is Ray's to say.
    """
    if device.startswith("cuda:"):
        raise ConfigError(f"got device {device}, expected auto, cpu or cuda: Ray says which GPU, at --device")
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    if device == "cuda" or (device == "auto" and gpus):
        return min(workers or max(1, gpus), most), Place(cores=1, gpus=1, device="cuda")
    cores = [int(node.get("CPU", 0)) for node in nodes]
    many = min(workers or max(1, sum(cores)), most)
    each = [size for size in range(1, max(cores, default=1) + 1) if sum(core // size for core in cores) >= many]
    return many, Place(cores=max(each, default=1), gpus=0, device="cpu" if device == "auto" else device)


@contextmanager
def connected(address: str | None, *, aloud: bool) -> Iterator[Callable[[], list[Mapping[str, float]]]]:
    """A cluster for as long as this lasts; gives what looks up the resources of its living nodes.

    Where this process has one already it is that one, and goes on afterwards.

    Raises:
        ConfigError, ResourceError: as `sweep_on_ray`.
    """
    check_installed()
    _check_there(address)
    if _is_connected():
        yield _living
        return
    ours = _LOGS if address else _LOGS | _OURS | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    before = {name: os.environ.get(name) for name in ours}
    handlers = {number: signal.getsignal(number) for number in EXIT_CODES}
    os.environ.update(ours)
    try:
        import ray

        how = {"log_to_driver": aloud, "logging_level": logging.WARNING}
        if address is None:
            ray.init(address="local", include_dashboard=False, object_store_memory=100 << 20, **how)
        else:
            ray.init(address=address, **how)
    except (OSError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"got no Ray cluster ({first_line(error)}), expected one, at {address or 'this machine'}"
        ) from error
    finally:
        for number, handler in handlers.items():  # Ray put its own in place of ours
            signal.signal(number, handler)
    try:
        if address is None and ray.util.get_node_ip_address() != "127.0.0.1":
            raise ResourceError(
                f"got a cluster on {ray.util.get_node_ip_address()}, expected it on loopback alone, at this machine"
            )
        yield _living
    finally:
        if aloud:
            time.sleep(1)  # until Ray has told what its workers said last
        ray.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _is_connected() -> bool:
    """Ray is not imported for it: what it reads of the environment then is still to be set."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


def _living() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _check_there(address: str | None) -> None:
    """Refuse an address at which nobody answers, which Ray would look for for minutes, and one that is not a node's."""
    if "://" in (address or ""):
        raise ConfigError(f"got {address}, expected HOST:PORT or auto, on a node of the cluster, at --address")
    host, colon, port = (address or "").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise ResourceError(f"got no Ray cluster ({error}), expected one, at {address}") from error


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Runs for one worker: together, or one that is waited for. `lost` workers died at it since it stood like this."""

    runs: tuple[RunConfig, ...]
    wait: bool = False
    lost: int = 0
    stood: object = None


class _Crew:
    """Workers on a cluster and what each is at. A class because they come and go."""

    def __init__(
        self, work: Mapping[str, Any], place: Place, mark: str, *, look: Callable[[], None], stop: Stop
    ) -> None:
        self._work, self._place, self._mark, self._look, self._stop = work, place, mark, look, stop
        self._coming: dict[Any, Any] = {}  # by what they will answer
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, _Task]] = {}
        self._stillborn, self._said_waiting, self._since = 0, False, time.monotonic()

    def resolve(self, runs: Sequence[RunConfig]) -> list[list[RunConfig]]:
        """Runs with their precision chosen by a machine that will make them, in packs."""
        said = self._ask("resolve", [config.canonical() for config in runs])
        return [[RunConfig.model_validate_json(one) for one in packed] for packed in said]

    def estimate(self, runs: Sequence[RunConfig]) -> SweepCost:
        """What runs will take, tried by one worker."""
        return SweepCost(**self._ask("estimate", [config.canonical() for config in runs]))

    def make(
        self, packed: Sequence[Sequence[RunConfig]], many: int, *, ended: Callable[[Sequence[RunConfig]], None]
    ) -> None:
        """Have runs made by so many workers, whoever dies; `ended` hears which have been."""
        names = [config.name for runs in packed for config in runs]
        waiting = deque(_Task(runs=tuple(runs)) for runs in packed)
        given_up: list[_Task] = []
        while waiting or self._busy:
            self._hire(min(many, len(waiting) + len(self._busy)))
            while waiting and self._idle:
                self._give(self._idle.pop(), waiting.popleft(), names)
            for task, said in self._heard():
                if said is None:
                    again = self._after_a_death(task)
                    waiting.appendleft(again) if again.lost < LIVES else given_up.append(again)
                    continue
                ended([config for config in task.runs if config.name not in said])
                for name in said:
                    log.info("run %s is another process's; waiting for its end", name)
                waiting.extend(_Task(runs=(c,), wait=True) for c in task.runs if c.name in said)
        if given_up:
            runs = ", ".join(config.name for task in given_up for config in task.runs)
            raise ResourceError(
                f"got {LIVES} workers dead one after another at the same place of {runs}, expected one to live; too "
                "little memory, perhaps"
            )

    def stop(self) -> None:
        """Have every worker stop at the next update, its checkpoint written; those that do not in time are left."""
        import ray

        for worker, _ in self._busy.values():
            worker.stop.remote()
        until = time.monotonic() + STOP_WITHIN_S
        left = list(self._busy)
        while left and time.monotonic() < until:
            _, left = ray.wait(left, timeout=1)

    def _ask(self, what: str, runs: list[str]) -> Any:
        """One worker's answer, another's where it dies."""
        died = 0
        while died < LIVES:
            self._hire(1)
            if not self._idle:
                list(self._heard())
                continue
            worker = self._idle.pop()
            self._busy[getattr(worker, what).remote(json.dumps(runs))] = worker, _Task(runs=())
            while self._busy:
                for _, said in self._heard():
                    if said is not None:
                        return said
            died += 1
        raise ResourceError(f"got {LIVES} workers dead while they tried the runs, expected one to live; see above")

    def _hire(self, many: int) -> None:
        import ray

        while len(self._coming) + len(self._idle) + len(self._busy) < many:
            kind = ray.remote(Worker).options(
                num_cpus=self._place.cores, num_gpus=self._place.gpus, max_concurrency=2, max_restarts=0
            )
            worker = kind.remote(json.dumps(self._work))
            self._coming[worker.begin.remote(self._mark)] = worker

    def _give(self, worker: Any, task: _Task, names: Sequence[str]) -> None:
        runs = [(names.index(config.name), config.canonical()) for config in task.runs]
        self._busy[worker.make.remote(json.dumps({"runs": runs, "wait": task.wait}))] = worker, task

    def _heard(self) -> Iterator[tuple[_Task, Any]]:
        """What workers have answered by now; None of one that is dead."""
        import ray

        answered, _ = ray.wait([*self._coming, *self._busy], timeout=LOOK_EVERY_S)
        self._look()
        self._stop.check()
        self._say_if_there_is_no_room()
        for answer in answered:
            coming = answer in self._coming
            worker, task = (self._coming.pop(answer), None) if coming else self._busy.pop(answer)
            try:
                said = content(ray.get(answer))
            except ray.exceptions.RayTaskError:  # ours to mend
                raise
            except ray.exceptions.RayError as error:
                ray.kill(worker)
                self._mourn(task, error)
                if task is not None:
                    yield task, None
                continue
            self._idle.append(worker)
            if task is not None:
                yield task, said
            else:
                self._stillborn = 0
                log.info("a worker on %s, process %d", said["host"], said["pid"])

    def _mourn(self, task: _Task | None, error: Exception) -> None:
        if task is not None:
            runs = ", ".join(config.name for config in task.runs) or "its estimate"
            log.warning("a worker died at %s, which goes on elsewhere: %s", runs, first_line(error))
            return
        self._stillborn += 1
        if self._stillborn >= LIVES:
            raise ResourceError(
                f"got {LIVES} workers dead before they began, expected Holdfast installed on every node: "
                f"{first_line(error)}"
            ) from error

    def _after_a_death(self, task: _Task) -> _Task:
        root, mirror = Path(self._work["root"]), self._work["mirror"]
        stood = [Mirror(mirror).stands(one.name) if mirror else _stands(root / one.name) for one in task.runs]
        return replace(task, stood=stood, lost=task.lost + 1 if stood == task.stood else 1)

    def _say_if_there_is_no_room(self) -> None:
        if self._idle or self._busy or not self._coming:
            self._since, self._said_waiting = time.monotonic(), False
        elif not self._said_waiting and time.monotonic() - self._since > 60:
            self._said_waiting = True
            log.warning(
                "waiting for the cluster to have room for a worker of %d cores and %d GPUs", self._place.cores,
                self._place.gpus,
            )  # fmt: skip


def _stands(folder: Path) -> tuple[int, tuple[str, ...]]:
    """How far a run folder is: the size of its records, and its checkpoints."""
    records = folder / "records.jsonl"
    kept = sorted(path.name for path in (folder / "checkpoint").glob("step-*"))
    return (records.stat().st_size if records.is_file() else 0), tuple(kept)
