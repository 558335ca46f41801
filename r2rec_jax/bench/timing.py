"""Clocks, memory and machine peaks: what both workers share. No framework is imported here."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol


class Work(Protocol):
    """One work of one side, ready to be measured."""

    def step(self) -> dict[str, float]:
        """Do the work once, to its very end; the seconds it took, by phase."""
        ...


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result) of one call; the function must wait for the device itself."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


def best(function: Callable[[], Any], repeats: int = 5) -> float:
    """Fastest of some calls after one that is not counted, seconds."""
    function()
    return min(timed(function)[0] for _ in range(repeats))


def peak_host_gb() -> float:
    """Most resident memory of this process so far, GB (10^9 bytes)."""
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024 / 1e9
    import resource
    import sys

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024) / 1e9


def forget_peak_host() -> None:
    """Let :func:`peak_host_gb` count from now on, where the system can (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median: 0.1 means that measurements lie within a tenth of each other."""
    middle = median(values)
    return (max(values) - min(values)) / middle if middle else 0.0
