"""When a process is sent a signal: a file that appears, or a moment of its life."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos.folder import names_of, size_of, steps_of

LIFE_LIMIT_S = 300
POLL_S = 0.0003


@dataclass(frozen=True)
class Moment:
    """When a process is sent a signal.

    Attributes:
        aim: a key of :data:`AIMS`, or ``random``.
        delay: fraction of the aim's window (of the stage's time for ``random``) that passes before the signal.
        number: the signal.
    """

    aim: str
    delay: float
    number: int = signal.SIGKILL


Watch = Callable[[Path, Path, dict[str, Any]], bool]
"""``(run, stage folder, what it remembers of its first look) -> whether the moment is there``."""


def _writes_checkpoint(run: Path, stage: Path, seen: dict[str, Any]) -> bool:
    return any(name.endswith("-tmp") and name not in seen["temporary"] for name in names_of(stage / "checkpoints"))


def _has_just_renamed(run: Path, stage: Path, seen: dict[str, Any]) -> bool:
    steps = steps_of(stage / "checkpoints")
    return bool(steps) and steps[-1] > seen["step"]


def _appends_metrics(run: Path, stage: Path, seen: dict[str, Any]) -> bool:
    return size_of(run / "metrics.jsonl") > seen["metrics"]


def _writes_adapter(run: Path, stage: Path, seen: dict[str, Any]) -> bool:
    return ".adapter.tmp" in names_of(stage)


def _writes_export(run: Path, stage: Path, seen: dict[str, Any]) -> bool:
    return any(name.endswith(".tmp") for name in names_of(run / "export"))


AIMS: dict[str, tuple[Watch, float]] = {
    "checkpoint write": (_writes_checkpoint, 0.1), "checkpoint clean-up": (_has_just_renamed, 0.02),
    "metrics append": (_appends_metrics, 0.001), "adapter write": (_writes_adapter, 0.01),
    "export write": (_writes_export, 0.03)}
"""What is waited for, and for how many seconds from then on a kill may fall."""


def wait_for(process: subprocess.Popen[bytes], moment: Moment, run: Path, folder: Path, log: Path, seen: dict[str, Any],
          stage_s: float) -> bool:
    """Wait for the moment; False when the process was done before it came."""
    if moment.aim == "random":
        def watch() -> bool:
            return f"{folder.name}: started" in log.read_text()
        window = stage_s
    else:
        look, window = AIMS[moment.aim]

        def watch() -> bool:
            return look(run, folder, seen)
    deadline = time.monotonic() + LIFE_LIMIT_S
    while not watch():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    until = time.monotonic() + moment.delay * window
    while time.monotonic() < until:
        if process.poll() is not None:
            return False
        time.sleep(POLL_S)
    return process.poll() is None


def draw(stage: str, kills: int, stops: int, rng: np.random.Generator) -> list[Moment]:
    """Half of the kills aimed, in turn, the others at random moments; the stops at random moments; all shuffled."""
    aims = [name for name in AIMS if stage == "grpo" or name != "export write"]
    moments = [Moment(aims[i // 2 % len(aims)] if i % 2 == 0 else "random", float(rng.random())) for i in range(kills)]
    moments += [Moment("random", float(rng.random()), signal.SIGTERM) for _ in range(stops)]
    return [moments[i] for i in rng.permutation(len(moments))]
