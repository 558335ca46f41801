"""The tasks of a list, one process after the other; what is finished or has failed is not run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from r2rec_jax.files import write_json
from r2rec_jax.progress import format_duration, say
from r2rec_jax.stages.experiments.plan import Task
from r2rec_jax.stopping import Interrupted

STOPPED_S = 300
"""How long a process that was asked to stop may take to end its step and save it."""


def run_tasks(tasks: Sequence[Task], after: Callable[[], None], *, only_next: bool = False, retry: bool = False,
              overwrite: bool = False) -> None:
    """Run what is left.

    Args:
        tasks: in order.
        after: called after every task, whether it went well or not.
        only_next: stop after one.
        retry: run those again that have failed.
        overwrite: train anew what was trained with other settings; otherwise that is a failure.

    Raises:
        Interrupted: the list or its process was asked to stop; the same command goes on.
    """
    for place, task in enumerate(tasks, start=1):
        label = f"{task.name}, seed {task.seed} ({place} of {len(tasks)})"
        if task.outcome() is not None:
            continue
        if task.failure() is not None and not retry:
            say(f"{label}: failed before and is left out (--retry runs it again): {task.failure()}")
            continue
        say(f"{label}: started; log in {task.folder / 'log.txt'}")
        started = time.monotonic()
        reason = run_task(task, overwrite)
        say(f"{label}: {'done' if reason is None else 'failed'} after {format_duration(time.monotonic() - started)}"
            + (f": {reason}" if reason is not None else ""))
        after()
        if only_next:
            break


def run_task(task: Task, overwrite: bool = False) -> str | None:
    """Run one task in a process of its own.

    Returns:
        Why it failed, in one line, which is also written down; None when it went well.

    Raises:
        Interrupted: it was asked to stop.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    for name in ("done.json", "failed.json"):
        (task.folder / name).unlink(missing_ok=True)
    write_json(task.folder / "task.json", {"key": task.key, "order": task.order, "overwrite": overwrite})
    log = task.folder / "log.txt"
    start = log.stat().st_size if log.exists() else 0
    code = _call([sys.executable, "-m", "r2rec_jax.stages.experiments.worker", str(task.folder),
                  str(os.getpid())], log)
    if task.outcome() is not None:
        return None
    if code in (0, 130):
        raise Interrupted(signal.SIGTERM if code == 0 else signal.SIGINT)
    reason = failure_reason(code, log, start)
    write_json(task.folder / "failed.json", {"key": task.key, "reason": reason, "code": code})
    return reason


def _call(command: Sequence[str], log: Path) -> int:
    """A process's exit code; a request to stop is handed on to it, and its end is waited for."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOPPED_S)
            process.kill()
            process.wait()
            raise


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
