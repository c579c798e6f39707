"""Several processes on one study: each makes the runs that no other owns, and all write to one folder of runs.

A worker is this module run as a program: it reads its work from standard input as JSON, tells of it on standard error,
and stops as any sweep does. It stops by itself when the process that started it is gone.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import pandas as pd

from holdfast import models, store
from holdfast.config import RunConfig, Study
from holdfast.errors import HoldfastError, Interrupted, ResourceError
from holdfast.interrupts import Stop, stopping
from holdfast.sweeps import Progress, resolved, sweep

LOOK_EVERY_S = 0.2


def sweep_in_processes(
    study: Study,
    *,
    out: Path,
    workers: int,
    device: str = "auto",
    retry_failed: bool = False,
    keep_adapters: bool = False,
    pack: int = 1,
    report_to: Sequence[str] = (),
    stop: Stop | None = None,
    look: Callable[[], None] = lambda: None,
    said: IO[bytes] | None = None,
) -> pd.DataFrame:
    """`sweeps.sweep` by so many processes, and the same table.

    The cores are shared out between them, and the GPUs one to each. On a CPU the numbers are those of a sweep with as
    many threads as a worker has. `look` is called about every fifth of a second; what workers print goes to standard
    error, or to `said`.

    Raises:
        Interrupted: `stop` was asked for; the workers have stopped as well.
        ResourceError: a worker ended by itself and not well; what it printed says why.
        ConfigError, DataError, ModelError: as `sweeps.sweep`.
    """
    place = models.choose_device(device)
    configs = resolved(study.runs, place)
    work = {
        "runs": [config.canonical() for config in configs], "out": str(out.absolute()), "device": device,
        "retry_failed": retry_failed, "keep_adapters": keep_adapters, "pack": pack,
        "report_to": list(report_to), "parent": os.getpid(),
    }  # fmt: skip
    processes = [_started(work, _environment(number, workers, place), said) for number in range(workers)]
    try:
        while any(process.poll() is None for process in processes):
            look()
            time.sleep(LOOK_EVERY_S)
            if stop:
                stop.check()
    except BaseException:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        raise
    if ended := [process.returncode for process in processes if process.returncode]:
        raise ResourceError(f"got {len(ended)} of {workers} workers ended with {ended[0]}, expected 0; see above")
    return store.tabulate(store.read_run(out / config.name) for config in configs)


def _started(work: dict[str, object], environment: dict[str, str], said: IO[bytes] | None) -> subprocess.Popen[bytes]:
    """A worker, out of reach of the terminal's Ctrl-C: the one that started it passes a stop on, once."""
    process = subprocess.Popen(
        [sys.executable, "-m", "holdfast.workers"], stdin=subprocess.PIPE, stderr=said, env=environment,
        start_new_session=True,
    )  # fmt: skip
    if process.stdin is not None:
        process.stdin.write(json.dumps(work).encode())
        process.stdin.close()
    return process


def _environment(number: int, workers: int, device: str) -> dict[str, str]:
    """A worker's share of the machine."""
    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // workers)))
    if device == "cuda":
        import torch

        environment["CUDA_VISIBLE_DEVICES"] = _devices(torch.cuda.device_count())[number % torch.cuda.device_count()]
    return environment


def _devices(count: int) -> Sequence[str]:
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return seen.split(",") if seen else [str(number) for number in range(count)]


class _Orphan(Stop):
    """A stop that is also asked for by the death of the process that started this one."""

    def __init__(self, parent: int) -> None:
        super().__init__()
        self._parent = parent

    def check(self) -> None:
        """Stop here if asked to, or if nobody is there to ask any more."""
        if os.getppid() != self._parent:
            self.asked = self.asked or signal.SIGTERM
        super().check()


def main() -> None:
    """Be a worker."""
    from holdfast.sweep_screens import following
    from holdfast.terminal import show_error

    work = json.load(sys.stdin)
    runs = tuple(RunConfig.model_validate_json(run) for run in work["runs"])
    study = Study(source="a worker's runs", runs=runs, raw={}, places={})
    mine: set[str] = set()

    def tell(at: Progress) -> None:
        """Of the runs that are made here; the others are told of elsewhere."""
        if at.state == "in progress":
            mine.add(at.run.name)
        if at.run.name in mine:
            follow(at)

    try:
        with (
            stopping(_Orphan(work["parent"])) as stop,
            following(work["report_to"], out=Path(work["out"])) as follow,
        ):
            sweep(
                study, out=work["out"], device=work["device"], retry_failed=work["retry_failed"],
                keep_adapters=work["keep_adapters"], pack=work["pack"], stop=stop, tell=tell,
            )  # fmt: skip
    except Interrupted:
        sys.exit(0)  # as asked; the runs say how far they are
    except HoldfastError as error:
        show_error(error)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
