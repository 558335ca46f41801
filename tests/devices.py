"""Processes with several virtual CPU devices."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def environment(devices: int = 1) -> dict[str, str]:
    """This process's environment, its flags for XLA among it, with so many CPU devices and this package's source."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(), "PYTHONPATH": str(REPOSITORY)}
