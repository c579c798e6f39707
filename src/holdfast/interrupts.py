"""The first SIGTERM or Ctrl-C asks for a clean stop, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from holdfast.errors import Interrupted

EXIT_CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}
"""75 is what schedulers read as try again; 130 is a shell's for Ctrl-C."""


class Stop:
    """Whether a stop was asked for. A class because a signal sets it between any two lines of the work."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.working = 0
        """How much of the work looks at `check` by itself. Where none does, nothing is lost by stopping at once."""

    def check(self) -> None:
        """Stop here if asked to.

        Raises:
            Interrupted: a signal came.
        """
        if self.asked is not None:
            raise Interrupted(f"stopped by {self.asked.name}", exit_code=EXIT_CODES[self.asked])

    @contextmanager
    def at_checks(self) -> Iterator[None]:
        """Signals that come in here wait for the next `check`; elsewhere they stop the work where it stands."""
        self.working += 1
        try:
            yield
        finally:
            self.working -= 1
        self.check()

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Be the handler of a signal."""
        if self.asked is not None:
            if sys.stderr.isatty():
                os.write(2, b"\x1b[?25h\n")  # a progress bar had hidden the cursor
            os._exit(EXIT_CODES[signal.Signals(number)])
        self.asked = signal.Signals(number)
        if not self.working:
            self.check()


@contextmanager
def stopping(stop: Stop | None = None) -> Iterator[Stop]:
    """Hear SIGTERM and Ctrl-C for as long as the work lasts; the handlers of before are put back."""
    stop = stop or Stop()
    before = {number: signal.signal(number, stop.hear) for number in EXIT_CODES}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
