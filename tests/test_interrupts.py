"""Signals, sent to real processes: the first asks, the second ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from holdfast.errors import Interrupted
from holdfast.interrupts import Stop, stopping

STUCK = """
import time
from holdfast.interrupts import stopping
with stopping() as stop, stop.at_checks():
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
        if stop.asked:
            print("asked", flush=True)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_the_first_signal_waits_for_a_check_and_the_second_does_not(number: signal.Signals, code: int) -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == code


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_outside_of_checks_a_signal_stops_the_work_where_it_stands(number: signal.Signals, code: int) -> None:
    def work() -> None:
        with stopping():
            os.kill(os.getpid(), number)
            time.sleep(60)

    with pytest.raises(Interrupted, match=f"stopped by {number.name}") as stopped:
        work()
    assert stopped.value.exit_code == code


def test_inside_it_waits_and_the_handlers_of_before_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    reached = []

    def work() -> None:
        with stopping() as stop, stop.at_checks():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            reached.append(True)
            stop.check()
            reached.append(False)

    with pytest.raises(Interrupted):
        work()
    assert reached == [True]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_what_was_not_asked_for_does_not_stop() -> None:
    stop = Stop()
    with stop.at_checks():
        stop.check()
    assert stop.asked is None
