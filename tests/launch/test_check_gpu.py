"""launch/check_gpu.py on this CPU: it passes what is right, and says so when a kernel is not."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "check_gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in (("HEADS", {"few": (4, 2, 16)}), ("REPEATS", 1), ("NEW", 8), ("PROMPT", 40), ("GROUP", 2)):
        monkeypatch.setattr(module, name, value)
    return module


def test_right_kernels_pass(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["check_gpu.py", "--small", "--json", str(tmp_path / "check.json")])
    assert script.main() == 0
    found = json.loads((tmp_path / "check.json").read_text())
    assert [row["work"] for row in found["rows"]] == [
        "attention of few", "gradient of the adapter", "decoding of 2 x 2 rows"]
    assert found["wrong"] == 0 and 0 < found["rows"][0]["gradient_off"] < 1e-4


@pytest.mark.parametrize("damage", [lambda out: out.at[:, 5].set(0), lambda out: out * jnp.nan])
def test_a_kernel_that_loses_its_gradient_is_wrong(script: ModuleType, monkeypatch: pytest.MonkeyPatch,
                                                   damage: Callable[[jax.Array], jax.Array]) -> None:
    right = script.attend_segments
    monkeypatch.setattr(script, "attend_segments", lambda *arguments: damage(right(*arguments)))
    row = script.check_attention("few", 192)
    assert row["gradient_off"] > script.GRADIENT_TOLERANCE
