"""The same losses, gradients and greedy tokens on every layout of 8 devices and of 2 and 4 processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def environment(devices: int = 1) -> dict[str, str]:
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
                         "PYTHONPATH": str(REPOSITORY)}


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


@pytest.mark.slow
def test_every_layout_gives_the_single_devices_numbers(tmp_path: Path) -> None:
    done = subprocess.run(work("layouts", str(tmp_path / "out.json")), env=environment(8), cwd=REPOSITORY,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found) == 4
    for layout, apart in found.items():
        assert apart["greedy"] == 0, layout
        assert all(value < 1e-5 for value in apart.values()), (layout, apart)
    assert "Involuntary full rematerialization" not in done.stderr


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("alone") / "out.npz"
    subprocess.run(work("process", str(out)), env=environment(), cwd=REPOSITORY, check=True, capture_output=True)
    return dict(np.load(out))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "layout"), [(2, ["--parallel.fsdp", "2"]), (4, [])])
def test_several_processes_give_the_numbers_of_one(count: int, layout: list[str], tmp_path: Path,
                                                   one_process: dict[str, np.ndarray]) -> None:
    """Twenty SFT and GRPO steps and greedy tokens; with fsdp over the processes no one holds a whole adapter."""
    started = processes(count, lambda i, flags: work("process", str(tmp_path / f"{i}.npz"), *flags, *layout))
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count, outputs
    for i in range(count):
        found = dict(np.load(tmp_path / f"{i}.npz"))
        assert found.keys() == one_process.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, one_process[name], rtol=0, atol=1e-5, err_msg=f"process {i}: {name}")
