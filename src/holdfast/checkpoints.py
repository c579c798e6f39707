"""All-or-nothing save and verified restore of a run in progress.

    <run>/checkpoint/step-00000040/parameters.safetensors   the trainable parameters
                                   optimizer.safetensors    the optimiser's tensors
                                   random.safetensors       every random generator that training draws from
                                   manifest.json            written last: all else, and the files' sizes and SHA-256

Where training is in its data is no state: the batches follow from the seed and the number of steps (`packed_batches`),
and so does the learning rate. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from holdfast import files
from holdfast.errors import ModelError, StoreError
from holdfast.models import Tuned

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """Everything a run in progress is, after `step` update steps; training goes on from it bit for bit.

    `rows` of a batch go through the model at once; `training_s` were spent on updates so far. Holds tensors, not JSON.
    """

    step: int
    rows: int
    training_s: float
    parameters: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    optimizer_numbers: Mapping[str, float | int | None]
    random: Mapping[str, Tensor]


def take(tuned: Tuned, optimizer: torch.optim.Optimizer, *, step: int, rows: int, training_s: float) -> Snapshot:
    """A run as it is now. The tensors are the run's own: save them before training goes on."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    flat = {f"{index}.{name}": value for index, one in state.items() for name, value in one.items()}
    return Snapshot(
        step=step, rows=rows, training_s=training_s,
        parameters={name: parameter.detach() for name, parameter in _trainable(tuned)},
        optimizer={name: value for name, value in flat.items() if isinstance(value, Tensor)},
        optimizer_numbers={name: value for name, value in flat.items() if not isinstance(value, Tensor)},
        random=random_state(tuned),
    )  # fmt: skip


def put(snapshot: Snapshot, tuned: Tuned, optimizer: torch.optim.Optimizer) -> None:
    """Make a fresh run what the snapshot was, in place.

    Raises:
        ModelError: the snapshot is of other parameters.
    """
    ours = dict(_trainable(tuned))
    shapes = {name: tuple(parameter.shape) for name, parameter in ours.items()}
    theirs = {name: tuple(parameter.shape) for name, parameter in snapshot.parameters.items()}
    if shapes != theirs:
        other = sorted(dict(shapes.items() ^ theirs.items()))[0]
        raise ModelError(f"got a checkpoint of other parameters than this run's, {other} among them")
    with torch.no_grad():
        for name, parameter in ours.items():
            parameter.copy_(snapshot.parameters[name])
    state: dict[int, dict[str, Any]] = {}
    for key, value in (*snapshot.optimizer.items(), *snapshot.optimizer_numbers.items()):
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    set_random_state(snapshot.random, tuned)


def save_snapshot(snapshot: Snapshot, folder: Path) -> None:
    """Write a snapshot, read it back, and only then let go of the ones before it."""
    path = folder / f"step-{snapshot.step:08d}"
    files.make_folder(folder)
    files.write_folder(path, _contents(snapshot))
    verify(path)
    for other in sorted(folder.glob("*step-*")):
        if other != path:
            gone = other.with_name(f".{other.name.strip('.')}.going")  # half of one must not look like one
            files.move(other, gone)
            files.remove(gone)


def newest(folder: Path, *, at_most: int) -> Snapshot | None:
    """The latest sound snapshot in a folder of no more than so many steps; None if there is none.

    One that is not what its manifest says is set aside, under a name that says so.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            manifest = verify(path)
            if manifest["step"] <= at_most:
                return _read(path, manifest)
        except StoreError as error:
            log.warning("a checkpoint is damaged and the one before it is taken: %s", error)
            files.move(path, path.with_name(f"damaged-{path.name}"))
    return None


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there, whole.

    Raises:
        StoreError: one is missing or is not what was written.
    """
    manifest = files.read_json(path / "manifest.json")
    for name, expected in manifest["files"].items():
        try:
            found = _described((path / name).read_bytes())
        except OSError as error:
            raise StoreError(f"got no readable {name} ({error.strerror}), expected a whole one, at {path}") from error
        if found != expected:
            raise StoreError(f"got {found}, expected {expected}, at {path / name}")
    return manifest


def random_state(tuned: Tuned) -> dict[str, Tensor]:
    """The state of every generator that training draws from: the CPU's, and the model's device's where it has one."""
    states = {"cpu": torch.get_rng_state()}
    if tuned.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(tuned.device)
    return states


def set_random_state(states: Mapping[str, Tensor], tuned: Tuned) -> None:
    """Set the generators to what `random_state` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and tuned.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], tuned.device)


def most_bytes(trainable_params: int, result_bytes: int) -> int:
    """Most that a run takes on disk at any time: two snapshots, the newer not verified yet, or one and the result.

    A snapshot is float32 parameters and two moments of each.
    """
    snapshot = 12 * trainable_params + 2**20
    return snapshot + max(snapshot, result_bytes)


def _trainable(tuned: Tuned) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, parameter) for name, parameter in tuned.named_parameters() if parameter.requires_grad)


def _contents(snapshot: Snapshot) -> Iterator[tuple[str, bytes]]:
    """The files of a checkpoint one after another, the manifest last."""
    written: dict[str, dict[str, Any]] = {}
    for part in ("parameters", "optimizer", "random"):
        tensors: Mapping[str, Tensor] = getattr(snapshot, part)
        content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
        written[f"{part}.safetensors"] = _described(content)
        yield f"{part}.safetensors", content
    manifest = {
        "step": snapshot.step, "rows": snapshot.rows, "training_s": snapshot.training_s,
        "optimizer_numbers": dict(snapshot.optimizer_numbers), "files": written,
    }  # fmt: skip
    yield "manifest.json", files.json_bytes(manifest)


def _described(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read(path: Path, manifest: dict[str, Any]) -> Snapshot:
    try:
        tensors = {
            part: load((path / f"{part}.safetensors").read_bytes()) for part in ("parameters", "optimizer", "random")
        }
    except (OSError, SafetensorError) as error:
        raise StoreError(f"got unreadable tensors ({error}), expected safetensors, at {path}") from error
    return Snapshot(
        step=manifest["step"], rows=manifest["rows"], training_s=manifest["training_s"],
        optimizer_numbers=manifest["optimizer_numbers"], **tensors,
    )  # fmt: skip
