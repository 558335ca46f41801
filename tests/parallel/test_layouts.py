"""The same losses, gradients and greedy tokens on every layout of 8 devices."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.devices import REPOSITORY, environment
from tests.parallel.processes import work


def figures(module: str, folder: Path, devices: int) -> tuple[dict[str, Any], str]:
    """What a module of this package writes on so many virtual devices, and what it says on standard error."""
    out = folder / "out.json"
    done = subprocess.run([sys.executable, "-m", f"tests.parallel.{module}", str(out)], env=environment(devices),
                          cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text()), done.stderr


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


@pytest.mark.slow
def test_splash_attention_is_divided_by_rows_and_heads(tmp_path: Path) -> None:
    """Where an axis divides neither, all its devices compute the same, and no gradient is counted twice."""
    found, _ = figures("attention_work", tmp_path, devices=4)
    assert {name: (case["rows"], case["heads"]) for name, case in found.items()} == {
        "divided": (1, 2), "undivided": (1, 3)}
    for case in found.values():
        assert max(case["apart"]) < 1e-5 and min(case["largest"]) > 1


@pytest.mark.slow
def test_rounded_factors_give_the_single_devices_gradients(tmp_path: Path) -> None:
    """Sums in another order may round a factor to its neighbour, which is far less than what rounding does itself."""
    found, said = figures("rounded_work", tmp_path, devices=8)
    assert found.keys() == {"adapter", "weights"}
    for kind, apart in found.items():
        assert apart["mesh"] < 2e-3 < 5e-3 < apart["rounding"], (kind, apart)
    assert "Involuntary full rematerialization" not in said
