"""How tests call the entries: the smoke run's arguments, and what a refusal must look like."""

from __future__ import annotations

from pathlib import Path

from r2rec_jax.train import main as train
from tests.synthetic import SMALL

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "ci.yaml")


def arguments(data: Path, run: Path, *more: str) -> list[str]:
    return ["--config", CONFIG, "--data.path", str(data), "--run_dir", str(run), *SMALL, *more]


def refused(capsys, argv: list[str], entry=train) -> str:
    capsys.readouterr()
    assert entry(argv) == 2
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and shown.err.splitlines()[-1] == lines[0]
    assert "Traceback" not in shown.err
    return lines[0]
