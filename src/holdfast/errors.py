"""The few ways we say no, each with its exit code.

Every message reads: got X, expected Y, at path Z. Each class is also the standard exception a caller would expect.
Exit code 1 is reserved for our own bugs: anything that is not a `HoldfastError`.
"""


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
