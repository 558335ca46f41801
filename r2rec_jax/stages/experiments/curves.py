"""GRPO's curves out of a run's ``metrics.jsonl``, in as many points as a plot can show."""

from __future__ import annotations

from typing import Any

import numpy as np

from r2rec_jax.reporting.plots import read_metrics
from r2rec_jax.stages.experiments.plan import Trial
from r2rec_jax.training.metrics import LOOK, is_look

POINTS = 100
"""Longest curve; of longer ones the means of equal stretches are kept, the last of which may be shorter."""

CURVES = ("reward", "reward_rank", "reward_step", "reward_true", "kl", "entropy", "completion_tokens", "copied_order",
          "valid", "truncated")
GRADIENT = ("signal", "noise", "groups")
HELD_OUT = ("reward", "reward_rank", "reward_step", "reward_true", "hit", "valid")


def grpo_curves(trial: Trial) -> list[dict[str, Any]]:
    """The curves of a trial's GRPO; none where it has no GRPO.

    Returns:
        ``[{"experiment", "system", "seed", "steps": [...], "reward_rank": [...], ...}]``; a step stands for the stretch
        that ends with it. What a step does not tell, since it trained on no token, is interpolated. Where the run asked
        held-out prompts (``grpo.eval_every``), the same ones from before the first step to after the last, ``held_out``
        has as much of them, a point a look. ``gradient`` has means over the steps that know them: ``signal`` and
        ``noise`` of one group's gradient (squared norm of its expectation, and its variance), ``signal_error``, the
        standard error that the scatter of steps gives the first, the ``groups`` of a step, and how many ``steps``
        those were.
    """
    path = trial.config.run_dir + "/metrics.jsonl"
    try:
        rows = [row for row in read_metrics(path) if row.get("stage") == "grpo"]
    except FileNotFoundError:
        return []
    looks, rows = [row for row in rows if is_look(row)], [row for row in rows if not is_look(row)]
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
    known = [row for row in rows if "grad_signal" in row]
    if len(known) > 1:
        signal, noise, groups = (np.array([row[f"grad_{name}"] for row in known], np.float64) for name in GRADIENT)
        signal, noise = signal / groups**2, noise / groups
        means = {"signal": signal.mean(), "signal_error": signal.std(ddof=1) / np.sqrt(len(known)),
                 "noise": noise.mean(), "groups": groups.mean()}
        curve["gradient"] = {name: float(f"{value:.4g}") for name, value in means.items()} | {"steps": len(known)}
    steps, counts = [row["step"] for row in looks], {row["eval_prompts"] for row in looks}
    if looks and len(counts) == 1 and steps[0] == 0 and steps[-1] == rows[-1]["step"]:  # not changed on the way
        curve["held_out"] = {"prompts": counts.pop(), "steps": steps} | {
            name: [round(row[f"{LOOK}{name}"], 5) for row in looks] for name in HELD_OUT if f"{LOOK}{name}" in looks[0]}
    return [curve]
