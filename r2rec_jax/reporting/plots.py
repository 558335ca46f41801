"""Training curves as PNG: ``loss.png`` and ``reward.png``, drawn from the rows of ``metrics.jsonl``.

A row is ``{"stage": "sft" | "grpo" | "pretrain", "step": 3, ...values}``. The ranking reward and the step reward have
panels of their own: a total that rises through the step reward alone is no success, and one curve would hide it.

A panel whose values no row holds is left out; a plot without any panel is an error. Noisy curves are drawn faint,
with their moving average on top.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r2rec_jax.files import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

DPI = 120
SMOOTH_FROM = 20
"""Curves with fewer points than this are drawn as they are."""


@dataclass(frozen=True)
class Panel:
    """One set of axes.

    Attributes:
        stage: whose rows.
        title: what is shown.
        label: of the y axis, with the unit.
        names: alternatives for the key in a row; the first that any row holds is drawn.
        bottom, top: fixed limits of the y axis, where the quantity has natural ones.
        smooth: whether many points get a moving average.
    """

    stage: str
    title: str
    label: str
    names: tuple[str, ...]
    bottom: float | None = None
    top: float | None = None
    smooth: bool = True


LOSS_PANELS = (
    Panel("pretrain", "Pretraining", "loss (nats per token)", ("loss",), bottom=0),
    Panel("sft", "SFT", "loss (nats per completion token)", ("loss",), bottom=0),
    Panel("sft", "SFT, held-out examples", "loss (nats per completion token)", ("eval_loss",), bottom=0, smooth=False),
)

REWARD_PANELS = (
    Panel("grpo", "Ranking reward R_rank", "mean R_rank (0 to 1)", ("reward_rank",), bottom=0, top=1),
    Panel("grpo", "R_rank of held-out prompts", "mean R_rank (0 to 1)", ("eval_reward_rank",), bottom=0, top=1,
          smooth=False),
    Panel("grpo", "Step reward R_step", "mean R_step (0 to 1)", ("reward_step",), bottom=0, top=1),
    Panel("grpo", "True statements R_true", "mean R_true (0 to 1)", ("reward_true",), bottom=0, top=1),
    Panel("grpo", "Total reward, weighted", "mean R", ("reward",), bottom=0),
    Panel("grpo", "Valid answers", "share of completions", ("valid",), bottom=0, top=1),
    Panel("grpo", "KL to the reference policy", "KL (nats per token)", ("kl",), bottom=0),
    Panel("grpo", "Entropy of the policy", "entropy (nats per token)", ("entropy",), bottom=0),
)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``metrics.jsonl``; a last line without its line break was torn by a kill and is left out.

    Raises:
        ValueError: a complete line is not a JSON object (names the line).
    """
    text = Path(path).read_bytes()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text[:text.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1], start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}, is not JSON ({error})") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}, must be a JSON object; got {line[:40]}")
        rows.append(row)
    return rows


def plot_losses(rows: Sequence[Row], path: str | Path, title: str = "") -> Path:
    """Draw the losses of pretraining and SFT, whichever the rows hold, side by side.

    Raises:
        ValueError: no row holds a loss.
    """
    return _plot(rows, LOSS_PANELS, Path(path), title)


def plot_rewards(rows: Sequence[Row], path: str | Path, title: str = "") -> Path:
    """Draw GRPO's curves: the rewards apart, their sum, the valid-answer rate, KL and entropy.

    Raises:
        ValueError: no row holds any of them.
    """
    return _plot(rows, REWARD_PANELS, Path(path), title)


def curve(rows: Iterable[Row], panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of a panel, by step; empty where no row holds a finite value.

    A step that appears twice (a resumed run) keeps its last row.
    """
    own = [row for row in rows if row.get("stage") == panel.stage and isinstance(row.get("step"), int)]
    for name in panel.names:
        found = {row["step"]: float(row[name]) for row in own if _is_number(row.get(name))}
        if found:
            steps = np.array(sorted(found))
            return steps, np.array([found[step] for step in steps])
    return np.empty(0, dtype=np.int64), np.empty(0)


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over the last ``window`` values; at the start over as many as there are.

    Example:
        >>> moving_average(np.array([2.0, 4.0, 6.0, 8.0]), 2).tolist()
        [2.0, 3.0, 5.0, 7.0]
    """
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, values.size + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def _plot(rows: Sequence[Row], panels: Sequence[Panel], path: Path, title: str) -> Path:
    curves = [(panel, *curve(rows, panel)) for panel in panels]
    drawn = [(panel, steps, values) for panel, steps, values in curves if steps.size]
    if not drawn:
        wanted = sorted({f"{p.stage}: {p.names[0]}" for p in panels})
        raise ValueError(f"{path.name} needs rows with one of [{', '.join(wanted)}]; got {len(rows)} rows without any")
    columns = min(3, len(drawn))
    lines = math.ceil(len(drawn) / columns)
    figure = make_figure(4.4 * columns, 3.1 * lines + 0.3 * bool(title))
    for place, (panel, steps, values) in enumerate(drawn, start=1):
        _draw(figure.add_subplot(lines, columns, place), panel, steps, values)
    if title:
        figure.suptitle(title, fontsize=11)
    return save_figure(figure, path)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG; the file appears whole or not at all."""
    with replaced(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
    return path


def make_figure(width: float, height: float) -> Figure:
    """A figure, its size in inches, on the Agg canvas: no display, and no state of pyplot's that could leak between
    plots."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw(axes: Axes, panel: Panel, steps: np.ndarray, values: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    if steps.size < SMOOTH_FROM or not panel.smooth:
        axes.plot(steps, values, marker="o", markersize=3, linewidth=1.4, color="tab:blue")
    else:
        window = max(5, steps.size // 20)
        axes.plot(steps, values, linewidth=0.8, color="tab:blue", alpha=0.35, label="each update")
        axes.plot(steps, moving_average(values, window), linewidth=1.8, color="tab:blue",
                  label=f"mean of the last {window}")
        axes.legend(fontsize=7, loc="best", framealpha=0.7)
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel("optimiser update", fontsize=9)
    axes.set_ylabel(panel.label, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.grid(alpha=0.3)
    if panel.top is not None:
        axes.set_ylim(panel.bottom, panel.top * 1.03)
    elif panel.bottom is not None and panel.bottom <= values.min() < values.max():
        axes.set_ylim(panel.bottom, values.max() + 0.06 * (values.max() - panel.bottom))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
