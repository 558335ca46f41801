"""The bipartite user-item graph as CSR arrays, in both directions, over training edges only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

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

    @cached_property
    def user_degrees(self) -> NDArray[np.int64]:
        """Edges of every user, int64 [U]."""
        return np.diff(self.user_offsets)

    @cached_property
    def item_degrees(self) -> NDArray[np.int64]:
        """Edges of every item, int64 [I]."""
        return np.diff(self.item_offsets)

    def items_of(self, user_idx: int) -> NDArray[np.int32]:
        """Items that share an edge with a user, ascending."""
        return self.user_items[self.user_offsets[user_idx]: self.user_offsets[user_idx + 1]]

    def users_of(self, item_idx: int) -> NDArray[np.int32]:
        """Users that share an edge with an item, ascending."""
        return self.item_users[self.item_offsets[item_idx]: self.item_offsets[item_idx + 1]]


def build(dataset: Dataset, edge_mask: NDArray[np.bool_]) -> Bipartite:
    """Build the graph of the events in ``edge_mask`` (bool [E], from ``data.splits.training_edges``).

    Both directions come from one counting sort each, so time and memory are linear in the edges.
    """
    events = dataset.interactions
    shape = len(dataset.users), len(dataset.items)
    rows = np.flatnonzero(edge_mask)
    users, items = events.user_idx[rows], events.item_idx[rows]
    user_offsets = np.zeros(shape[0] + 1, dtype=np.int64)
    np.cumsum(np.bincount(users, minlength=shape[0]), out=user_offsets[1:])
    indptr = user_offsets.astype(np.int32)
    by_user: Any = csr_array((np.arange(len(rows), dtype=np.int32), items, indptr), shape)
    by_user.sort_indices()
    rows, items = rows[by_user.data], by_user.indices
    by_user.data = np.arange(len(rows), dtype=np.int32)
    by_item: Any = by_user.tocsc()
    return Bipartite(*shape, user_offsets, items, events.rating[rows], events.timestamp[rows],
                     by_item.indptr.astype(np.int64), by_item.indices, by_item.data)
