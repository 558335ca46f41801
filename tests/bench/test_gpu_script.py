"""launch/gpu_bench.sh with the smoke preset: it measures, goes on, and reports what it could not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "gpu_bench.sh"


def start(out: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHON": sys.executable, "PRESETS": "smoke", "OUT": str(out), "JAX_PLATFORMS": "cpu",
                                "SCRATCH": str(out / "scratch"), **settings}
    return subprocess.run([str(SCRIPT)], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_it_measures_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    for name in ("torch", "peft", "trl"):
        pytest.importorskip(name)
    stopped = start(tmp_path, WORKS="load", LIMIT_S="1")
    assert stopped.returncode == 1 and "stopped at its limit of 1 s" in stopped.stderr
    assert not (tmp_path / "bench_smoke.json").exists()
    first = start(tmp_path, WORKS="load")
    assert first.returncode == 0, first.stderr[-2000:]
    rows = json.loads((tmp_path / "bench_smoke.json").read_text())["rows"]
    assert {row["work"] for row in rows} == {"load"} and not (tmp_path / "scratch" / "smoke").exists()
    again = start(tmp_path, WORKS="load")
    assert again.returncode == 0 and "load: measured already" in again.stdout


def test_a_work_that_fails_is_reported(tmp_path: Path) -> None:
    failed = start(tmp_path, WORKS="nothing")
    assert failed.returncode == 1 and "smoke nothing: failed with code 2" in failed.stderr
