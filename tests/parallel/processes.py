"""Processes of one computation on this machine, as a launcher starts them on several."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

from tests.devices import REPOSITORY, environment


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def work(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.parallel.work", *arguments]


def processes(count: int, command: Any, **options: Any) -> list[subprocess.Popen]:
    """``command(i, flags)`` of every process, started."""
    port = free_port()
    return [subprocess.Popen(
        command(i, ["--parallel.distributed", "auto", "--parallel.coordinator", f"127.0.0.1:{port}",
                    "--parallel.num_processes", str(count), "--parallel.process_id", str(i)]),
        env=environment(), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
        for i in range(count)]
