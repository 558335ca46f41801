"""Plots of a list's result file: GRPO's curves with and without SFT (the paper's Figure 5), and where hits come from.

The ranking and the step reward have panels of their own: a total that rises through the latter alone is no success.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.reporting.comparison import position_rates, position_stretches
from r2rec_jax.reporting.plots import make_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Entry = Mapping[str, Any]

REWARDS = (
    ("reward_rank", "Ranking reward R_rank", "mean R_rank (0 to 1)"),
    ("held_out/reward_rank", "R_rank of held-out prompts", "mean R_rank (0 to 1)"),
    ("reward_step", "Step reward R_step", "mean R_step (0 to 1)"),
    ("reward_true", "True statements R_true", "mean R_true (0 to 1)"),
    ("valid", "Valid answers", "share of completions"),
    ("kl", "KL to the reference policy", "nats per token"),
    ("entropy", "Entropy of the policy", "nats per token"),
    ("completion_tokens", "Completion length", "tokens"),
    ("copied_order", "Answers that copy the order", "share of completions"),
    ("truncated", "Cut off at the limit", "share of completions"),
)
"""Of a curve: its key, or those that lead to it; title and label of the panel."""
SHARES = ("reward_rank", "held_out/reward_rank", "reward_step", "reward_true", "valid", "copied_order", "truncated")
FEW = 20
"""Points that are marked each."""

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray")
CHAINS = {"own": "its own chains", "swapped": "another user's chains", "none": "no chains"}


def plot_rewards(found: Entry, path: Path) -> Path:
    """Every curve, mean over seeds with the range of the seeds as a band.

    Raises:
        ValueError: the result file holds no curves.
    """
    groups: dict[str, list[Entry]] = {}
    for curve in found["curves"]:
        with_sft = "after SFT" if curve["system"] == "sft+grpo" else "without SFT"
        groups.setdefault(f"{curve['experiment']}: {with_sft}", []).append(curve)
    panels = [panel for panel in REWARDS if any(band(own, panel[0])[0].size for own in groups.values())]
    if not panels:
        raise ValueError(f"{path.name} needs curves of GRPO; the result file {found['name']} has none")
    figure = make_figure(4.2 * min(4, len(panels)), 3.1 * -(-len(panels) // 4) + 0.6)
    drawn: list[Any] = []
    for place, (name, title, label) in enumerate(panels, start=1):
        axes = figure.add_subplot(-(-len(panels) // 4), min(4, len(panels)), place)
        lines = [_draw_band(axes, own, name, colour)
                 for own, colour in zip(groups.values(), _colours(len(groups)), strict=True)]
        drawn = drawn or lines
        _finish(axes, title, "GRPO step", label)
        if name in SHARES:
            axes.set_ylim(-0.02, 1.02)
    figure.legend(drawn, [f"{label} ({len(own)} seed{'s' * (len(own) > 1)})" for label, own in groups.items()],
                  loc="outside upper center", ncols=3, fontsize=9)
    return save_figure(figure, path)


def band(curves: Sequence[Entry], name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(steps [S], values [seeds, S]) of the curves that have the value, at the steps that all of them have."""
    *within, name = name.split("/")
    for key in within:
        curves = [curve[key] for curve in curves if key in curve]
    own = [dict(zip(curve["steps"], curve[name], strict=True)) for curve in curves if name in curve]
    steps = sorted(set.intersection(*(set(points) for points in own))) if own else []
    values = [[points[step] for step in steps] for points in own]
    return np.array(steps, dtype=np.int64), np.array(values, np.float64).reshape(len(own), len(steps))


def plot_hits(found: Entry, path: Path) -> Path:
    """HitRatio@1 by popularity and by place of the true item: every system above, own and other chains below."""
    rows = [(row["system"], row) for row in found["breakdowns"]]
    last = found["diagnostics"][-1]["experiment"] if found["diagnostics"] else None
    chains = [(f"{row['system']}, {CHAINS[row['chains']]}", row) for row in found["diagnostics"]
              if row["experiment"] == last]
    lines = [group for group in (rows, chains) if group]
    if not lines:
        raise ValueError(f"{path.name} needs a headline experiment that was evaluated; the result file "
                         f"{found['name']} has none")
    figure = make_figure(13, 3.9 * len(lines))
    for line, group in enumerate(lines):
        whose = "" if group is rows else ", other chains"
        _draw_popularity(figure.add_subplot(len(lines), 2, 2 * line + 1), group, whose)
        _draw_places(figure.add_subplot(len(lines), 2, 2 * line + 2), group, whose)
    return save_figure(figure, path)


def _draw_band(axes: Axes, curves: Sequence[Entry], name: str, colour: Any) -> Any:
    steps, values = band(curves, name)
    if not steps.size:
        return axes.plot([], [], color=colour)[0]
    if len(values) > 1:
        axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    few = {"marker": "o", "markersize": 3} if len(steps) <= FEW else {}
    return axes.plot(steps, values.mean(axis=0), color=colour, linewidth=1.6, **few)[0]


def _draw_popularity(axes: Axes, group: Sequence[tuple[str, Entry]], whose: str) -> None:
    counted = [(label, row) for label, row in group if row["by_popularity"]]
    for (label, row), colour in zip(counted, _colours(len(counted)), strict=True):
        buckets = row["by_popularity"]
        rates = [bucket["hr@1"] for bucket in buckets]
        axes.plot(range(len(buckets)), rates, marker="o", markersize=4, label=label, color=colour)
    if counted:
        longest = max((row["by_popularity"] for _, row in counted), key=len)
        axes.set_xticks(range(len(longest)), ["{} to {}".format(*b["edges"]) for b in longest])
    _finish(axes, f"HitRatio@1 by popularity of the true item{whose}", "ratings of the item in training", "HitRatio@1")
    axes.set_ylim(bottom=0)


def _draw_places(axes: Axes, group: Sequence[tuple[str, Entry]], whose: str) -> None:
    stretches = position_stretches([row for _, row in group])
    for (label, row), colour in zip(group, _colours(len(group)), strict=True):
        rates = [np.nan if rate is None else rate for rate in position_rates(row, stretches)]
        axes.plot(range(len(stretches)), rates, marker="o", markersize=4, label=label, color=colour)
    axes.set_xticks(range(len(stretches)), [f"{low} to {high}" for low, high in stretches])
    _finish(axes, f"HitRatio@1 by place of the true item{whose}", "its number in the list of candidates", "HitRatio@1")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5), framealpha=0.7)


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    return list(COLOURS[:count]) if count <= len(COLOURS) else list(colormaps["turbo"](np.linspace(0.05, 0.95, count)))
