"""A list of experiments of a few seconds each, on made-up ratings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.synthetic import SMALL, write_ml100k

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "ci.yaml"


def write_list(folder: Path, **changes: Any) -> Path:
    """A list file with its data; ``changes`` replace its entries."""
    small = dict(flag.removeprefix("--").split("=", 1) for flag in SMALL)
    data = write_ml100k(folder / "data")
    plain: dict[str, Any] = {
        "name": "smoke", "title": "A smoke list", "what": "Made-up ratings; the figures mean nothing.",
        "config": str(CONFIG), "root": str(folder / "runs"), "seeds": [0],
        "set": {name: yaml.safe_load(value) for name, value in small.items()} | {
            "data.path": str(data), "evaluate.users": 8, "evaluate.batch_size": 8},
        "baselines": ["popularity", "item-knn"],
        "experiments": [
            {"name": "main", "why": "the recipe", "systems": ["pretrained", "sft", "sft+grpo"], "likelihood": True,
             "diagnostics": ["swapped", "none"], "headline": True},
            {"name": "no-sft", "why": "rewards alone", "set": {"grpo.start": "base", "grpo.reference": "base"},
             "systems": ["grpo"], "reuse": ["main"], "headline": True},
            {"name": "search", "why": "another rate", "set": {"grpo.lr": 1e-3, "evaluate.users": 2},
             "systems": ["sft+grpo"], "reuse": ["main"], "split": "validation"},
        ],
    }
    path = folder / "smoke.yaml"
    path.write_text(yaml.safe_dump(plain | changes), encoding="utf-8")
    return path
