"""What the base said of a text, kept on disk: found again only when nothing that could change it has changed.

    <cache>/bases/<key>/blocks.bin       the rows of each batch, one batch after another
                        manifest.json    written last: the identity the key hashes, each batch's rows and SHA-256
    <cache>/bases/<head>.safetensors     a base's output head, for tuned models that have another

4d + 32 bytes a scored token for `vectors`, d numbers of the base's own precision for `states`. Everything is verified
when it is found; what is damaged is named, put away and made again. Batches are read one at a time, so memory does not
grow with the text.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from holdfast import builtin
from holdfast.errors import ResourceError
from holdfast.metrics import BaseCache, BaseStates, Head

log = logging.getLogger(__name__)

Kind = Literal["vectors", "states"]
"""`vectors`: a `BaseCache` a batch, for tuned models with the base's own head. `states`: `BaseStates`."""

Batch = BaseCache | BaseStates
FORMAT = 3

_COLUMNS = {
    "mean_head": torch.float32, "entropy": torch.float64, "nll": torch.float64, "top": torch.int64,
    "top_nll": torch.float64,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored(Sequence[Batch]):
    """Batches on disk, read and handed out one at a time; `fingerprint` is that of the base's output head.

    `head` itself is there for `states`.

    A class with behaviour because it stands in for a tuple of batches that need not fit in memory.
    """

    folder: Path
    kind: Kind
    width: int
    dtype: str
    fingerprint: str
    head: Head | None
    rows: tuple[int, ...]
    device: str

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        sizes = [_bytes(self.kind, rows, self.width, self.dtype) for rows in self.rows]
        with (self.folder / "blocks.bin").open("rb") as file:
            file.seek(sum(sizes[:index]))
            content = bytearray(file.read(sizes[index]))
        return _unpacked(content, self)


def base_identity(*, weights: str, tokenizer: str, quantisation: str | None, dtype: str, device: str) -> dict[str, str]:
    """All that may move what a base says of given tokens: itself, its precision, the machine and the libraries.

    `weights` and `tokenizer` are their fingerprints.
    """
    libraries = ("holdfast", "torch", "transformers", *(() if quantisation is None else ("bitsandbytes",)))
    return {
        "weights": weights,
        "quantisation": str(quantisation),
        "dtype": dtype,
        "tokenizer": tokenizer,
        "hardware": _hardware(device),
        "versions": " ".join(f"{name} {version(name)}" for name in libraries),
    }


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} threads"


def find(identity: Mapping[str, str], *, kind: Kind, device: str) -> Stored | None:
    """What is kept under this identity, verified byte for byte; None where there is nothing, or nothing sound."""
    folder = _folder(identity, kind)
    if not folder.is_dir():
        return None
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        sound = (
            manifest["sha256"] == _digest(body) and body["identity"] == dict(identity) and body["kind"] == kind
            and _sound_blocks(folder / "blocks.bin", body)
        )  # fmt: skip
        head = _kept_head(body["head"], device) if kind == "states" and sound else None
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        sound = False
    if not sound:
        log.warning("what was kept of the base is damaged and is made again: %s", folder)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    rows = tuple(block["rows"] for block in body["blocks"])
    return Stored(
        folder=folder, kind=kind, width=body["width"], dtype=body["dtype"], fingerprint=body["head"], head=head,
        rows=rows, device=device,
    )  # fmt: skip


def keep(identity: Mapping[str, str], batches: Iterable[Batch], *, kind: Kind, head: Head) -> None:
    """Keep batches as they come, whole or not at all, for `find`; `head` is the base's.

    Raises:
        ResourceError: the disk is full or the cache cannot be written.
    """
    folder, fingerprint = _folder(identity, kind), head.fingerprint
    blocks: list[dict[str, Any]] = []
    width, dtype = 0, "float32"
    with _writing(folder) as making:
        with (making / "blocks.bin").open("wb") as file:
            for batch in batches:
                sample = batch.mean_head if isinstance(batch, BaseCache) else batch.hidden
                width, dtype = sample.shape[1], str(sample.dtype).removeprefix("torch.")
                content = _packed(batch)
                file.write(content)
                blocks.append({"rows": len(sample), "sha256": hashlib.sha256(content).hexdigest()})
            file.flush()
            os.fsync(file.fileno())
        body = {
            "identity": dict(identity), "kind": kind, "width": width, "dtype": dtype, "head": fingerprint,
            "blocks": blocks,
        }  # fmt: skip
        (making / "manifest.json").write_text(json.dumps({**body, "sha256": _digest(body)}))
        if kind == "states":
            _keep_head(head, making / "head", _head_path(fingerprint))
        shutil.rmtree(folder, ignore_errors=True)
        making.rename(folder)


def _keep_head(head: Head, making: Path, path: Path) -> None:
    parts = {"weight": head.weight, "bias": head.bias}
    tensors = {name: part.detach().cpu().contiguous() for name, part in parts.items() if part is not None}
    save_file(tensors, making, metadata={"softcap": json.dumps(head.softcap)})
    making.rename(path)


def _kept_head(fingerprint: str, device: str) -> Head:
    with safe_open(_head_path(fingerprint), framework="pt", device=device) as file:
        softcap = json.loads(file.metadata()["softcap"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    head = Head(weight=tensors["weight"], bias=tensors.get("bias"), softcap=softcap)
    if head.fingerprint != fingerprint:
        raise ValueError(f"got a damaged output head at {_head_path(fingerprint)}")
    return head


def _head_path(fingerprint: str) -> Path:
    return _root() / f"{fingerprint}.safetensors"


def _root() -> Path:
    return builtin.cache_folder() / "bases"


def _folder(identity: Mapping[str, str], kind: Kind) -> Path:
    return _root() / _digest({"format": FORMAT, "kind": kind, **identity})[:32]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """A folder beside the target to write in; the machine's refusals become ours."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as making:
            inside = Path(making) / "made"
            inside.mkdir()
            yield inside
    except OSError as error:
        raise ResourceError(f"what the base says cannot be kept: {error}, at {target.parent}") from error


def _sound_blocks(path: Path, body: Mapping[str, Any]) -> bool:
    with path.open("rb") as file:
        for block in body["blocks"]:
            content = file.read(_bytes(body["kind"], block["rows"], body["width"], body["dtype"]))
            if hashlib.sha256(content).hexdigest() != block["sha256"]:
                return False
        return not file.read(1)


def _bytes(kind: Kind, rows: int, width: int, dtype: str) -> int:
    if kind == "states":
        return rows * width * int(getattr(torch, dtype).itemsize)
    return rows * sum((width if name == "mean_head" else 1) * column.itemsize for name, column in _COLUMNS.items())


def _packed(batch: Batch) -> bytes:
    if isinstance(batch, BaseStates):
        return _raw(batch.hidden)
    return b"".join(_raw(getattr(batch, name).to(column)) for name, column in _COLUMNS.items())


def _raw(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _unpacked(content: bytearray, stored: Stored) -> Batch:
    (rows,) = {len(content) // _bytes(stored.kind, 1, stored.width, stored.dtype)}
    buffer = torch.from_numpy(np.frombuffer(content, dtype=np.uint8))
    if stored.kind == "states":
        hidden = buffer.view(getattr(torch, stored.dtype)).view(rows, stored.width).to(stored.device)
        assert stored.head is not None  # noqa: S101  (`find` saw to it)
        return BaseStates(hidden=hidden, head=stored.head)
    found, start = {}, 0
    for name, column in _COLUMNS.items():
        width = stored.width if name == "mean_head" else 1
        size = rows * width * column.itemsize
        # A copy of each column's bytes: a view may start where its type may not.
        values = buffer[start : start + size].clone().view(column).to(stored.device)
        found[name] = values.view(rows, width) if name == "mean_head" else values
        start += size
    return BaseCache(**found)
