"""Is one system better than another, on the same users? A paired bootstrap over users, Wilcoxon, and Holm's correction.

Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 13 and 16; Sakai, "Evaluating evaluation
metrics based on the bootstrap", SIGIR 2006; Wilcoxon, "Individual comparisons by ranking methods", 1945; Holm, "A
simple sequentially rejective multiple test procedure", 1979.

The unit is the user. Where systems ran under several seeds, the values of all (seed, query) pairs are put one after the
other, and what is resampled is users: a drawn user brings the pairs of all seeds. The spread is therefore that of
drawing users from the same population, with the drawn candidates and the trained models held as they are. How much a
result moves with its seed is another question, answered by the standard deviation over seeds that tables print beside
the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from r2rec_jax.evaluation.predictions import Prediction
from r2rec_jax.evaluation.ranking import hit_values

_CHUNK = 500


@dataclass(frozen=True)
class PairedDifference:
    """Mean difference between two systems on the same users.

    Attributes:
        difference: mean of ``a - b`` over users, or over (seed, query) pairs.
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
    a: ArrayLike, b: ArrayLike, *, users: Sequence[str] | None = None, seed: int = 0, draws: int = 10_000,
    level: float = 0.95,
) -> PairedDifference:
    """Resample users with replacement, and look at the mean of the paired differences each time.

        p = min(1, 2 min(#{d* <= 0} + 1, #{d* >= 0} + 1) / (draws + 1))

    Equal systems give p = 1; the smallest p that can come out is 2 / (draws + 1).

    Args:
        a, b: [N] values of the two systems, the same (seed, query) pairs in the same order.
        users: [N] whose value each is; all values of a drawn user come together. Without it each value is a user.
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
    return bootstrap_columns((first - second)[:, None], users=users, seed=seed, draws=draws, level=level)[0]


def bootstrap_columns(
    differences: NDArray[np.float64], *, users: Sequence[str] | None = None, seed: int = 0, draws: int = 10_000,
    level: float = 0.95,
) -> list[PairedDifference]:
    """:func:`paired_bootstrap` of many differences on the same users at once; all columns see the same resamples.

    Args:
        differences: [N, C] ``a - b`` of (seed, query) pairs.
        users, seed, draws, level: as in :func:`paired_bootstrap`.

    Returns:
        One result a column; each is what that column alone would give.
    """
    if not np.isfinite(differences).all():
        raise ValueError("per-user values must be finite; use hit or gain values, not ranks")
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"draws must be >= 1 and level in (0, 1); got {draws} and {level}")
    sums, counts = _by_user(differences, users)
    means = _resampled_means(sums, counts, draws, np.random.default_rng(seed))
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    # Rounding must not decide on which side of 0 an exact tie falls.
    below, above = (means <= 1e-12).sum(axis=0), (means >= -1e-12).sum(axis=0)
    p = np.minimum(1.0, 2 * (np.minimum(below, above) + 1) / (draws + 1))
    centre = sums.sum(axis=0) / counts.sum()
    return [PairedDifference(float(centre[c]), float(low[c]), float(high[c]), float(p[c]), len(counts), draws)
            for c in range(differences.shape[1])]


def wilcoxon_p(a: ArrayLike, b: ArrayLike, *, users: Sequence[str] | None = None) -> float:
    """Two-sided p of Wilcoxon's signed-rank test on the per-user differences.

    A user with several values (seeds) counts once, with the mean difference, since the test takes its pairs for
    independent. Users without a difference are left out, as Wilcoxon did; without any difference p is 1. Where all
    differences are as large, as of hits, which are 0 or 1, the test is a sign test, and exact; else it also weighs how
    far the systems are apart, and of many users, or with ties, p is that of a normal distribution with correction for
    continuity.

    Args:
        a, b, users: as in :func:`paired_bootstrap`.

    Example:
        >>> round(wilcoxon_p([1, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1]), 4)
        0.0156
    """
    from scipy.stats import binomtest, wilcoxon

    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or not first.size:
        raise ValueError(f"paired systems must have a value for each of the same users; got shapes {first.shape} and "
                         f"{second.shape}")
    sums, counts = _by_user((first - second)[:, None], users)
    # Differences that are equal but for rounding must share a rank.
    differences = np.round(sums[:, 0] / counts, 12)
    differences = differences[differences != 0]
    if not differences.size:
        return 1.0
    if np.ptp(np.abs(differences)) == 0:
        return float(binomtest(int((differences > 0).sum()), differences.size).pvalue)
    result: Any = wilcoxon(differences, correction=True)
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that hold for a whole family of tests at once.

        p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)),   p_(1) <= ... <= p_(m)

    Rejecting where the corrected value is below alpha keeps the chance of any false rejection below alpha.

    Example:
        >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    scaled = np.minimum(1.0, values[order] * np.arange(len(values), 0, -1))
    corrected = np.empty_like(values)
    corrected[order] = np.maximum.accumulate(scaled)
    return corrected.tolist()


def compare(
    a: Sequence[Prediction], b: Sequence[Prediction], *, seed: int = 0, draws: int = 10_000,
    values: Callable[[ArrayLike], NDArray[np.float64]] = lambda ranks: hit_values(ranks, 1),
) -> PairedDifference:
    """:func:`paired_bootstrap` of two systems' predictions, HitRatio@1 unless ``values`` says otherwise; of several
    answers to a query their mean. Users are resampled with all of their queries, of which training has many.

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
    first, second = (_of_queries(side, order, values) for side in (a, b))
    return paired_bootstrap(first, second, users=[left[query].user_id for query in order], seed=seed, draws=draws)


def _of_queries(predictions: Sequence[Prediction], order: Sequence[str],
                values: Callable[[ArrayLike], NDArray[np.float64]]) -> list[float]:
    """Each query's mean over its answers."""
    found: dict[str, list[float]] = {query: [] for query in order}
    for p, value in zip(predictions, values([p.rank for p in predictions]).tolist(), strict=True):
        found[p.query_id].append(value)
    return [float(np.mean(own)) for own in found.values()]


def _by_user(differences: NDArray[np.float64], users: Sequence[str] | None
             ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums [U, C] and counts [U] of every user's rows, users in the order of their first row."""
    if users is None:
        return differences, np.ones(len(differences))
    if len(users) != len(differences):
        raise ValueError(f"every value must have its user; got {len(users)} users for {len(differences)} values")
    place = {user: row for row, user in enumerate(dict.fromkeys(users))}
    rows = np.array([place[user] for user in users])
    sums = np.zeros((len(place), differences.shape[1]))
    np.add.at(sums, rows, differences)
    return sums, np.bincount(rows).astype(np.float64)


def _resampled_means(sums: NDArray[np.float64], counts: NDArray[np.float64], draws: int, rng: np.random.Generator
                     ) -> NDArray[np.float64]:
    """Means [draws, C] over the values of as many users as there are, drawn with replacement."""
    size = len(sums)
    chunks = []
    for start in range(0, draws, _CHUNK):
        drawn = rng.integers(0, size, (min(_CHUNK, draws - start), size))
        drawn += size * np.arange(len(drawn))[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)
        chunks.append((times @ sums) / (times @ counts)[:, None])
    return np.concatenate(chunks)
