"""Completions of a trial's final system to be read by eye: prompt, answer, target and its rank, in plain text.

They hold titles of the data set, so they stay with the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r2rec_jax.data.randomness import generator
from r2rec_jax.evaluation.predictions import Prediction, read_predictions
from r2rec_jax.files import write_text

COUNT = 20
"""Completions a trial; which ones is drawn from its seed."""

_RULE = "=" * 100


def write_completions(path: Path, order: Mapping[str, Any], left: Sequence[Mapping[str, Any]]) -> None:
    """Write :data:`COUNT` drawn completions of the last system that generates under its own chains."""
    final = [exam for exam in left if (exam["method"], exam["chains"]) == ("generate", "own")][-1]
    answers = sorted(read_predictions(final["predictions"]), key=lambda p: (p.query_id, p.answer))
    rng = generator(order["config"]["train_seed"], "completions to read")
    chosen = sorted(rng.permutation(len(answers))[:COUNT].tolist())
    write_text(path, "\n".join(_shown(answers[i]) for i in chosen))


def _shown(p: Prediction) -> str:
    rank = f"rank {p.rank:g} of {len(p.candidates)}" if p.valid else "no valid answer"
    facts = f"{p.system}, {p.query_id}: target {p.target_title}, {rank}"
    more = [f"{p.tokens} tokens", *["truncated"] * p.truncated, *["order copied"] * p.copied_order]
    return f"{_RULE}\n{facts} ({', '.join(more)})\n\n{p.prompt}\n\n--- completion\n{p.output}\n"
