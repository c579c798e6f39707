"""A sweep told live to Weights & Biases, Trackio, TensorBoard and MLflow, by accelerate's trackers, run for run.

A tracker looks on. One that is not installed is refused before anything is made; one that fails later, whatever it
raises, is named once and not called again, and the sweep goes on. It is given a run's config and what is measured, and
writes in `trackers/` beside the runs or where its own settings say, never in a run folder.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import netrc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import accelerate
from accelerate import tracking
from accelerate.tracking import GeneralTracker

from holdfast.config import RunConfig
from holdfast.errors import ConfigError, HoldfastError, first_line
from holdfast.evidence import CorpusReport
from holdfast.mistakes import alike, show
from holdfast.sweeps import Progress
from holdfast.training import Event
from holdfast.updates import learning_rate

log = logging.getLogger(__name__)

NAMES = ("mlflow", "tensorboard", "trackio", "wandb")
PROJECT = "holdfast"
"""What trackers that keep several projects call this one; `WANDB_PROJECT` and `MLFLOW_EXPERIMENT_NAME` win."""

FOLDER = "trackers"
ONLINE_S = 20
"""How long Weights & Biases may look for its server before it writes offline."""


class Tracking:
    """Trackers that hear of a sweep, for its `tell`. A class because those of the run in progress are open.

    Logged at their step: `loss` and `learning_rate` of each update, `eval_loss` (held-out target), for each retained
    text `forgetting/<text>` (KL, nats per token), and `eval_forgetting`, that of all of them by their tokens.
    """

    def __init__(self, names: Sequence[str], *, out: Path) -> None:
        check_installed(names)
        self._out = out / FOLDER
        self._working = list(dict.fromkeys(names))
        self._open: dict[str, GeneralTracker] = {}
        self._retained: dict[str, CorpusReport] = {}
        self._modes = _wandb_modes()

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *_: object) -> None:
        self._finish()

    def __call__(self, at: Progress) -> None:
        """Tell every tracker of the next thing that happened."""
        if at.state != "in progress":
            self._finish()
        elif at.event is None:
            self._start(at.run)
        elif values := self._values(at.run, at.event):
            step = at.event.step
            for name, tracker in list(self._open.items()):
                self._guarded(name, lambda tracker=tracker: tracker.log(values, step=step))  # type: ignore[misc]

    def _start(self, run: RunConfig) -> None:
        self._finish()
        self._retained = {}
        for name in list(self._working):
            self._guarded(name, lambda name=name: self._begin(name, run))  # type: ignore[misc]

    def _begin(self, name: str, run: RunConfig) -> None:
        self._out.mkdir(exist_ok=True)
        accelerate.PartialState(cpu=True)  # its loggers insist
        tracker = _started(name, run.name, self._out, self._modes)
        self._open[name] = tracker
        tracker.store_init_configuration(flat(run.model_dump(mode="json")))

    def _values(self, run: RunConfig, event: Event) -> dict[str, float]:
        """What an event says, by the names it is logged under."""
        report = event.report
        if report is None:
            rate = learning_rate(run.optimizer, step=event.step - 1, steps=run.steps)
            return {"loss": event.loss, "learning_rate": rate}
        if event.role == "target":
            self._retained = {}
            return {"eval_loss": report.nll.value}
        self._retained[report.corpus] = report
        values = {f"forgetting/{report.corpus}": report.kl_base_tuned.value}
        if len(self._retained) == len(run.retain):
            nats = sum(float(text.sums["kl_base_tuned"].sum()) for text in self._retained.values())
            values["eval_forgetting"] = nats / sum(text.scored_tokens for text in self._retained.values())
        return values

    def _finish(self) -> None:
        for name, tracker in list(self._open.items()):
            self._guarded(name, tracker.finish)
        self._open = {}

    def _guarded(self, name: str, call: Callable[[], object]) -> None:
        """Whatever a tracker raises is told and ends its part; what it prints is kept from standard output."""
        try:
            with contextlib.redirect_stdout(sys.stderr):
                call()
        except HoldfastError:  # a stop that was asked for meanwhile
            raise
        except (Exception, SystemExit) as error:
            self._open.pop(name, None)
            self._working.remove(name)
            log.warning("%s failed (%s); the sweep goes on without it", name, first_line(error))


def check_installed(names: Sequence[str]) -> None:
    """Refuse a tracker that is not there, before anything is made.

    Raises:
        ConfigError: one is none of `NAMES`, or not installed.
    """
    for name in names:
        if name not in NAMES:
            known = f"{', '.join(NAMES)}{alike(name, NAMES)}"
            raise ConfigError(f"got {show(name)}, expected one of {known}, at --report-to")
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"got {name}, which is not installed: pip install 'holdfast[{name}]', at --report-to")


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """A nested mapping as one of dotted keys; lists as JSON, None as `null`: what every tracker can keep."""
    found: dict[str, bool | int | float | str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found


def _started(name: str, run: str, out: Path, modes: list[str]) -> GeneralTracker:
    if name == "wandb":
        return _wandb(run, out, modes)
    if name == "tensorboard":
        tracker: GeneralTracker = tracking.TensorBoardTracker(run, out / name)
    elif name == "trackio":
        tracker = tracking.TrackioTracker(PROJECT, name=run)
    else:
        tracker = tracking.MLflowTracker(PROJECT, run_name=run)
    tracker.start()
    return tracker


def _wandb(run: str, out: Path, modes: list[str]) -> GeneralTracker:
    """In the first mode that works; one that does not is not tried again.

    Neither the code nor the git repository around it nor what is printed is recorded.
    """
    import wandb

    settings = wandb.Settings(
        console="off", disable_code=True, disable_git=True, save_code=False, silent=True, init_timeout=ONLINE_S
    )
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    while True:
        tracker = tracking.WandBTracker(project, name=run, dir=str(out), mode=modes[0], settings=settings)
        try:
            tracker.start()
        except Exception as error:
            if len(modes) == 1:
                raise
            del modes[0]
            log.warning("wandb cannot be reached (%s); it writes offline, for `wandb sync`", first_line(error))
        else:
            return tracker


def _wandb_modes() -> list[str]:
    """`WANDB_MODE`, or online where there is a key, then offline: it never asks for a key."""
    asked = os.environ.get("WANDB_MODE")
    return [asked] if asked else ["online", "offline"] if _has_key() else ["offline"]


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        return netrc.netrc().authenticators(host) is not None
    return False
