"""Position bias and popularity of every system as a PNG: two heat maps a block of equal conditions.

Left: HitRatio@1 by the target's number in the candidate list, as its distance from the system's own mean in standard
errors of a draw of so many users: strong and weak systems show their bias on one scale, and noise stays pale.
Right: HitRatio@1 by training edges of the target.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r2rec_jax.evaluation.comparison import BlockReport
from r2rec_jax.reporting.comparison import heading
from r2rec_jax.reporting.plots import make_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

Row = Mapping[str, Any]

LIMIT = 5.0
"""Standard errors that the colours of position bias reach at least."""


def plot_breakdowns(reports: Sequence[BlockReport], path: str | Path) -> Path:
    """Draw every block, one under the other.

    Raises:
        ValueError: there is no block.
    """
    if not reports:
        raise ValueError(f"{Path(path).name} needs at least one compared block; got none")
    heights = [1.5 + 0.3 * len(report.rows) for report in reports]
    figure = make_figure(13, sum(heights))
    grid = figure.add_gridspec(len(reports), 2, width_ratios=[2.2, 1], height_ratios=heights)
    for line, report in enumerate(reports):
        _draw_positions(figure.add_subplot(grid[line, 0]), report)
        if any("by_popularity" in row for row in report.rows):
            _draw_popularity(figure.add_subplot(grid[line, 1]), report)
    return save_figure(figure, Path(path))


def deviations(rows: Sequence[Row]) -> NDArray[np.float64]:
    """[systems, numbers] distance of HitRatio@1 at each number of the list from the system's mean, in standard errors.

        z = (hr - m) / sqrt(m (1 - m) / questions),   0 where m is 0 or 1, NaN where no target stands

    Several answers to one question are not independent, so they count once.
    """
    last = max(entry["number"] for row in rows for entry in row["by_position"])
    values = np.full((len(rows), last), np.nan)
    for line, row in enumerate(rows):
        deviation = math.sqrt(row["hr@1"] * (1 - row["hr@1"]))
        for entry in row["by_position"]:
            difference = (entry["hr@1"] - row["hr@1"]) * math.sqrt(entry.get("questions", entry["users"]))
            values[line, entry["number"] - 1] = difference / deviation if deviation else 0.0
    return values


def _draw_positions(axes: Axes, report: BlockReport) -> None:
    values = deviations(report.rows)
    limit = max(LIMIT, float(np.nanmax(np.abs(values))))
    image = axes.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("standard errors", fontsize=7)
    axes.set_title(f"{heading(report)}\nposition bias: HitRatio@1 from the system's mean", fontsize=9, loc="left")
    axes.set_xlabel("number of the target in the candidate list", fontsize=8)
    axes.set_xticks(range(values.shape[1]), [str(number) for number in range(1, values.shape[1] + 1)], fontsize=7)
    _label_systems(axes, report.rows)


def _draw_popularity(axes: Axes, report: BlockReport) -> None:
    rows = report.rows
    count = max(len(row.get("by_popularity", ())) for row in rows)
    values = np.full((len(rows), count), np.nan)
    for line, row in enumerate(rows):
        for column, bucket in enumerate(row.get("by_popularity", ())):
            values[line, column] = bucket["hr@1"]
    axes.imshow(values, aspect="auto", cmap="Greens", vmin=0, vmax=1)
    for (line, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            axes.text(column, line, f"{value:.2f}", ha="center", va="center", fontsize=7,
                      color="white" if value > 0.6 else "black")
    longest = max((row.get("by_popularity", ()) for row in rows), key=len)
    axes.set_title("HitRatio@1 by popularity", fontsize=9, loc="left")
    axes.set_xlabel("training edges of the target", fontsize=8)
    axes.set_xticks(range(count), ["{} to {}".format(*bucket["edges"]) for bucket in longest], fontsize=7, rotation=20)
    _label_systems(axes, rows)


def _label_systems(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [row["system"] for row in rows], fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
