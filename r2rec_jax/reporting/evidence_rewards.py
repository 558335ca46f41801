"""What GRPO's curves say in words: first and last steps, held-out prompts, and the signal in a step's gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.reporting.cells import mean_spread, table
from r2rec_jax.reporting.comparison import listed

Entry = Mapping[str, Any]

EDGE = 5
"""The first and the last 1/EDGE of GRPO's steps are compared."""

MATERIAL = 0.05
"""A rise of R_step by less is no rise of the reward that R_rank has to keep up with: near 1 it hardly scatters."""


def reward_edges(curves: Sequence[Entry], name: str) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """(first, last fifth of the points) of every seed's curve that has the value."""
    return [(values[:size], values[-size:]) for curve in curves if name in curve
            for values in (np.array(curve[name], np.float64),) for size in (max(1, len(values) // EDGE),)]


def reward_table(curves: Sequence[Entry]) -> str:
    """First and last fifth of GRPO, mean ± standard deviation over seeds."""
    names = {"reward_rank": "R_rank", "reward_step": "R_step", "reward_true": "R_true", "kl": "KL",
             "entropy": "entropy", "completion_tokens": "tokens", "copied_order": "order copied", "valid": "valid"}
    names = {name: label for name, label in names.items() if any(name in curve for curve in curves)}
    lines = []
    for experiment, own in by_experiment(curves).items():
        for label, place in (("first fifth", 0), ("last fifth", 1)):
            cells = [mean_spread([float(edge[place].mean()) for edge in reward_edges(own, name)],
                             ".1f" if name == "completion_tokens" else ".3f") for name in names]
            lines.append([experiment, own[0]["system"], label, *cells, str(max(curve["steps"][-1] for curve in own)),
                          listed(sorted(curve["seed"] for curve in own))])
    return table(["experiment", "system", "steps", *names.values(), "of steps", "seeds"], lines, right=9)


def reward_lines(curves: Sequence[Entry]) -> str:
    """What rose, with its standard error: a reward that rises through its step part alone is no success."""
    lines = []
    for experiment, own in by_experiment(curves).items():
        (rank, rank_error), (step, step_error) = (reward_rise(own, name) for name in ("reward_rank", "reward_step"))
        name = f"- {experiment} ({own[0]['system']}), first to last fifth"
        held_out = held_out_line(own) + gradient_line(own)
        if not np.isfinite([rank_error, step_error]).all():
            lines.append(f"{name}, of too few steps for an error: R_rank {rank:+.3f}, R_step {step:+.3f}{held_out}.")
            continue
        said = (f"{name}, with the standard error that the scatter of steps gives: R_rank {rank:+.3f} ± "
                f"{rank_error:.3f}, R_step {step:+.3f} ± {step_error:.3f}")
        rose = step > 2 * step_error and step >= MATERIAL
        if 0 < rank <= 2 * rank_error and (rank >= step or not rose):
            said += "; R_rank's rise is within that scatter"
        elif rose and rank <= 2 * rank_error:
            said += "; **the reward rose through R_step alone, which is no success**"
        lines.append(f"{said}{held_out}.")
    return "\n".join(lines)


def held_out_line(curves: Sequence[Entry]) -> str:
    """What prompts that nothing was trained on gave before the first step and after the last, as the end of a sentence;
    nothing where none were asked."""
    asked = [curve for curve in curves if "held_out" in curve]
    if not asked:
        return ""
    looks, seeds = [curve["held_out"] for curve in asked], [curve["seed"] for curve in asked]
    prompts = sorted({look["prompts"] for look in looks})
    said = []
    for name, label in (("reward_rank", "R_rank"), ("hit", "HitRatio@1")):
        ends = np.array([[look[name][0], look[name][-1]] for look in looks])
        before, after = ends.mean(axis=0)
        by_seed = ", ".join(f"{last - first:+.3f}" for first, last in ends)
        said.append(f"{label} {before:.3f} to {after:.3f}" + (f" (by seed {by_seed})" if len(seeds) > 1 else ""))
    whose = f"seed{'s' * (len(seeds) > 1)} {listed(seeds)}"
    return (f"; of the same {listed(prompts)} held-out prompts ({whose}), before the first step and after the last, "
            + ", ".join(said))


def gradient_line(curves: Sequence[Entry]) -> str:
    """How much of a step's gradient its groups have in common, as the end of a sentence; nothing where steps were one
    pass each."""
    known = [curve["gradient"] for curve in curves if "gradient" in curve]
    if not known:
        return ""
    signal, noise, groups = (float(np.mean([entry[name] for entry in known])) for name in ("signal", "noise", "groups"))
    error = float(np.sqrt(np.sum([entry["signal_error"] ** 2 for entry in known])) / len(known))
    whole, most = groups * signal + noise, signal + 2 * error
    if whole <= 0 or most <= 0:
        return f"; no signal is seen in the gradients of {groups:.1f} groups a step"
    low = f"{noise / most:.0f}"
    equal = f"about {noise / signal:.0f}, at least {low}" if signal > 2 * error else f"{low} or more"
    return (f"; signal is {groups * signal / whole:.1%} ± {groups * error / whole:.1%} of a step's squared gradient "
            f"norm, with {groups:.1f} groups, and would equal the noise with {equal}")


def reward_rise(curves: Sequence[Entry], name: str) -> tuple[float, float]:
    """From the first to the last fifth of the points, mean over seeds, and its standard error.

    The error is that of two means of points that scatter independently, as prompts of different steps do.
    """
    edges = reward_edges(curves, name)
    rise = np.mean([last.mean() - first.mean() for first, last in edges])
    variances = [part.var(ddof=1) / len(part) if len(part) > 1 else np.inf for edge in edges for part in edge]
    return float(rise), float(np.sqrt(np.sum(variances)) / len(edges))


def by_experiment(curves: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Curves by the experiment they are of, in their order."""
    groups: dict[str, list[Entry]] = {}
    for curve in curves:
        groups.setdefault(curve["experiment"], []).append(curve)
    return groups
