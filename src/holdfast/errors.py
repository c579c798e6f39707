"""The few ways we say no, each with its exit code.

Every message reads: got X, expected Y, at path Z. Each class is also the standard exception a caller would expect.
Exit code 1 is reserved for our own bugs: anything that is not a `HoldfastError`.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator


class HoldfastError(Exception):
    """Base of every refusal of ours; `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigError(HoldfastError, ValueError):
    """A study file or an option is wrong. One error lists every mistake found."""

    exit_code = 2


class DataError(HoldfastError, ValueError):
    """A text or data set cannot be used as asked."""

    exit_code = 3


class ModelError(HoldfastError, ValueError):
    """A model or an adapter cannot be used as asked."""

    exit_code = 3


class StoreError(HoldfastError, ValueError):
    """A run folder is damaged, or is not what its name says."""

    exit_code = 3


class FitError(HoldfastError, ValueError):
    """A table of rows cannot carry the law that was asked of it."""

    exit_code = 3


class ResourceError(HoldfastError, OSError):
    """The machine is out of something: disk, memory, permission, network."""

    exit_code = 5


class Interrupted(HoldfastError):  # noqa: N818  (not a mistake)
    """Work was stopped on purpose and can be gone on with; `exit_code` says by whom (75: a scheduler, 130: Ctrl-C)."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


# What no program can help: no space, no memory, no permission, a broken disk, too many files, too long a name.
_MACHINES = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOMEM,
    errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
}  # fmt: skip


def as_refusal(error: BaseException) -> ResourceError | None:
    """What stopped us where nobody foresaw it, as a refusal; None where it may be our own bug."""
    if out_of_memory(error):
        why = first_line(error) if str(error) else "no more is known"
        return ResourceError(f"got out of memory, expected enough for this work ({why})")
    if not isinstance(error, OSError) or error.errno not in _MACHINES:
        return None
    return ResourceError(f"got {error.strerror}, expected a place that can be used, at {error.filename or 'unknown'}")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch has a class for it on a GPU only, and none of ours."""
    said = str(error).lower()
    words = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in said for word in words))


def first_line(error: BaseException) -> str:
    """Of another library's message: enough to know what it means, the second line too where the first announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{' '.join(lines[: 2 if lines[0].endswith(':') else 1]):.300}"


@contextlib.contextmanager
def as_ours(kind: type[HoldfastError], say: Callable[[str], str]) -> Iterator[None]:
    """Whatever goes wrong inside, as a refusal that `say` words around its first line; ours and out of memory pass.

    For another library given a stranger's file: what its values lead to is every kind of error that Python has.
    """
    try:
        yield
    except HoldfastError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise kind(say(first_line(error))) from error
