"""R_step (Eq. 5): does the reasoning have about as many statements as the SFT targets?

The paper's formula is lost in its text; this is the design's reconstruction. With n statements and the band
[n_lo, n_hi]:

    n < n_lo: n / n_lo        n_lo <= n <= n_hi: 1        n > n_hi: max(0, 1 - (n - n_hi) / n_hi)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2rec_jax.config import RewardConfig


@dataclass(frozen=True)
class Band:
    """Numbers of statements that get the full step reward, both ends included."""

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"a statement band must have 0 <= low <= high; got {self.low}..{self.high}")


def step_reward(statements: int, band: Band) -> float:
    """R_step of a number of statements, in [0, 1].

    Example:
        >>> [step_reward(n, Band(4, 10)) for n in (0, 2, 4, 10, 15, 20, 30)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    """
    if statements < band.low:
        return statements / band.low
    if statements <= band.high:
        return 1.0
    return max(0.0, 1.0 - (statements - band.high) / band.high) if band.high else 0.0


def band_from_targets(counts: Sequence[int]) -> Band:
    """The 5th to 95th percentile of the SFT targets' statement counts, rounded outwards.

    Raises:
        ValueError: there are no counts.
    """
    if len(counts) == 0:
        raise ValueError("the statement band needs at least one SFT target; got none; set rewards.steps_low and "
                         "rewards.steps_high")
    low, high = np.percentile(np.asarray(counts, dtype=np.float64), [5, 95])
    return Band(math.floor(low), math.ceil(high))


def resolve_band(config: RewardConfig, counts: Sequence[int]) -> Band:
    """The configured band, or the one of the SFT targets' statement counts."""
    if config.steps_low is not None and config.steps_high is not None:
        return Band(config.steps_low, config.steps_high)
    return band_from_targets(counts)
