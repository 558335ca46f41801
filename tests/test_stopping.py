"""Requests to stop: where they are raised, when they wait, and what an entry makes of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from r2rec_jax import stopping
from r2rec_jax.stages.cli import run_entry
from r2rec_jax.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("heard_signals")


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.fixture
def listening(heard_signals):
    with stopping.listening():
        yield


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGUSR1, 0), (signal.SIGHUP, 0),
                                              (signal.SIGINT, 130)])
def test_an_entry_ends_in_one_line(capsys, number, code):
    before = [signal.getsignal(one) for one in stopping.SIGNALS]
    assert run_entry(lambda argv: send(number), []) == code
    assert capsys.readouterr().err == f"stopped by {number.name}; run the same command again to go on\n"
    assert [signal.getsignal(one) for one in stopping.SIGNALS] == before
    assert run_entry(lambda argv: stopping.check(), []) == 0 and not capsys.readouterr().err, "requests are forgotten"


def test_a_library_that_wraps_it_in_an_error_of_its_own_is_seen_through(capsys):
    def import_a_module(argv):
        try:
            send(signal.SIGTERM)
        except Interrupted as request:
            raise ImportError("initialization failed") from request

    assert run_entry(import_a_module, []) == 0
    assert capsys.readouterr().err == "stopped by SIGTERM; run the same command again to go on\n"


@pytest.mark.usefixtures("listening")
def test_no_handler_of_plain_errors_swallows_it():
    with pytest.raises(Interrupted, match="stopped by SIGTERM"):
        try:
            send(signal.SIGTERM)
        except Exception as error:
            pytest.fail(f"caught as {error!r}")


@pytest.mark.usefixtures("listening")
def test_in_a_deferred_block_the_first_request_waits_and_repeated_ones_change_nothing(capfd):
    with pytest.raises(Interrupted) as error, stopping.deferred():
        send(signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1)
        assert capfd.readouterr().err == "SIGTERM: stopping after this step\n"
        stopping.check()
    assert error.value.number == signal.SIGTERM


@pytest.mark.usefixtures("listening")
def test_a_second_ctrl_c_does_not_wait(capfd):
    done = []
    with pytest.raises(Interrupted), stopping.deferred():
        send(signal.SIGINT)
        done.append("first")
        send(signal.SIGINT)
        done.append("second")
    assert done == ["first"] and "Ctrl-C again stops at once" in capfd.readouterr().err


@pytest.mark.usefixtures("listening")
def test_what_waits_at_the_end_of_the_outermost_block_is_raised_there():
    inner = []
    with pytest.raises(Interrupted), stopping.deferred():
        with stopping.deferred():
            send(signal.SIGTERM)
        inner.append("left")
    assert inner == ["left"]


@pytest.mark.usefixtures("listening")
def test_an_error_on_its_way_is_not_replaced():
    with pytest.raises(ValueError, match="the real reason"), stopping.deferred():
        send(signal.SIGTERM)
        raise ValueError("the real reason")


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.listening():
            send(signal.SIGHUP)
            stopping.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_after_the_end_does_not_change_the_exit_code():
    """A process whose own arguments are taken is over when its entry is."""
    script = ("import os, signal, sys; from r2rec_jax.stages.cli import run_entry; "
              "code = run_entry(lambda argv: None); os.kill(os.getpid(), signal.SIGTERM); sys.exit(code)")
    assert subprocess.run([sys.executable, "-c", script], timeout=60, check=False).returncode == 0


def test_off_the_main_thread_it_does_nothing():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run_entry(lambda argv: None, [])))
    thread.start()
    thread.join()
    assert codes == [0]
