"""GRPO's curves out of a run's ``metrics.jsonl``, in as many points as a plot can show."""

from __future__ import annotations

from typing import Any

import numpy as np

from r2rec_jax.reporting.plots import read_metrics
from r2rec_jax.stages.experiments.plan import Trial

POINTS = 100
"""Longest curve; of longer ones the means of equal stretches are kept, the last of which may be shorter."""

CURVES = ("reward", "reward_rank", "reward_step", "reward_true", "kl", "entropy", "completion_tokens", "copied_order",
          "valid", "truncated")
HELD_OUT = ("reward", "reward_rank", "reward_step", "reward_true", "hit", "valid")


def grpo_curves(trial: Trial) -> list[dict[str, Any]]:
    """The curves of a trial's GRPO; none where it has no GRPO.

    Returns:
        ``[{"experiment", "system", "seed", "steps": [...], "reward_rank": [...], ...}]``; a step stands for the stretch
        that ends with it. What a step does not tell, since it trained on no token, is interpolated. Where the run asked
        held-out prompts (``grpo.eval_every``), ``held_out`` has the same of them, a point a look, from step 0.
    """
    path = trial.config.run_dir + "/metrics.jsonl"
    try:
        rows = [row for row in read_metrics(path) if row.get("stage") == "grpo"]
    except FileNotFoundError:
        return []
    looks, rows = [row for row in rows if "eval_reward" in row], [row for row in rows if row["step"]]
    if not rows:
        return []
    size = -(-len(rows) // POINTS)
    parts = np.split(np.arange(len(rows)), range(size, len(rows), size))
    curve: dict[str, Any] = {
        "experiment": trial.name, "system": "sft+grpo" if trial.config.grpo.start == "sft" else "grpo",
        "seed": trial.seed, "steps": [rows[part[-1]]["step"] for part in parts]}
    for name in CURVES:
        known = [number for number, row in enumerate(rows) if isinstance(row.get(name), int | float)]
        if known:
            values = np.interp(np.arange(len(rows)), known, [rows[number][name] for number in known])
            curve[name] = [round(float(values[part].mean()), 5) for part in parts]
    if looks:
        curve["held_out"] = {"prompts": looks[0]["eval_prompts"], "steps": [row["step"] for row in looks]} | {
            name: [round(row[f"eval_{name}"], 5) for row in looks] for name in HELD_OUT if f"eval_{name}" in looks[0]}
    return [curve]
