"""Requests to stop: Ctrl-C, and the signals of schedulers, from anywhere in the program to an orderly end.

SIGTERM (preemption, ``scancel``, ``docker stop``), SIGUSR1 (``sbatch --signal``), SIGHUP (the terminal went away) and
SIGINT (Ctrl-C) raise :class:`Interrupted` where the program stands, which every file of ours survives. A loop whose
state must not be cut in two runs inside :func:`deferred`: there the first request waits until the loop looks
(:func:`check`). A second Ctrl-C does not wait; other repeated signals change nothing. A signal that is ignored when the
program starts (``nohup``) stays ignored.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(KeyboardInterrupt):
    """The program was asked to stop. Libraries treat it like the Ctrl-C that it often is.

    Attributes:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@dataclass
class _Requests:
    """Signals are the process's, and so is this record of them.

    Attributes:
        received: every request since :func:`listening` began, in order.
        waiting: how many :func:`deferred` blocks are open.
    """

    received: list[int] = field(default_factory=list)
    waiting: int = 0


_requests = _Requests()


@contextmanager
def listening(*, last: bool = False) -> Iterator[None]:
    """Turn the signals into requests while the block lasts; off the main thread, where none arrive, it does nothing.

    Args:
        last: the process ends after the block. A scheduler's late signal is then ignored, which would otherwise end a
            run that is done as one that was killed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    heard = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in heard:
        signal.signal(number, _receive)
    try:
        yield
    except Exception as error:
        # A compiled module that is being imported makes an ImportError of whatever is raised in its midst.
        if isinstance(error.__cause__, Interrupted):
            raise error.__cause__ from None
        raise
    finally:
        for number in heard:
            signal.signal(number, signal.SIG_IGN if last and number != signal.SIGINT else before[number])
        _requests.received.clear()


@contextmanager
def deferred() -> Iterator[None]:
    """Let a first request wait for :func:`check`, or for the end of the block.

    Raises:
        Interrupted: at the end, when a request still waits and no other error is on its way.
    """
    _requests.waiting += 1
    try:
        yield
    finally:
        _requests.waiting -= 1
    if not _requests.waiting:
        check()


def requested() -> int | None:
    """The signal of the first request; None when there is none."""
    return _requests.received[0] if _requests.received else None


def check() -> None:
    """Stop here if it was asked for.

    Raises:
        Interrupted: a request has come.
    """
    if _requests.received:
        raise Interrupted(_requests.received[0])


def _receive(number: int, _frame: FrameType | None) -> None:
    first = not _requests.received
    _requests.received.append(number)
    if first and _requests.waiting:
        hint = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        # Not through print: the signal may have come in the middle of one.
        os.write(2, f"{signal.Signals(number).name}: stopping after this step{hint}\n".encode())
    elif first or number == signal.SIGINT:
        raise Interrupted(number)
