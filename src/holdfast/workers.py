"""Several processes on one study: each makes the runs that no other owns, or all make one run after another together.

A worker is this module run as a program: it reads its work from standard input as JSON, tells of it on standard error,
and stops as any sweep does. It stops by itself when the process that started it is gone. Workers that hold a base
together (`sharding`) end together: where one dies, none of the others can go on.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

import pandas as pd

from holdfast import adapters, files, models, sharding, store
from holdfast.config import RunConfig, Study
from holdfast.costs import SweepCost
from holdfast.errors import HoldfastError, Interrupted, ResourceError, first_line, out_of_memory
from holdfast.interrupts import Stop, stopping
from holdfast.remote import answer, content
from holdfast.sweeps import Making, Progress, make_all, resolved, sweep
from holdfast.trials import estimate_cost

LOOK_EVERY_S = 0.2
LAST_WORDS_S = 60.0
"""What processes that hold a base together have to end in, once one of them has ended."""
PROGRAM = ("-m", "holdfast.workers")


def sweep_in_processes(
    study: Study,
    *,
    out: Path,
    workers: int = 1,
    shard: int = 1,
    device: str = "auto",
    retry_failed: bool = False,
    keep_adapters: bool = False,
    pack: int = 1,
    mirror: str | None = None,
    report_to: Sequence[str] = (),
    stop: Stop | None = None,
    look: Callable[[], None] = lambda: None,
    said: IO[bytes] | None = None,
) -> pd.DataFrame:
    """`sweeps.sweep` by so many processes, and the same table.

    The cores are shared out between them, and the GPUs one to each. On a CPU the numbers are those of a sweep with as
    many threads as a worker has. `look` is called about every fifth of a second; what workers print goes to standard
    error, or to `said`.

    With `shard` there is one worker of so many processes: they hold the base together, a part each, and make one run
    after another, each its share of every batch's rows. The numbers are those of one process but for rounding, and bit
    for bit the same for one number of processes; a run may go on with another.

    Raises:
        Interrupted: `stop` was asked for; the workers have stopped as well.
        ResourceError: a worker ended by itself and not well; what it printed says why. Of `shard`, the one that did.
        ConfigError, DataError, ModelError: as `sweeps.sweep`; `shard` with `pack` or `workers`, or with what it cannot
            divide, see `sharding.check`.
    """
    place = models.choose_device(device)
    configs = resolved(study.runs, place)
    work = _work(configs, out, device, retry_failed) | {
        "keep_adapters": keep_adapters, "pack": pack, "mirror": mirror, "report_to": list(report_to), "task": "sweep",
    }  # fmt: skip
    if shard > 1:
        adapters.check_methods(study)
        sharding.check(study, shard=shard, device=place, workers=workers, pack=pack)
        _made_together(work, shard, place, stop=stop, look=look, said=said)
        return store.tabulate(store.read_run(out / config.name) for config in configs)
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


def estimate_in_processes(
    study: Study, *, out: Path, shard: int, device: str = "auto", retry_failed: bool = False
) -> SweepCost:
    """`trials.estimate_cost` of processes that hold the base together: the memory of each is what it took.

    Raises:
        ResourceError: one of them died, or a single row does not fit in its memory.
        ConfigError, DataError, ModelError: as `sweep_in_processes`.
    """
    place = models.choose_device(device)
    adapters.check_methods(study)
    sharding.check(study, shard=shard, device=place)
    work = _work(resolved(study.runs, place), out, device, retry_failed) | {"task": "estimate"}
    return SweepCost(**_made_together(work, shard, place))


def _work(configs: Sequence[RunConfig], out: Path, device: str, retry_failed: bool) -> dict[str, object]:
    return {
        "runs": [config.canonical() for config in configs], "out": str(out.absolute()), "device": device,
        "retry_failed": retry_failed, "parent": os.getpid(), "shard": None,
    }  # fmt: skip


def _made_together(
    work: dict[str, object], shard: int, place: str, *, stop: Stop | None = None,
    look: Callable[[], None] = lambda: None, said: IO[bytes] | None = None,
) -> Any:  # fmt: skip
    """What the first of so many processes that hold a base together answers, or what ended them."""
    with tempfile.TemporaryDirectory(prefix="holdfast-") as folder:
        meeting = Path(folder)
        processes = [
            _started(
                work | {"shard": {"number": number, "of": shard, "meeting": folder}},
                _environment(number, shard, place), said,
            )
            for number in range(shard)
        ]  # fmt: skip
        ended: list[int] = []
        try:
            while not any(ended) and len(ended) < shard:
                look()
                time.sleep(LOOK_EVERY_S)
                if stop:
                    stop.check()
                ended = [process.returncode for process in processes if process.poll() is not None]
        except BaseException:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            raise
        finally:
            dead = [n for n, process in enumerate(processes) if process.poll() and not _said(meeting, n).is_file()]
            _let_end(processes)
        if dead:
            raise ResourceError(
                f"got process {dead[0] + 1} of {shard} ended by {_cause(processes[dead[0]])}, expected it to live as "
                "long as the others, which ended with it; the same command goes on from the last checkpoint"
            )
        answers = [path for n in range(shard) if (path := _said(meeting, n)).is_file()]
        refused = [path for path in answers if processes[int(path.stem)].returncode]
        first = min(refused or [_said(meeting, 0)], key=lambda path: path.stat().st_mtime_ns)
        return content(first.read_text())


def _let_end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """See that all end: they do when one has, unless they wait for it in a library that notices nothing."""
    while all(process.poll() is None for process in processes):
        time.sleep(LOOK_EVERY_S)
    deadline = time.monotonic() + LAST_WORDS_S
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _said(meeting: Path, number: int) -> Path:
    return meeting / f"{number}.json"


def _cause(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}, see above"
    return f"{how} (pid {process.pid})"


def _started(work: dict[str, object], environment: dict[str, str], said: IO[bytes] | None) -> subprocess.Popen[bytes]:
    """A worker, out of reach of the terminal's Ctrl-C: the one that started it passes a stop on, once."""
    process = subprocess.Popen(
        [sys.executable, *PROGRAM], stdin=subprocess.PIPE, stderr=said, env=environment,
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


def _study(work: dict[str, Any]) -> Study:
    runs = tuple(RunConfig.model_validate_json(run) for run in work["runs"])
    return Study(source="a worker's runs", runs=runs, raw={}, places={})


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
    from holdfast.following import following
    from holdfast.terminal import show_error

    work = json.load(sys.stdin)
    if work["shard"] is not None:
        _be_part(work)
    study = _study(work)
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
                keep_adapters=work["keep_adapters"], pack=work["pack"], mirror=work["mirror"], stop=stop, tell=tell,
            )  # fmt: skip
    except Interrupted:
        sys.exit(0)  # as asked; the runs say how far they are
    except HoldfastError as error:
        show_error(error)
        sys.exit(error.exit_code)


def _be_part(work: dict[str, Any]) -> NoReturn:
    """Be one of the processes that hold a base together; what comes of it, or is refused, is left where they meet."""
    number, of, meeting = work["shard"]["number"], work["shard"]["of"], Path(work["shard"]["meeting"])
    if number:
        logging.disable(logging.WARNING)  # the first says the same

    def made() -> Any:
        try:
            return _part(work, number=number, of=of, meeting=meeting)
        except (RuntimeError, MemoryError) as error:
            got, expected = f"got {first_line(error)}", "a pass like the others'"
            if out_of_memory(error):
                got, expected = "got out of memory", "enough for its share; fewer rows, batch_size, take less"
            raise ResourceError(f"{got}, expected {expected}, in process {number + 1} of {of}") from error

    said = answer(made)
    files.write(_said(meeting, number), said.encode())
    sys.exit("refused" in json.loads(said))


def _part(work: dict[str, Any], *, number: int, of: int, meeting: Path) -> Any:
    from holdfast.following import following

    study, out, device = _study(work), Path(work["out"]), models.choose_device(work["device"])
    with (
        stopping(_Orphan(work["parent"])) as stop,
        sharding.joined(meeting / "processes", number=number, of=of, device=device) as shard,
    ):
        if work["task"] == "estimate":
            cost = estimate_cost(study, out=out, device=device, retry_failed=work["retry_failed"], shard=shard)
            return cost.to_dict()
        making = Making(
            root=out, device=device, retry=work["retry_failed"], keep_adapters=work["keep_adapters"], stop=stop,
            shard=shard, mirror=None if number else work["mirror"],
        )  # fmt: skip
        if number:
            making.follow()
            return None
        with following(work["report_to"], out=out) as tell:
            make_all(study, making, tell=tell)
        return shard.told(None)


if __name__ == "__main__":
    main()
