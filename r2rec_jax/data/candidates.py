"""The negatives of a query: items that compete with the target in its candidate list.

Three samplers, all without replacement and never the target:

    uniform      items the user has no event with, at any time (the paper's protocol)
    popularity   the same items, drawn one after the other in proportion to their training edges; items without a
                 training edge come only when the others run out
    disliked     the user's own items rated at or below ``positive_above``, filled up with uniform ones; at any time
                 for test and validation queries, among training edges for those that are trained on

Each query has a generator of its own, keyed by ``split_seed``, user and target, so its list does not depend on which
other queries were drawn, nor in which order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.randomness import generator

Negatives = Literal["uniform", "popularity", "disliked"]
SAMPLERS: tuple[Negatives, ...] = get_args(Negatives)
CandidateLists = Mapping[str, tuple[int, ...]]
"""query_id -> item_idx, shuffled, the target among them."""

_ROUNDS = 32


@dataclass(frozen=True, eq=False)
class ItemWeights:
    """What ``popularity`` draws by; the running sum is taken once for all queries, and only when it is asked for.

    Attributes:
        values: float64 [I], not negative.
        training: bool [E], the training edges that they count; None where they count none.
    """

    values: NDArray[np.float64]
    training: NDArray[np.bool_] | None = None

    @cached_property
    def cumulative(self) -> NDArray[np.float64]:
        """Running sum of ``values``, float64 [I]."""
        return np.cumsum(self.values, dtype=np.float64)


def draw_uniform(rng: np.random.Generator, excluded: NDArray, n_items: int, count: int) -> list[int]:
    """``count`` distinct items, uniform over ``[0, n_items)`` without ``excluded`` (sorted, unique)."""
    if 2 * (len(excluded) + count) > n_items:
        allowed = np.setdiff1d(np.arange(n_items), excluded, assume_unique=True)
        return rng.choice(allowed, size=count, replace=False).tolist()
    taken: list[int] = []
    used = set(excluded.tolist())
    while len(taken) < count:
        for item in rng.integers(n_items, size=2 * count).tolist():
            if item not in used and len(taken) < count:
                used.add(item)
                taken.append(item)
    return taken


def draw_weighted(rng: np.random.Generator, excluded: NDArray, weights: ItemWeights, count: int) -> list[int]:
    """``count`` distinct items without ``excluded``, one after the other in proportion to ``weights``.

    Draws with replacement and drops what is taken already, which is the same law; when that takes too long, the rest
    is drawn from the explicit list of what is left.
    """
    values, cumulative = weights.values, weights.cumulative
    total = float(cumulative[-1])
    taken: list[int] = []
    used = set(excluded.tolist())
    for _ in range(_ROUNDS if total > 0 else 0):
        for item in np.searchsorted(cumulative, rng.random(2 * count) * total, side="right").tolist():
            if item not in used and len(taken) < count:
                used.add(item)
                taken.append(item)
        if len(taken) == count:
            return taken
    free = np.ones(len(values), dtype=bool)
    free[np.fromiter(used, np.int64, len(used))] = False
    left = np.flatnonzero(free)
    waiting = rng.exponential(size=len(left))
    with np.errstate(divide="ignore"):
        arrival = np.where(values[left] > 0, waiting / values[left], np.inf)
    order = np.lexsort((waiting, arrival))
    return taken + left[order[: count - len(taken)]].tolist()


def check_sampler(dataset: Dataset, negatives: Negatives, positive_above: float) -> None:
    """Refuse a sampler that the data give nothing to draw from.

    Raises:
        ValueError: ``disliked`` without a single rating at or below ``positive_above`` (say, purchases alone).
    """
    if negatives == "disliked" and not (dataset.interactions.rating <= positive_above).any():
        raise ValueError(f"data.negatives: disliked needs events that are no likes; {dataset.name} has none; "
                         "choose uniform or popularity")


def longest_lists(dataset: Dataset, users: NDArray, negatives: Negatives, positive_above: float,
                  known: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """How many candidates there are for a like of each of ``users``, the target included, int64 [len(users)].

    Args:
        dataset: all events.
        users: user_idx.
        negatives: the sampler.
        positive_above: ratings above this are likes.
        known: bool [E], the events among which ``disliked`` draws; None: all.
    """
    events = dataset.interactions
    found = 1 + len(dataset.items) - np.diff(events.offsets)
    if negatives == "disliked":
        disliked = (events.rating <= positive_above) & (True if known is None else known)
        found = found + np.bincount(events.user_idx[disliked], minlength=len(found))
    return found[users]


def check_room(dataset: Dataset, users: NDArray, longest: NDArray[np.int64], size: int) -> None:
    """Refuse a list length that one of the drawn users cannot fill.

    Args:
        dataset: all events.
        users: user_idx of every query.
        longest: of :func:`longest_lists`, for each of them.
        size: the length that is asked for.

    Raises:
        ValueError: with the largest number that serves all.
    """
    worst = int(np.argmin(longest))
    if longest[worst] < size:
        raise _no_room(dataset, int(users[worst]), size, int(longest[worst]), ", which serves every drawn user")


def _no_room(dataset: Dataset, user_idx: int, size: int, longest: int, serves: str = " or less") -> ValueError:
    free, n_items = len(dataset.items) - len(dataset.history(user_idx)), len(dataset.items)
    fix = f"lower data.candidates to {longest}{serves}" if longest > 1 else "give the events of more items"
    return ValueError(f"data.candidates must leave room for {size - 1} items other than the target; user "
                      f"{dataset.users.ids[user_idx].as_py()!r} has no event with only {free} of the {n_items} items; "
                      f"got {size}; {fix}")


def draw_candidates(dataset: Dataset, user_idx: int, target: int, *, size: int, negatives: Negatives,
                    positive_above: float, weights: ItemWeights, split_seed: int, trained_on: bool = False,
                    ) -> tuple[int, ...]:
    """The shuffled candidate list of one query.

    Args:
        dataset: all events.
        user_idx, target: the query's user and item.
        size: length of the list, the target included.
        negatives: the sampler.
        positive_above: ratings above this are likes.
        weights: training edges of every item, for ``popularity``, and which they are.
        trained_on: a model sees this list and its target, so it must not say what held-out events are.
        split_seed: with the raw ids of user and target, the only source of randomness.

    Returns:
        item_idx, ``size`` of them, distinct, the target among them.

    Raises:
        ValueError: the user has too few items left.
    """
    events = dataset.interactions
    rows = events.rows(user_idx)
    own = events.item_idx[rows]
    n_items, count = len(dataset.items), size - 1
    rng = generator(split_seed, "candidates", int(dataset.user_keys[user_idx]), int(dataset.item_keys[target]))
    drawn: list[int] = []
    if negatives == "disliked":
        known = weights.training[rows] if trained_on and weights.training is not None else True
        disliked = np.sort(own[(events.rating[rows] <= positive_above) & (own != target) & known])
        drawn = rng.choice(disliked, size=min(count, len(disliked)), replace=False).tolist()
    longest = 1 + len(drawn) + n_items - len(own)
    if longest < size:
        raise _no_room(dataset, user_idx, size, longest)
    if negatives == "popularity":
        drawn += draw_weighted(rng, np.sort(own), weights, count)
    else:
        drawn += draw_uniform(rng, np.sort(own), n_items, count - len(drawn))
    return tuple(rng.permutation(np.array([target, *drawn])).tolist())
