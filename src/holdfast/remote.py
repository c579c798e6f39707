"""A process on some node that makes runs as it is told: what it is given, what it answers and refuses is JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast import errors, files
from holdfast.config import RunConfig, Study
from holdfast.errors import HoldfastError, Interrupted, ResourceError, as_refusal
from holdfast.interrupts import EXIT_CODES, Stop
from holdfast.sharing import check_shared

if TYPE_CHECKING:
    from holdfast.sweeps import Making, Progress


class Worker:
    """A process on a node that makes runs as it is told. A class because Ray's actors are, and to keep the base."""

    def __init__(self, work: str) -> None:
        self._work = json.loads(work)
        if os.path.isdir(self._work["cwd"]):  # a study may name its files from there
            os.chdir(self._work["cwd"])
        self._root, self._stop = Path(self._work["root"]), Stop()
        if self._work["mirror"] is not None:  # what others share is the store: here is a place of this process's own
            self._scratch = tempfile.TemporaryDirectory(prefix="holdfast-")
            self._root = Path(self._scratch.name)
        self._making: Making | None = None

    def begin(self, mark: str) -> str:
        """Say where this is; refuse a node with another Holdfast, or that does not share the runs' folder."""

        def told() -> dict[str, object]:
            ours = importlib.metadata.version("holdfast")
            if ours != self._work["version"]:
                raise ResourceError(
                    f"got Holdfast {ours}, expected {self._work['version']} as where the sweep was started, on "
                    f"{platform.node()}"
                )
            if self._work["mirror"] is None:
                check_shared(Path(self._work["root"]), mark)
            return {"host": platform.node(), "pid": os.getpid()}

        return answer(told)

    def resolve(self, runs: str) -> str:
        """Runs with their precision chosen, in packs."""

        def found() -> list[list[str]]:
            from holdfast.sweeps import packs, resolved

            configs = resolved(_configs(runs), self._work["device"])
            return [[config.canonical() for config in packed] for packed in packs(configs, self._work["pack"])]

        return answer(found)

    def estimate(self, runs: str) -> str:
        """What runs will take here."""

        def found() -> dict[str, Any]:
            from holdfast.trials import estimate_cost

            work, study = self._work, Study(source="a sweep's runs", runs=tuple(_configs(runs)), raw={}, places={})
            cost = estimate_cost(study, out=work["root"], device=work["device"], retry_failed=work["retry"])
            return cost.to_dict()

        return answer(found)

    def make(self, task: str) -> str:
        """Make runs; the names of those that another process owns. With a mirror nothing of them stays here."""
        given = json.loads(task)
        numbers = {RunConfig.model_validate_json(run): number for number, run in given["runs"]}

        def made() -> list[str]:
            from holdfast.following import following

            with following(self._work["report_to"], out=Path(self._work["root"])) as tell:
                says = {config.name: self._saying(config, number) for config, number in numbers.items()}
                others = self._maker().make(list(numbers), says, tell, wait=given["wait"])
            if self._work["mirror"] is not None:
                for config in numbers:
                    files.remove(self._root / config.name)
            return [config.name for config in others]

        return answer(made)

    def stop(self) -> None:
        """Ask for a stop at the next update: what is under way keeps what it has."""
        self._stop.asked = signal.SIGTERM

    def _saying(self, config: RunConfig, number: int) -> Callable[..., Progress]:
        def say(**how: Any) -> Progress:
            from holdfast.sweeps import Progress

            return Progress(run=config, index=number, runs=self._work["runs"], **how)

        return say

    def _maker(self) -> Making:
        from holdfast.sweeps import CHECKPOINT_EVERY_S, Making

        if self._making is None:
            work = self._work
            self._making = Making(
                root=self._root, device=work["device"], retry=work["retry"], stop=self._stop,
                keep_adapters=work["keep_adapters"], mirror=work["mirror"],
                checkpoint_every_s=CHECKPOINT_EVERY_S if work["every_s"] is None else work["every_s"],
            )  # fmt: skip
        return self._making


def content(said: str) -> Any:
    """What a worker answered; what it refused is refused here."""
    heard = json.loads(said)
    if "refused" not in heard:
        return heard["answer"]
    kind, message = heard["refused"]
    if kind == "Interrupted":  # a worker alone was told to stop
        raise Interrupted(message, exit_code=EXIT_CODES[signal.SIGTERM])
    refusal: HoldfastError = getattr(errors, kind)(message)
    raise refusal


def answer(make: Callable[[], Any]) -> str:
    """What a worker answers, as JSON; a refusal of ours is one."""
    try:
        return json.dumps({"answer": make()})
    except HoldfastError as error:
        return json.dumps({"refused": [type(error).__name__, str(error)]})
    except (OSError, MemoryError, RuntimeError) as error:
        refusal = as_refusal(error)
        if refusal is None:
            raise
        return json.dumps({"refused": [type(refusal).__name__, str(refusal)]})


def _configs(runs: str) -> list[RunConfig]:
    return [RunConfig.model_validate_json(run) for run in json.loads(runs)]
