"""The tasks of a list, each in a process of its own; what is finished or has failed is not run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from r2rec_jax.files import write_json
from r2rec_jax.progress import format_duration, say
from r2rec_jax.stages.experiments.plan import Task
from r2rec_jax.stages.experiments.shares import Share
from r2rec_jax.stopping import Interrupted, deferred

STOPPED_S = 300
"""How long processes that were asked to stop may take to end their steps and save them."""

_LOOK_S = 0.2


@dataclass(frozen=True)
class Running:
    """A task at work.

    Attributes:
        task: which.
        label: how it is called in messages.
        process: its process.
        log: what that says.
        before: bytes of the log that are of earlier starts.
        started: seconds of the monotonic clock.
        share: its part of the machine.
    """

    task: Task
    label: str
    process: subprocess.Popen[bytes]
    log: Path
    before: int
    started: float
    share: Share


def run_tasks(tasks: Sequence[Task], after: Callable[[], None], *, only_next: bool = False, retry: bool = False,
              overwrite: bool = False, places: Sequence[Share] = (Share(),)) -> None:
    """Run what is left, in order; several at once where they do not wait for each other (:func:`next_task`).

    Args:
        tasks: in order.
        after: called after every task, whether it went well or not.
        only_next: stop after one.
        retry: run those again that have failed.
        overwrite: train anew what was trained with other settings; otherwise that is a failure.
        places: so many at once, each on its own.

    Raises:
        Interrupted: the list or a process of it was asked to stop; the same command goes on.
    """
    free = list(places)
    labels = {task.folder: f"{task.name}, seed {task.seed} ({place} of {len(tasks)})"
              for place, task in enumerate(tasks, start=1)}
    waiting = [task for task in tasks if _is_left(task, labels[task.folder], retry)][:1 if only_next else None]
    running: list[Running] = []
    try:
        while waiting or running:
            while free and (place := next_task(waiting, [run.task for run in running])) is not None:
                task = waiting.pop(place)
                with deferred():  # a process that is started is one that will be stopped
                    running.append(_start(task, labels[task.folder], free.pop(0), overwrite))
            ended = _first_ended(running)
            running.remove(ended)
            free.append(ended.share)
            reason = _outcome(ended)
            say(f"{ended.label}: {'done' if reason is None else 'failed'} after "
                f"{format_duration(time.monotonic() - ended.started)}" + (f": {reason}" if reason is not None else ""))
            after()
    except BaseException:
        _stop(running)
        raise


def next_task(waiting: Sequence[Task], running: Collection[Task]) -> int | None:
    """Which of those that wait may start: the first that takes over nothing from one at work, or from one before it.

    Returns:
        Its place; None when all have to wait.
    """
    busy = {_run_of(task) for task in running}
    for place, task in enumerate(waiting):
        if not busy.intersection(task.order.get("reuse", ())):
            return place
        busy.add(_run_of(task))
    return None


def _run_of(task: Task) -> str:
    return str(task.folder / "run")


def _is_left(task: Task, label: str, retry: bool) -> bool:
    if task.outcome() is not None:
        return False
    failure = None if retry else task.failure()
    if failure is not None:
        say(f"{label}: failed before and is left out (--retry runs it again): {failure}")
    return failure is None


def _start(task: Task, label: str, share: Share, overwrite: bool) -> Running:
    task.folder.mkdir(parents=True, exist_ok=True)
    for name in ("done.json", "failed.json"):
        (task.folder / name).unlink(missing_ok=True)
    write_json(task.folder / "task.json", {"key": task.key, "order": task.order, "overwrite": overwrite})
    log = task.folder / "log.txt"
    before = log.stat().st_size if log.exists() else 0
    say(f"{label}: started; log in {log}")
    with log.open("ab") as out:
        process = subprocess.Popen(
            command_of(task, share), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=os.environ | ({} if share.gpus is None else {"CUDA_VISIBLE_DEVICES": share.gpus}))
    return Running(task, label, process, log, before, time.monotonic(), share)


def command_of(task: Task, share: Share) -> list[str]:
    """The command line of a task's process."""
    return [sys.executable, "-m", "r2rec_jax.stages.experiments.worker", str(task.folder), str(os.getpid()),
            *([",".join(map(str, share.cpus))] if share.cpus else [])]


def _first_ended(running: Sequence[Running]) -> Running:
    while True:
        for run in running:
            if run.process.poll() is not None:
                return run
        time.sleep(_LOOK_S)


def _outcome(run: Running) -> str | None:
    """Why a task failed, in one line, which is also written down; None when it went well.

    Raises:
        Interrupted: it was asked to stop.
    """
    if run.task.outcome() is not None:
        return None
    code = run.process.returncode
    if code in (0, 130):
        raise Interrupted(signal.SIGTERM if code == 0 else signal.SIGINT)
    reason = failure_reason(code, run.log, run.before)
    write_json(run.task.folder / "failed.json", {"key": run.task.key, "reason": reason, "code": code})
    return reason


def _stop(running: Sequence[Running]) -> None:
    """Hand a request to stop on, and wait until all have ended."""
    for run in running:
        run.process.terminate()
    deadline = time.monotonic() + STOPPED_S
    for run in running:
        with suppress(subprocess.TimeoutExpired):
            run.process.wait(max(0, deadline - time.monotonic()))
        run.process.kill()
        run.process.wait()


def failure_reason(code: int, log: Path, start: int = 0) -> str:
    """One line on why a process failed: what it said last, or what ended it.

    Args:
        code: its exit code.
        log: what it said.
        start: bytes of the log that are older.
    """
    if code < 0:
        name = signal.Signals(-code).name
        return f"ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    said = [line.strip() for line in log.read_bytes()[start:].decode("utf-8", "replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    return (errors or said or [f"exit code {code}"])[-1][:500]
