"""How the runs of a folder stand now: what each has reached, when it should end, why it failed. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from holdfast import files
from holdfast.archive import archived, read_runs
from holdfast.errors import StoreError
from holdfast.methods import named
from holdfast.store import Run, owned, read_run, run_folders

Standing = Literal["done", "running", "stopped", "waiting", "failed", "diverged", "damaged"]
"""`stopped`: begun and nobody's; a sweep goes on with it. `waiting`: not begun."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One run now: after `step` of `steps` updates, `share` of its work done, about `seconds_left` (None: not known).

    `losses` (held-out target) and `forgetting` (KL on each retained text) are those measured so far, nats per token, in
    the order of steps. `pid` is the owner's, of a running one.
    """

    run: str
    standing: Standing
    reason: str | None
    about: dict[str, Any]
    step: int
    steps: int
    share: float
    seconds_left: float | None
    seconds: float | None
    pid: int | None
    losses: tuple[float, ...]
    forgetting: dict[str, tuple[float, ...]]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)


def status(root: Path | str) -> tuple[RunStatus, ...]:
    """Every run of a folder; a damaged one is in it and says what is damaged.

    Raises:
        StoreError: there is none.
    """
    if archived(root):
        return tuple(_stands(run) for run in read_runs(root))
    return tuple(_status(folder) for folder in run_folders(root))


def seconds_left(runs: Sequence[RunStatus]) -> float | None:
    """Until the whole folder is made, one run after another, waiting ones taking what the made ones took on average."""
    took = [run.seconds for run in runs if run.standing == "done" and run.seconds]
    took += [run.seconds_left / (1 - run.share) for run in runs if run.seconds_left and run.share < 1]
    unmade = [run for run in runs if run.standing in ("running", "stopped", "waiting")]
    if not took:
        return None if unmade else 0.0
    each = sum(took) / len(took)
    return sum((1 - run.share) * each if run.seconds_left is None else run.seconds_left for run in unmade)


def seconds_per_token(root: Path | str, *, only: Sequence[str] | None = None) -> float | None:
    """Training time per token over all finished runs under a folder, measurements not counted; None if none says.

    Of all runs, or of those that meet `only`; see `archive.read_runs`.
    Not in the table: a study made again, or resumed, gives the same table, and takes another time.
    """
    done = [run for run in read_runs(root, only=only) if "training_s" in run.summary]
    tokens = sum(run.config.steps * run.config.batch_tokens for run in done)
    return sum(float(run.summary["training_s"]) for run in done) / tokens if tokens else None


def _status(folder: Path) -> RunStatus:
    try:
        run = read_run(folder)
    except StoreError as error:
        return RunStatus(
            run=folder.name, standing="damaged", reason=str(error), about={}, step=0, steps=0, share=0.0,
            seconds_left=None, seconds=None, pid=None, losses=(), forgetting={},
        )  # fmt: skip
    return _stands(run)


def _stands(run: Run) -> RunStatus:
    noted = _noted(run.folder)
    standing = _standing(run)
    reached = max((one.step for one in run.measurements), default=0)
    share = 1.0 if standing == "done" else float(noted.get("share", reached / run.config.steps))
    running = standing == "running"
    pace = (noted["share"] - noted["share_before"]) / noted["seconds"] if noted.get("seconds") else 0.0
    forgetting: dict[str, tuple[float, ...]] = {}
    for one in run.measurements:
        if one.role == "retain":
            forgetting[one.corpus] = (*forgetting.get(one.corpus, ()), one.values["kl_base_tuned"][0])
    method, r = named(run.config.adapter)
    return RunStatus(
        run=run.name, standing=standing, reason=run.reason, step=max(reached, int(noted.get("step", 0))),
        about={"method": method, "r": "–" if r is None else r, "learning_rate": run.config.optimizer.learning_rate,
               "seed": run.config.seed, "target": run.config.target.data},
        steps=run.config.steps, share=share, seconds_left=(1 - share) / pace if running and pace else None,
        seconds=run.summary.get("wall_time_s"), pid=noted.get("pid") if running else None,
        losses=tuple(one.values["nll"][0] for one in run.measurements if one.role == "target"), forgetting=forgetting,
    )  # fmt: skip


def _standing(run: Run) -> Standing:
    if run.state != "in progress":
        return run.state
    if run.folder.is_dir() and owned(run.folder):
        return "running"
    return "stopped" if run.provenance else "waiting"


def _noted(folder: Path) -> dict[str, Any]:
    """What a run in progress left word of; nothing where it did not, or where a power cut took it back."""
    try:
        return files.read_json(folder / "progress.json")
    except StoreError:
        return {}
