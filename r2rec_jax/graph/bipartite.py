"""The bipartite user-item graph as CSR arrays, in both directions, over training edges only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.data.interactions import Dataset


@dataclass(frozen=True, eq=False)
class Bipartite:
    """Edges between U users and I items.

    Attributes:
        n_users, n_items: U and I.
        user_offsets: int64 [U+1]; user u's edges are ``user_offsets[u]:user_offsets[u+1]``.
        user_items: int32 [E], item of each edge, ascending within a user.
        ratings: float32 [E], in the order of ``user_items``.
        timestamps: int64 [E], in the order of ``user_items``.
        item_offsets: int64 [I+1].
        item_users: int32 [E], user of each edge in item order, ascending within an item.
        item_edges: int32 [E], where the edge stands in ``user_items``.
    """

    n_users: int
    n_items: int
    user_offsets: NDArray[np.int64]
    user_items: NDArray[np.int32]
    ratings: NDArray[np.float32]
    timestamps: NDArray[np.int64]
    item_offsets: NDArray[np.int64]
    item_users: NDArray[np.int32]
    item_edges: NDArray[np.int32]

    @property
    def user_degrees(self) -> NDArray[np.int64]:
        """Edges of every user, int64 [U]."""
        return np.diff(self.user_offsets)

    @property
    def item_degrees(self) -> NDArray[np.int64]:
        """Edges of every item, int64 [I]."""
        return np.diff(self.item_offsets)

    def items_of(self, user_idx: int) -> NDArray[np.int32]:
        """Items that share an edge with a user, ascending."""
        return self.user_items[self.user_offsets[user_idx]: self.user_offsets[user_idx + 1]]

    def users_of(self, item_idx: int) -> NDArray[np.int32]:
        """Users that share an edge with an item, ascending."""
        return self.item_users[self.item_offsets[item_idx]: self.item_offsets[item_idx + 1]]


def _offsets(sorted_index: NDArray, size: int) -> NDArray[np.int64]:
    offsets = np.zeros(size + 1, dtype=np.int64)
    np.cumsum(np.bincount(sorted_index, minlength=size), out=offsets[1:])
    return offsets


def build(dataset: Dataset, edge_mask: NDArray[np.bool_]) -> Bipartite:
    """Build the graph of the events in ``edge_mask`` (bool [E], from ``data.splits.training_edges``)."""
    events = dataset.interactions
    n_users, n_items = len(dataset.users), len(dataset.items)
    rows = np.flatnonzero(edge_mask)
    rows = rows[np.argsort(events.user_idx[rows].astype(np.int64) * n_items + events.item_idx[rows])]
    users, items = events.user_idx[rows], events.item_idx[rows]
    by_item = np.argsort(items, kind="stable").astype(np.int32)
    return Bipartite(
        n_users, n_items, _offsets(users, n_users), items, events.rating[rows], events.timestamp[rows],
        _offsets(items, n_items), users[by_item], by_item,
    )
