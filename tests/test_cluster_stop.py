"""Ctrl-C and SIGTERM, sent to real processes: the first is obeyed in peace, the second at once."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.training.stop import Stop, Stopped
from tests.support.tiny_runs import ROOT

SOON_S = 20.0
CHILD = """
import sys, threading, time
from cluster.training.stop import Stop

mode = sys.argv[1]
asked = threading.Event()

def ask():
    print("asked", flush=True)
    asked.set()

with Stop() as stop:
    if mode != "before":
        stop.ask(ask)
    if mode == "after":
        stop.ask(None)
    print("ready", flush=True)
    while not asked.is_set():
        time.sleep(0.01)
    if mode == "hangs":
        while True:
            time.sleep(0.01)
    sys.stdin.readline()  # the last checkpoint is being written
    print("saved", flush=True)
    stop.ask(None)
sys.exit(stop.exit_code)
"""


@contextmanager
def child(mode: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == f"{text}\n"


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGINT, 130, "Ctrl-C: stopping after a checkpoint; Ctrl-C again ends it at once\n"),
        (signal.SIGTERM, 143, "SIGTERM: stopping after a checkpoint\n"),
    ],
)
def test_the_first_asks_for_a_checkpoint(number: signal.Signals, code: int, told: str) -> None:
    with child("training") as process:
        process.send_signal(number)
        wait_for(process, "asked")
        out, err = process.communicate("go\n", timeout=SOON_S)
    assert (process.returncode, out, err) == (code, "saved\n", told)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_it_at_once(first: signal.Signals) -> None:
    with child("hangs") as process:
        process.send_signal(first)
        wait_for(process, "asked")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SOON_S)
    assert process.returncode == -signal.SIGINT
    assert out == ""
    assert "KeyboardInterrupt" in err


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_sigterm_does_not_cut_the_checkpoint_short(first: signal.Signals) -> None:
    with child("training") as process:
        process.send_signal(first)
        wait_for(process, "asked")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate("go\n", timeout=SOON_S)
    assert out == "saved\n"
    assert process.returncode in {130, 143}
    assert err.count("stopping after a checkpoint") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("mode", ["before", "after"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -2), (signal.SIGTERM, 143)])
def test_where_nothing_is_to_be_saved_it_ends_at_once(
    mode: str, number: signal.Signals, code: int
) -> None:
    with child(mode) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=SOON_S)
    assert (process.returncode, out) == (code, "")
    assert "stopping" not in err


# In this process


def test_the_handlers_from_before_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Stop() as stop:
        inside = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        assert inside == [stop._handle, stop._handle]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_handler_that_ray_puts_in_between_is_replaced() -> None:
    asked = threading.Event()
    with Stop() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as ray.init does
        stop.ask(asked.set)
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked.wait(SOON_S)
    assert (stop.by, stop.exit_code) == (signal.SIGTERM, 143)


def test_beside_the_main_thread_it_touches_no_handler() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def enter() -> None:
        with Stop() as stop:
            stop.ask(lambda: None)
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(SOON_S)
    assert seen == [before]


def test_without_a_signal_there_is_none() -> None:
    with Stop() as stop:
        pass
    assert stop.by is None


def test_a_stopped_command_is_an_exit_and_no_error() -> None:
    assert Stopped(130).code == 130
    assert issubclass(Stopped, SystemExit)
    assert not issubclass(Stopped, Exception)
