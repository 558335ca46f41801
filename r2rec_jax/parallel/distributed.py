"""Runs over several processes: ``jax.distributed``, one process a host (or a GPU), all with the same command.

Every process runs the same program on the same global batches, and only its own rows reach its devices. So the order of
the examples and the state of the iterator do not depend on the number of processes, and a run goes on with another.
What must happen once (files, rewards, answers that are kept) happens in process 0, and the others are told:

    value = on_first(work)                       work runs in process 0; all get its JSON value, or its failure
    with leading(call) as call: ...  |  follow(call)      process 0 decides what is called next, all call it

While they wait, processes stand at a barrier of the coordination service, which has no time limit of its own;
collectives on devices do (30 s with gloo).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from r2rec_jax import stopping
from r2rec_jax.config.parallel import ParallelConfig
from r2rec_jax.reasons import one_line

HEARTBEAT_S = 30
"""A process that has not been heard of for so long is dead, and its end ends the others; nor does one that is done
wait longer for them."""

START_S = 300
"""How long a process waits at the start for the others."""

PATIENCE_S = 7 * 24 * 3600
"""How long a process waits for what another does meanwhile (preparing data, asking a teacher)."""

_barriers = count()


class StoppedTogether(stopping.Interrupted):
    """All processes stop at the same step, so that they can still save together."""


class FirstFailed(RuntimeError):
    """Process 0 failed at what all wait for; its own message says why."""


def start(config: ParallelConfig) -> None:
    """Join the run's processes; nothing for a run of one. Call it before anything asks for a device.

    Raises:
        ValueError: the environment does not say what the settings leave open, or not all processes came.
    """
    if config.distributed == "off" or jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from r2rec_jax.stopping
    try:
        jax.distributed.initialize(
            config.coordinator, config.num_processes, config.process_id, initialization_timeout=START_S,
            heartbeat_timeout_seconds=HEARTBEAT_S, shutdown_timeout_seconds=HEARTBEAT_S)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"parallel.distributed 'auto' could not start {_place(config)} "
                         f"({one_line(error)}); set parallel.coordinator, parallel.num_processes and "
                         "parallel.process_id, and start every process") from None


def _place(config: ParallelConfig) -> str:
    if config.coordinator is None:
        return "from the environment"
    return f"process {config.process_id} of {config.num_processes} with coordinator {config.coordinator}"


def is_first() -> bool:
    """Whether this is process 0, which alone writes."""
    return not several() or jax.process_index() == 0


def several() -> bool:
    """Whether the run has more than one process; asks for no device in a run of one."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def on_first(work: Callable[[], Any]) -> Any:
    """Call ``work`` in process 0 only.

    Args:
        work: returns JSON-ready values; may take as long as it likes.

    Returns:
        What it returned, in every process (after a trip through JSON where there are several).

    Raises:
        FirstFailed: in the other processes, when it raised.
    """
    if not several():
        return work()
    failure, outcome = None, None
    if is_first():
        try:
            outcome = {"value": work()}
        except stopping.Interrupted as request:
            failure, outcome = request, {"stopped": request.number}
        except Exception as error:
            failure, outcome = error, {"failed": f"{type(error).__name__}: {one_line(error)}"}
    outcome = _share(outcome)
    if failure is not None:
        raise failure
    if "stopped" in outcome:
        raise stopping.Interrupted(outcome["stopped"])
    if "failed" in outcome:
        raise FirstFailed(f"process 0 stopped: {outcome['failed']}")
    return outcome["value"]


def check_stop() -> None:
    """Between two steps: stop here, all processes at the same step, if one of them was asked to.

    Raises:
        Interrupted: a request has come here, in a run of one process.
        StoppedTogether: a request has come, here or elsewhere.
    """
    if not several():
        return stopping.check()
    wait()
    asked = int(np.max(multihost_utils.process_allgather(np.int32(stopping.requested() or 0))))
    if asked:
        raise StoppedTogether(asked)


@contextmanager
def leading(call: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """In process 0: a function that has all processes call ``call`` with the same JSON-ready arguments.

    The others must be in :func:`follow` with their ``call``; they leave it when the block ends. Keyword arguments stay
    in process 0.

    Example:
        >>> with leading(max) as call:
        ...     call(2, 3)
        3
    """
    def together(*arguments: Any, **own: Any) -> Any:
        _share({"arguments": arguments})
        return call(*arguments, **own)

    if not several():
        yield call
        return
    try:
        yield together
    except Exception as error:
        _share({"failed": f"{type(error).__name__}: {one_line(error)}"})
        raise
    _share({})


def follow(call: Callable[..., Any]) -> None:
    """In the other processes: make the calls of process 0's :func:`leading` block.

    Raises:
        FirstFailed: the block raised.
    """
    while request := _share(None):
        if "failed" in request:
            raise FirstFailed(f"process 0 stopped: {request['failed']}")
        call(*request["arguments"])


def _share(value: Any) -> Any:
    """Process 0's JSON value in every process; waits for all of them."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8) if is_first() else np.zeros(0, np.uint8)
    wait()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(text.size)))
    room = np.zeros(1 << max(8, (size - 1).bit_length()), np.uint8)  # few sizes: each is a program of its own
    room[:text.size] = text
    return json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(room))[:size]))


def wait() -> None:
    """Stand until all processes stand here."""
    from orbax.checkpoint import multihost

    multihost.get_barrier_sync_fn()(key=f"r2rec_jax-{next(_barriers)}", timeout_ms=PATIENCE_S * 1000)


@contextmanager
def company() -> Iterator[None]:
    """Around a run: an error of the devices' exchange says what it means, that another process has ended.

    Raises:
        RuntimeError: in place of such an error.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        text = one_line(error)
        if not several() or not any(mark in text for mark in ("Gloo", "NCCL", "oordination", "arrier")):
            raise
        raise RuntimeError(
            f"process {jax.process_index()} of {jax.process_count()} lost the others: one of them has ended, and its "
            f"own message says why ({text}); start the command again in all of them to go on from the last "
            "checkpoint") from error


def leave(code: int) -> None:
    """End a process of several that failed, at once: at its exit jax would wait for the others, which wait for it."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
