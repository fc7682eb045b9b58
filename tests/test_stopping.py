"""Signals: the first sets a flag and the run ends in order, the second ends it at once; handlers are put back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from xmodal import stopping
from xmodal.cli import guard
from xmodal.errors import Stopped


@pytest.mark.parametrize("number", stopping.SIGNALS)
def test_a_signal_sets_the_flag_and_afterwards_all_is_as_it_was(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with stopping.watched():
        stopping.poll()
        assert not stopping.asked()
        os.kill(os.getpid(), number)
        assert stopping.asked()
        with pytest.raises(Stopped):
            stopping.poll()
    assert "the step is ended and saved" in capfd.readouterr().err
    assert signal.getsignal(number) == before
    assert not stopping.asked()
    stopping.poll()


def test_in_another_thread_signals_are_left_alone() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def watch() -> None:
        with stopping.watched():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert found == [before]


TWICE = """
import time
from xmodal import stopping
with stopping.watched():
    print("ready", flush=True)
    time.sleep(60)
    while True:
        time.sleep(1)
"""


def test_the_second_signal_ends_at_once() -> None:
    process = subprocess.Popen([sys.executable, "-c", TWICE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)  # the same request, from somewhere else
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == -signal.SIGINT


def test_the_command_line_says_so_and_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    def stops() -> None:
        raise Stopped("Stopped after step 3 of 6. With --resume it goes on.")

    assert guard(stops) == 0
    assert "With --resume" in capsys.readouterr().out
