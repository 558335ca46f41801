"""What a recommender sees: the training edges of all users, and what each query shows of its own user.

Indices are those of the data set. Arrays are flat with offsets (CSR): there is no dense user-item matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.queries import Query


@dataclass(frozen=True, eq=False)
class Events:
    """Training edges, sorted by user and then by place.

    Attributes:
        n_users, n_items: U and I of the whole data set (some may have no training edge).
        offsets: int64 [U+1]; user u's events are ``offsets[u]:offsets[u+1]``, oldest first.
        items: int32 [E].
        liked: bool [E], rated above ``data.positive_above``.
    """

    n_users: int
    n_items: int
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    liked: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def user_idx(self) -> NDArray[np.int32]:
        """The user of every event, int32 [E]."""
        return np.repeat(np.arange(self.n_users, dtype=np.int32), np.diff(self.offsets))

    def liked_only(self) -> Events:
        """The same users and items with the liked events only."""
        offsets, kept = _keep(self.offsets, self.liked)
        return Events(self.n_users, self.n_items, offsets, self.items[kept], self.liked[kept])


@dataclass(frozen=True, eq=False)
class Contexts:
    """What Q queries show of their own users: all events before the target, oldest first.

    A user or an item may lie beyond those of training: models give finite scores all the same.

    Attributes:
        user_idx: int32 [Q].
        offsets: int64 [Q+1]; query q shows ``items[offsets[q]:offsets[q+1]]``.
        items: int32 [N].
        liked: bool [N].
    """

    user_idx: NDArray[np.int32]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    liked: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user_idx)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """The query of every event, int64 [N]."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.offsets))

    def liked_only(self) -> Contexts:
        """The same queries with the liked events only."""
        offsets, kept = _keep(self.offsets, self.liked)
        return Contexts(self.user_idx, offsets, self.items[kept], self.liked[kept])

    def known(self, n_items: int) -> Contexts:
        """The same queries without events of items at or beyond ``n_items``, which a model has no row for."""
        offsets, kept = _keep(self.offsets, (self.items >= 0) & (self.items < n_items))
        return Contexts(self.user_idx, offsets, self.items[kept], self.liked[kept])

    def part(self, start: int, stop: int) -> Contexts:
        """Queries ``start`` to ``stop`` (exclusive)."""
        stop = min(stop, len(self))
        low, high = int(self.offsets[start]), int(self.offsets[stop])
        return Contexts(self.user_idx[start:stop], self.offsets[start:stop + 1] - low, self.items[low:high],
                        self.liked[low:high])

    def latest(self, length: int) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_]]:
        """The latest ``length`` events of every query, the newest in the last column.

        Returns:
            items int32 [Q, length], 0 where empty; liked bool [Q, length], true where empty; and mask bool
            [Q, length], true where there is an event.

        Example:
            A query that shows items 7, 3 (3 the newest) has the row ``[0, 0, 7, 3]`` under length 4, with the mask
            ``[False, False, True, True]``, and ``[3]`` under length 1.
        """
        counts = np.diff(self.offsets)
        back = np.arange(length, 0, -1)
        mask = back[None, :] <= counts[:, None]
        rows = np.where(mask, self.offsets[1:, None] - back[None, :], 0)
        if not len(self.items):
            return np.zeros(mask.shape, np.int32), np.ones(mask.shape, np.bool_), mask
        return np.where(mask, self.items[rows], 0).astype(np.int32), ~mask | self.liked[rows], mask


def events_from(dataset: Dataset, training: NDArray[np.bool_], positive_above: float) -> Events:
    """The training edges of a data set.

    Args:
        dataset: all events.
        training: bool [E], which events are training edges (from ``data.splits.training_edges``).
        positive_above: an event is liked when its rating is above this.
    """
    events = dataset.interactions
    offsets, kept = _keep(events.offsets, training)
    return Events(len(dataset.users), len(dataset.items), offsets, events.item_idx[kept],
                  events.rating[kept] > positive_above)


def contexts_from(dataset: Dataset, queries: Sequence[Query], positive_above: float) -> Contexts:
    """What each query shows of its own user: all events of a smaller place than the target's.

    Args:
        dataset: all events.
        queries: in the order wanted.
        positive_above: an event is liked when its rating is above this.
    """
    events = dataset.interactions
    users = np.fromiter((query.user_idx for query in queries), np.int32, len(queries))
    places = np.fromiter((query.place for query in queries), np.int64, len(queries))
    starts = events.offsets[users]
    counts = np.minimum(places, events.offsets[users + 1] - starts)
    offsets = np.zeros(len(queries) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    rows = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], counts)
    return Contexts(users, offsets, events.item_idx[rows], events.rating[rows] > positive_above)


def _keep(offsets: NDArray[np.int64], mask: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Offsets of the rows that ``mask`` keeps, and the mask itself."""
    running = np.concatenate([np.zeros(1, np.int64), np.cumsum(mask, dtype=np.int64)])
    return running[offsets], mask
