"""What of the machine each of several jobs has: whole CPUs, and whole GPUs where there are any."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

from r2rec_jax.evaluation.tables import cpus

T = TypeVar("T")

_DEVICE = re.compile(r"[0-9]+|(GPU|MIG)-.+")
"""An entry of ``CUDA_VISIBLE_DEVICES`` that names a device: its number or its UUID."""


@dataclass(frozen=True)
class Share:
    """One job's part.

    Attributes:
        cpus: numbers of its CPUs; none where it may use all.
        gpus: its ``CUDA_VISIBLE_DEVICES``; None leaves that as it is.
    """

    cpus: tuple[int, ...] = ()
    gpus: str | None = None


def shares(jobs: int, environment: Mapping[str, str] = os.environ, devices: Path = Path("/dev")) -> list[Share]:
    """The CPUs and NVIDIA GPUs of this process in ``jobs`` parts; one job has no part, and may use all.

    With CPUs 0 to 4, no GPU and two jobs, the parts are 0 and 1, and 2 to 4.

    Args:
        jobs: how many.
        environment: says which GPUs are visible, and whether jax is to use any.
        devices: where the driver lists them.

    Raises:
        ValueError: there are fewer CPUs than jobs, or GPUs but fewer.
    """
    if jobs == 1:
        return [Share()]
    pinned, mine = hasattr(os, "sched_getaffinity"), cpus()  # Linux has it
    if not 1 <= jobs <= len(mine):
        raise ValueError(f"--jobs must be in 1..{len(mine)}, the CPUs of this process; got {jobs}")
    gpus = visible_gpus(environment, devices)
    if gpus and jobs > len(gpus):
        raise ValueError(f"--jobs must be in 1..{len(gpus)}, the GPUs of this process; got {jobs}; JAX_PLATFORMS=cpu "
                         "leaves them out")
    return [Share(tuple(_part(mine, job, jobs)) if pinned else (), ",".join(_part(gpus, job, jobs)) if gpus else None)
            for job in range(jobs)]


def _part(things: Sequence[T], job: int, jobs: int) -> Sequence[T]:
    return things[job * len(things) // jobs:(job + 1) * len(things) // jobs]


def visible_gpus(environment: Mapping[str, str], devices: Path) -> list[str]:
    """Names of the GPUs that a process sees, as ``CUDA_VISIBLE_DEVICES`` has them; none where jax is to use the CPU.

    As CUDA reads that list, it ends before the first entry that names no device: ``0,2,-1,3`` is 0 and 2, and ``-1``
    and ``NoDevFiles`` are none.

    Args:
        environment: of the process.
        devices: where the driver lists them.
    """
    if environment.get("JAX_PLATFORMS") == "cpu":
        return []
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return list(takewhile(_DEVICE.fullmatch, map(str.strip, named.split(","))))
    return sorted((path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")), key=int)
