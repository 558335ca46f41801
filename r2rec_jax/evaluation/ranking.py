"""Ranking metrics over candidate lists with exactly one relevant item, the target.

The protocol is that of the R2Rec paper (section 4.1): a list of candidates holds the target and sampled negatives, and
HitRatio@k and NDCG@k are averaged over *all* users. What the paper leaves open is fixed here:

- In a listed answer only the first mention of a candidate counts (the parser has dropped repeats already), and all
  candidates that are not listed share the last rank, N: an answer that stops early never gains by it.
- An answer with no valid candidate is a miss (:data:`MISS`): infinite rank, so 0 under every metric and every k.
- Among scores, ties count against the model: the target ranks behind everything that scores the same. A constant
  scorer is last, not lucky.

Ranks are 1-based. Metrics are averages of per-user values; the per-user values are public, since paired tests
(:mod:`r2rec_jax.evaluation.significance`) need them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

MISS = math.inf
"""The rank of the target in an answer that names no candidate."""

_NDCG3_SLOPES = (1 / math.log2(4), 1 / math.log2(3))


def rank_of_target(ranking: Sequence[int], target: int, n_candidates: int) -> float:
    """1-based rank of the target in an answer that lists candidate positions, best first.

    Args:
        ranking: distinct 0-based candidate positions in the order of their first mention; may be incomplete.
        target: 0-based position of the target.
        n_candidates: length of the candidate list, N.

    Returns:
        The place of the target if listed; N if other candidates are listed but not the target; :data:`MISS` if nothing
        is listed.

    Raises:
        ValueError: a position outside the list, or a repeated one.

    Example:
        >>> rank_of_target([6, 2, 11], target=2, n_candidates=20)
        2
        >>> rank_of_target([6, 2, 11], target=9, n_candidates=20)
        20
        >>> rank_of_target([], target=9, n_candidates=20)
        inf
    """
    if not 0 <= target < n_candidates:
        raise ValueError(f"target must be a position in 0..{n_candidates - 1}; got {target}")
    if any(not 0 <= position < n_candidates for position in ranking) or len(set(ranking)) != len(ranking):
        raise ValueError(f"ranking must hold distinct positions in 0..{n_candidates - 1}; got {list(ranking)}")
    if not ranking:
        return MISS
    return ranking.index(target) + 1 if target in ranking else n_candidates


def rank_from_scores(scores: ArrayLike, target: ArrayLike) -> NDArray[np.float64]:
    """1-based ranks of the targets among scored candidates; ties count against the model.

        rank_b = |{ j : scores[b, j] >= scores[b, target_b] }|

    Args:
        scores: [..., N], higher is better. ``-inf`` is allowed: an item the model cannot score ties with its like.
        target: [...] 0-based positions.

    Returns:
        Ranks [...], as floats.

    Raises:
        ValueError: a score is NaN, or a target lies outside.

    Example:
        >>> rank_from_scores([[0.1, 0.9, 0.5], [1.0, 1.0, 0.0]], [1, 1]).tolist()
        [1.0, 2.0]
    """
    values = np.asarray(scores, dtype=np.float64)
    positions = np.asarray(target)
    if values.ndim == 0 or positions.shape != values.shape[:-1]:
        raise ValueError(f"target must have one position for each list of scores; got shapes {positions.shape} "
                         f"and {values.shape}")
    if np.isnan(values).any():
        raise ValueError(f"scores must be numbers; got {int(np.isnan(values).sum())} NaN (the model has diverged)")
    if positions.size and not (positions.min() >= 0 and positions.max() < values.shape[-1]):
        raise ValueError(f"target must be a position in 0..{values.shape[-1] - 1}; got {positions.min()}.."
                         f"{positions.max()}")
    own = np.take_along_axis(values, positions[..., None].astype(np.int64), axis=-1)
    return (values >= own).sum(axis=-1).astype(np.float64)


def rank_in_catalogue(
    scores: NDArray[np.floating], targets: ArrayLike, seen_offsets: ArrayLike, seen_items: ArrayLike,
) -> NDArray[np.float64]:
    """1-based ranks of the targets among all items but those of the visible history; ties count against the model.

        rank_q = |{ i : scores[q, i] >= scores[q, t_q] }| - |{ i in seen_q, i != t_q : scores[q, i] >= scores[q, t_q] }|

    The target itself always stays in the list. An item that is seen twice is left out once.

    Args:
        scores: [Q, I], higher is better.
        targets: [Q] item indices.
        seen_offsets: [Q+1], seen_items: [N]; query q has seen ``seen_items[seen_offsets[q]:seen_offsets[q+1]]``.

    Returns:
        Ranks [Q], as floats.

    Raises:
        ValueError: the shapes disagree, an index lies outside, or a score is NaN.

    Example:
        Items 0..3 score 4, 3, 2, 1, the target is item 2 and item 0 is seen: only item 1 stands before it.

        >>> rank_in_catalogue(np.array([[4.0, 3.0, 2.0, 1.0]]), [2], [0, 1], [0]).tolist()
        [2.0]
    """
    wanted, offsets, items = (np.asarray(values, dtype=np.int64) for values in (targets, seen_offsets, seen_items))
    n_items = scores.shape[1] if scores.ndim == 2 else 0
    if scores.ndim != 2 or wanted.shape != scores.shape[:1] or offsets.shape != (len(scores) + 1,):
        raise ValueError(f"scores must be [Q, I] with Q targets and Q + 1 offsets; got shapes {scores.shape}, "
                         f"{wanted.shape} and {offsets.shape}")
    if (offsets[0], offsets[-1]) != (0, len(items)) or (np.diff(offsets) < 0).any():
        raise ValueError(f"seen_offsets must rise from 0 to the {len(items)} seen items; got {offsets[0]} to "
                         f"{offsets[-1]}")
    for name, index in (("targets", wanted), ("seen_items", items)):
        if index.size and not (index.min() >= 0 and index.max() < n_items):
            raise ValueError(f"{name} must be item indices in 0..{n_items - 1}; got {index.min()}..{index.max()}")
    rows = np.repeat(np.arange(len(scores)), np.diff(offsets))
    seen = np.unique(rows * n_items + items)
    rows, items = seen // max(1, n_items), seen % max(1, n_items)
    others = items != wanted[rows]
    rows, items = rows[others], items[others]
    if np.isnan(scores).any():
        raise ValueError(f"scores must be numbers; got {int(np.isnan(scores).sum())} NaN (the model has diverged)")
    own = np.take_along_axis(scores, wanted[:, None], axis=1)
    ahead = scores[rows, items] >= own[rows, 0]
    return (scores >= own).sum(axis=1).astype(np.float64) - np.bincount(rows[ahead], minlength=len(scores))


def hit_values(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """Per-user hits: 1 where the rank is at most ``k``, else 0."""
    return (_checked(ranks, k) <= k).astype(np.float64)


def ndcg_values(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    """Per-user NDCG@k with one relevant item: 1 / log2(rank + 1) where rank <= k, else 0.

    With one relevant item the ideal DCG is 1, so DCG and NDCG agree.
    """
    values = _checked(ranks, k)
    return np.where(values <= k, 1.0 / np.log2(values + 1.0), 0.0)


def reciprocal_values(ranks: ArrayLike) -> NDArray[np.float64]:
    """Per-user reciprocal rank, 1 / rank; 0 for a miss."""
    return 1.0 / _checked(ranks, 1)


def hit_ratio(ranks: ArrayLike, k: int) -> float:
    """HitRatio@k: the share of users whose target ranks among the first ``k``.

    Args:
        ranks: [U] 1-based ranks over all users, :data:`MISS` for invalid answers.
        k: cut-off, >= 1.

    Returns:
        A number in [0, 1], never falling with k.

    Raises:
        ValueError: no users, a rank below 1, or k below 1.

    Example:
        >>> hit_ratio([1, 3, 20, MISS], 3)
        0.5
    """
    return float(hit_values(ranks, k).mean())


def ndcg(ranks: ArrayLike, k: int) -> float:
    """NDCG@k: the mean of 1 / log2(rank + 1) over users, 0 beyond the cut-off.

    Jarvelin and Kekalainen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002, with one relevant item.

    Example:
        >>> round(ndcg([1, 2, 3, 4], 3), 4)   # (1 + 0.6309 + 0.5 + 0) / 4
        0.5327
    """
    return float(ndcg_values(ranks, k).mean())


def mrr(ranks: ArrayLike) -> float:
    """Mean reciprocal rank over users, a miss counting 0.

    Voorhees, "The TREC-8 question answering track report", 1999.

    Example:
        >>> mrr([1, 2, MISS])
        0.5
    """
    return float(reciprocal_values(ranks).mean())


def ndcg3_range(hr1: float, hr3: float) -> tuple[float, float]:
    """The range that NDCG@3 must lie in, given HitRatio@1 and HitRatio@3 of the same users.

    The users between the two cut-offs rank second or third, worth 1/log2(3) = 0.631 or 1/log2(4) = 0.5 each:

        HR@1 + 0.5 (HR@3 - HR@1)  <=  NDCG@3  <=  HR@1 + 0.631 (HR@3 - HR@1)

    A published triple outside this range cannot come from one list of ranks.

    Example:
        >>> [round(bound, 3) for bound in ndcg3_range(0.4, 0.6)]
        [0.5, 0.526]
    """
    if not 0 <= hr1 <= hr3 <= 1:
        raise ValueError(f"hit ratios must satisfy 0 <= HR@1 <= HR@3 <= 1; got {hr1} and {hr3}")
    low, high = (hr1 + slope * (hr3 - hr1) for slope in _NDCG3_SLOPES)
    return low, high


def _checked(ranks: ArrayLike, k: int) -> NDArray[np.float64]:
    values = np.asarray(ranks, dtype=np.float64)
    if k < 1:
        raise ValueError(f"k must be >= 1; got {k}")
    if values.size == 0:
        raise ValueError("ranks must hold at least one user (a mean over nobody is undefined); got none")
    if not (values >= 1).all():
        raise ValueError(f"ranks must be >= 1 (they are 1-based; a miss is inf); got {values[~(values >= 1)][0]}")
    return values
