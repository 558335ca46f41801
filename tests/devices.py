"""Processes with several virtual CPU devices."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def xla_flags(*more: str) -> str:
    """This process's flags for XLA, and more."""
    return " ".join([os.environ.get("XLA_FLAGS", ""), *more]).strip()


def environment(devices: int = 1) -> dict[str, str]:
    """This process's environment, its flags for XLA among it, with so many CPU devices and this package's source."""
    flags = xla_flags(f"--xla_force_host_platform_device_count={devices}")
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)}
