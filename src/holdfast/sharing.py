"""Whether another machine sees a folder, and the locks in it, as this one does: what runs on several nodes stand on.

Some file systems lock for one machine alone and say nothing of it. So one process holds a lock under a name that nobody
could guess, and every other machine must find the name and be refused the lock. No torch here.
"""

from __future__ import annotations

import contextlib
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from holdfast import files
from holdfast.errors import ResourceError


@contextmanager
def marked(root: Path) -> Iterator[str]:
    """Hold a lock in a folder, made where it is missing, for as long as this lasts; gives its name.

    Raises:
        ResourceError: the folder cannot be written, or its file system cannot lock.
    """
    with files.refusing(root):
        files.make_folder(root)
        path = root / f".shared-{secrets.token_hex(8)}.lock"
        try:
            with filelock.FileLock(path):
                yield path.name
        except NotImplementedError as error:
            raise ResourceError(f"the file system cannot lock files, which owning a run needs, at {root}") from error
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def check_shared(root: Path, mark: str) -> None:
    """Refuse a folder that is not the one in which another process holds the lock `mark`.

    Raises:
        ResourceError: it is another folder, or its locks are not seen from here.
    """
    where = f"at {root} on {platform.node()}"
    path = root / mark
    if not path.is_file():
        raise ResourceError(
            f"got a folder that is not the one the sweep was started with, expected a file system shared by all "
            f"nodes, {where}"
        )
    try:
        filelock.FileLock(path).acquire(timeout=0).lock.release()
    except filelock.Timeout:
        return
    except NotImplementedError as error:
        raise ResourceError(f"the file system cannot lock files, which owning a run needs, {where}") from error
    raise ResourceError(
        f"got a file system whose locks are not seen by other nodes, expected one that locks for all of them, {where}"
    )
