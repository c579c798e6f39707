"""What the base answered, kept on disk: found again only when nothing that could change it has changed.

    <cache>/answers/<key>.json    the identity the key hashes, the answers, and a SHA-256 over both

Numbers come back bit for bit. What is damaged is named and made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from holdfast import builtin, files

log = logging.getLogger(__name__)

FORMAT = 1


def kept(identity: Mapping[str, str], make: Callable[[], Any]) -> Any:
    """What is kept under this identity; made, and kept, where there is nothing or nothing sound.

    `make` gives what JSON can hold. A model, tokenizer, template, item, protocol, precision, machine or version that is
    not the same must be another identity.

    Raises:
        ResourceError: the disk is full or the cache cannot be written.
    """
    path = _path(identity)
    found = _find(path, identity)
    if found is not None:
        return found["answers"]
    body = {"identity": dict(identity), "answers": make()}
    with files.refusing(path.parent):
        files.make_folder(path.parent)
        files.write(path, json.dumps({**body, "sha256": _digest(body)}).encode())
    return json.loads(json.dumps(body["answers"]))  # as it will be found, lists for tuples


def holds(identity: Mapping[str, str]) -> bool:
    """Whether answers are kept under this identity and are sound."""
    return _find(_path(identity), identity) is not None


def _find(path: Path, identity: Mapping[str, str]) -> Mapping[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        body = {"identity": content["identity"], "answers": content["answers"]}
        sound = content["sha256"] == _digest(body) and body["identity"] == dict(identity)
    except (OSError, ValueError, KeyError, TypeError):
        sound = False
    if not sound:
        log.warning("what was kept of the base's answers is damaged and is made again: %s", path)
        return None
    return body


def _path(identity: Mapping[str, str]) -> Path:
    return builtin.cache_folder() / "answers" / f"{_digest({'format': FORMAT, **identity})[:32]}.json"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
