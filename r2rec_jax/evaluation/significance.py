"""Is one system better than another, on the same users? A paired bootstrap over users.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 16; Sakai, "Evaluating evaluation
metrics based on the bootstrap", SIGIR 2006. The spread is that of drawing users: two runs that differ in their training
seed need averaging over seeds besides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from r2rec_jax.evaluation.predictions import Prediction
from r2rec_jax.evaluation.ranking import hit_values

_CHUNK = 500


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference between two systems on the same users.

    Attributes:
        difference: mean of ``a - b`` over users.
        low, high: percentile confidence interval of the difference.
        p: two-sided p-value.
        users: how many users both answered.
        draws: bootstrap resamples.
    """

    difference: float
    low: float
    high: float
    p: float
    users: int
    draws: int


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, seed: int = 0, draws: int = 10_000, level: float = 0.95,
) -> PairedDifference:
    """Resample users with replacement, and look at the mean of the per-user differences each time.

        p = min(1, 2 min(#{d* <= 0} + 1, #{d* >= 0} + 1) / (draws + 1))

    Equal systems give p = 1; the smallest p that can come out is 2 / (draws + 1).

    Args:
        a, b: [U] per-user values of the two systems, the same users in the same order.
        seed: of the resampling.
        draws: how many resamples.
        level: of the interval.

    Raises:
        ValueError: different or empty lists of users, values that are not finite, or settings out of range.

    Example:
        >>> result = paired_bootstrap([1, 1, 1, 1, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0, 1, 0])
        >>> result.difference, bool(result.p < 0.05)
        (0.625, True)
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(f"paired systems must have a value for each of the same users; got shapes {first.shape} and "
                         f"{second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("per-user values must be finite; use hit or gain values, not ranks")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be >= 1 and level in (0, 1); got {draws} and {level}")
    differences = first - second
    means = _resampled_means(differences, draws, np.random.default_rng(seed))
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    # Rounding must not decide on which side of 0 an exact tie falls.
    below, above = (means <= 1e-12).sum(), (means >= -1e-12).sum()
    p = min(1.0, 2 * (min(below, above) + 1) / (draws + 1))
    return PairedDifference(float(differences.mean()), float(low), float(high), float(p), first.size, draws)


def compare(
    a: Sequence[Prediction], b: Sequence[Prediction], *, seed: int = 0, draws: int = 10_000,
    values: Callable[[ArrayLike], NDArray[np.float64]] = lambda ranks: hit_values(ranks, 1),
) -> PairedDifference:
    """:func:`paired_bootstrap` of two systems' predictions, HitRatio@1 unless ``values`` says otherwise.

    Raises:
        ValueError: the systems answered different queries, or the same ones with other candidates.
    """
    left, right = ({p.query_id: p for p in side} for side in (a, b))
    if left.keys() != right.keys():
        apart = sorted(left.keys() ^ right.keys())
        raise ValueError(f"compared systems must answer the same queries; {len(apart)} are answered by one only, "
                         f"{apart[0]} first")
    for query_id, prediction in left.items():
        other = right[query_id]
        if (prediction.target, sorted(prediction.candidates)) != (other.target, sorted(other.candidates)):
            raise ValueError(f"compared systems must rank the same candidates; query {query_id} differs (another "
                             "split_seed or other negatives)")
    order = sorted(left)
    return paired_bootstrap(
        values([left[q].rank for q in order]), values([right[q].rank for q in order]), seed=seed, draws=draws)


def _resampled_means(values: NDArray[np.float64], draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    size = values.size
    chunks = [
        values[rng.integers(0, size, (min(_CHUNK, draws - start), size))].mean(axis=1)
        for start in range(0, draws, _CHUNK)
    ]
    return np.concatenate(chunks)
