"""Where models are: folders, hub ids, GGUF files, adapters, and a trainer's folder of checkpoints. Nothing is loaded.

Every spec becomes a path on this machine, so that all that follows reads files; a hub id is fetched once into the hub
client's own cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import huggingface_hub
from safetensors import SafetensorError, safe_open

from holdfast import builtin
from holdfast.errors import ModelError, ResourceError, first_line
from holdfast.mistakes import clip, clip_path, show

log = logging.getLogger(__name__)

# What a model or an adapter is made of. Pickled weights are never fetched, nor the copies some repositories add.
_FETCHED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_NOT_FETCHED = ["consolidated*", "original/*", "onnx/*", "checkpoint-*"]

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One tuned model: a PEFT adapter's folder, a whole model's, or a GGUF file; `step` where its folder names one."""

    name: str
    path: Path
    adapter: bool
    step: int | None

    @property
    def adapter_config(self) -> dict[str, Any]:
        """What the adapter says of itself; empty for a whole model."""
        return read_json(self.path / "adapter_config.json") if self.adapter else {}


def on_disk(spec: str) -> Path | None:
    """What a spec names on this machine, None for nothing; an empty spec is nothing, not the working folder.

    Raises:
        ResourceError: the system does not let us look.
    """
    try:
        return Path(spec) if spec.strip() and Path(spec).exists() else None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # so no file has it
            return None
        raise ResourceError(f"got {error.strerror}, expected a place that can be read, at {spec}") from error


def locate(spec: str) -> Path:
    """The folder or GGUF file of a model spec.

    An existing path is itself; `org/name[@revision]` is fetched from the hub, `org/name/file.gguf[@revision]` likewise.
    (`builtin:` models are `models.locate`'s.)

    Raises:
        ModelError: nothing there, or the hub cannot be reached.
    """
    there = on_disk(spec)
    if there is not None and there.is_file() and there.suffix != ".gguf":
        raise ModelError(f"got a file, expected a model's folder or a .gguf file, at {there}")
    if there is not None:
        return there
    name, _, revision = spec.partition("@")
    parts = name.split("/")
    if not spec.strip() or name.startswith((".", "/", "~")) or (len(parts) > 2 and not name.endswith(".gguf")):
        raise ModelError(
            f"got model {clip(spec)!r}, expected a folder or file there, at {clip_path(str(Path(spec).absolute()))}"
        )
    try:
        if name.endswith(".gguf") and len(parts) > 2:
            return Path(
                huggingface_hub.hf_hub_download("/".join(parts[:2]), "/".join(parts[2:]), revision=revision or None)
            )
        return Path(
            huggingface_hub.snapshot_download(
                name, revision=revision or None, allow_patterns=_FETCHED, ignore_patterns=_NOT_FETCHED
            )
        )
    except (OSError, ValueError) as error:
        why = first_line(error)
        raise ModelError(f"model {spec!r} is no folder here and cannot be fetched from the hub: {why}") from error


def candidates(path: Path, *, spec: str) -> tuple[Candidate, ...]:
    """The tuned models at a place that a spec named: one, or each `checkpoint-N` of a trainer's folder in step order.

    A model or adapter saved in the output folder itself comes last. A folder with an `adapter` in it, or one of our
    runs with a `model`, is that, unless the run kept those of its measured steps, the last of which is the same. A
    folder of our runs is what its runs are, one after another.

    Raises:
        ModelError: none there.
    """
    result = "adapter" if _kind(path / "adapter") == "adapter" else None
    if result is None and (path / "provenance.json").is_file() and _kind(path / "model") == "model":
        result = "model"
    ours, kept = result is not None, list(path.glob("checkpoint-*"))
    if result is not None and not kept:
        return (_candidate(path / result, f"{spec.rstrip('/')}/{result}"),)
    if path.is_file() or (_kind(path) is not None and not kept):
        return (_candidate(path, spec),)
    steps = sorted(
        (int(child.name.removeprefix("checkpoint-")), child)
        for child in path.glob("checkpoint-*")
        if child.name.removeprefix("checkpoint-").isdecimal() and _kind(child) is not None
    )
    found = [_candidate(child, f"{spec.rstrip('/')}/{child.name}", step=step) for step, child in steps]
    if _kind(path) is not None and not ours:
        found.append(_candidate(path, spec))
    if not found:
        runs = [folder for folder in sorted(path.glob("*")) if (folder / "records.jsonl").is_file() and _made(folder)]
        found = [one for run in runs for one in candidates(run, spec=f"{spec.rstrip('/')}/{run.name}")]
    if not found:
        raise ModelError(
            f"got {spec!r}, expected a folder with adapter_config.json, config.json or checkpoint-* folders in it, or "
            f"a GGUF file, at {path.absolute()}"
        )
    return tuple(found)


def _made(run: Path) -> bool:
    """Whether a run has left anything to measure."""
    return any(_kind(run / name) for name in ("adapter", "model")) or any(run.glob("checkpoint-*"))


def _kind(folder: Path) -> str | None:
    if (folder / "adapter_config.json").is_file():
        return "adapter"
    return "model" if (folder / "config.json").is_file() else None


def _candidate(path: Path, name: str, step: int | None = None) -> Candidate:
    state = path / "trainer_state.json"
    if step is None and state.is_file():
        step = read_json(state).get("global_step")
        step = step if isinstance(step, int) else None
    return Candidate(name=name, path=path, adapter=path.is_dir() and _kind(path) == "adapter", step=step)


def named_base(tuned: Sequence[Candidate]) -> str:
    """The base that the adapters' own configs name, or that of the run that made a whole model.

    Raises:
        ModelError: one names none, or they name several.
    """
    names = set()
    for candidate in tuned:
        name = candidate.adapter_config.get("base_model_name_or_path")
        run = candidate.path.parent
        if not candidate.adapter and (run / "provenance.json").is_file():
            name = read_json(run / "config.json").get("model")
        if not name:
            raise ModelError(f"got {candidate.name!r}, which names no base, expected the base before the tuned model")
        revision = candidate.adapter_config.get("revision")
        names.add(f"{name}@{revision}" if revision else str(name))
    if len(names) > 1:
        raise ModelError(f"got adapters trained on {sorted(names)}, expected one base; name it before the tuned models")
    return names.pop()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model's folder.

    Raises:
        ModelError: not there, or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"got no readable JSON ({error}), expected an object, at {path}") from error
    if not isinstance(content, dict):
        raise ModelError(f"got {show(content)}, expected an object, at {path}")
    return content


def files_fingerprint(path: Path) -> str:
    """Hex SHA-256 over a model's config and weights, by name and content: which model this is, without loading it."""
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if _identifies(f))
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(f"{file.name}:{builtin.sha256(content)}\n".encode())
    return digest.hexdigest()


# The last says which tokens end a text that the model writes.
_NAMED = frozenset({"config.json", "adapter_config.json", "generation_config.json"})


def _identifies(file: Path) -> bool:
    return file.suffix in {".safetensors", ".gguf"} or file.name in _NAMED


def head_in_files(path: Path) -> str | None:
    """Hex SHA-256 of the output head as it lies in a model's safetensors files; None where it is not found by name.

    A guess that saves a pass of the base: what is measured is decided by the loaded heads themselves.
    """
    if path.is_file():
        return None
    found: dict[str, str] = {}
    for file in sorted(path.glob("*.safetensors")):
        with contextlib.suppress(SafetensorError, OSError), safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a mapping)
                kind = "head" if name.endswith("lm_head.weight") else "tied" if name.endswith(_EMBEDDINGS) else None
                if kind:
                    found[kind] = _raw_fingerprint(file, name)
    return found.get("head", found.get("tied"))


def head_bias_in_files(path: Path) -> bool:
    """Whether a model's safetensors files hold a bias of the output head: a guess like `head_in_files`."""
    return any(name.endswith(("lm_head.bias", "embed_out.bias")) for name in _tensor_names(path))


def _raw_fingerprint(file: Path, name: str) -> str:
    """Of one tensor's type, shape and bytes, read where the file's header says they are."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        entry = json.loads(content.read(length))[name]
        low, high = entry["data_offsets"]
        content.seek(8 + length + low)
        digest = hashlib.sha256(f"{entry['dtype']}{entry['shape']}".encode())
        while low < high:
            part = content.read(min(1 << 24, high - low))
            if not part:
                break
            digest.update(part)
            low += len(part)
    return digest.hexdigest()


def changes_head(candidate: Candidate) -> bool:
    """Whether an adapter's files hold anything for the output head or the embeddings it may be tied to."""
    return any("lm_head" in name or "embed" in name or "wte" in name for name in _tensor_names(candidate.path))


def _tensor_names(folder: Path) -> list[str]:
    names: list[str] = []
    for file in folder.glob("*.safetensors"):
        with contextlib.suppress(SafetensorError, OSError), safe_open(file, framework="np") as tensors:
            names += tensors.keys()
    return names


@contextlib.contextmanager
def made_once(folder: Path) -> Iterator[Path | None]:
    """A place to make `folder` in, or None where it is there already; it appears by one rename, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if folder.is_dir():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
            made = Path(making) / "made"
            made.mkdir()
            yield made
            made.rename(folder)
