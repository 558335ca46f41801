"""Item-based nearest neighbours with cosine similarity.

Sarwar et al., "Item-based collaborative filtering recommendation algorithms", WWW 2001, and Deshpande and Karypis,
"Item-based top-N recommendation algorithms", TOIS 2004, over binary events:

    s(i, j) = |U_i and U_j| / (sqrt(|U_i| |U_j|) + shrinkage)      score(q, i) = sum over j in H_q and N_k(i) of s(i, j)

U_i are the users with a training edge of item i, H_q the items that query q shows, and N_k(i) the k items most similar
to i, never i itself. With ``normalize`` the score is divided by the sum of s over N_k(i). The co-occurrence counts are
made a block of items at a time from sparse matrices.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from r2rec_jax.baselines.classical.sparse import context_matrix, event_matrix, query_chunks, top_per_row
from r2rec_jax.baselines.events import Contexts, Events
from r2rec_jax.baselines.model import ClosedForm, Params
from r2rec_jax.config.baselines import ItemKNNConfig

PAIRS_AT_ONCE = 1 << 24
"""Pairs of events of one user that a block of items may meet; at most as many co-occurrences are in memory."""


class ItemKNN(ClosedForm):
    """Item-KNN over binary events.

    Args:
        config: neighbours, shrinkage, which events.
        events: training edges.
    """

    name = "item-knn"

    def __init__(self, config: ItemKNNConfig, events: Events) -> None:
        self.config, self.events = config, events

    def init(self, *, key: jax.Array) -> Params:
        """``{"neighbours": int32 [I, k], "similarity": float32 [I, k]}``, most similar first; the key is not used.

        Items with fewer than k neighbours fill up with similarity 0.
        """
        events = self.events if self.config.events == "all" else self.events.liked_only()
        matrix = event_matrix(events)
        by_item = matrix.T.tocsr()
        size = np.sqrt(np.bincount(events.items, minlength=events.n_items)).astype(np.float32)
        k = min(events.n_items, self.config.neighbours or events.n_items)
        found = [self._neighbours(by_item, matrix, size, rows, k) for rows in _blocks(events)]
        neighbours, similarity = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return {"neighbours": neighbours, "similarity": similarity}

    def _neighbours(self, by_item: csr_array, matrix: csr_array, size: NDArray[np.float32], rows: slice, k: int,
                    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """The neighbours of a block of items."""
        together = (by_item[rows] @ matrix).tocoo()
        items, others = together.row + rows.start, together.col
        cosine = together.data / (size[items] * size[others] + self.config.shrinkage)
        apart = items != others
        kept = csr_array((cosine[apart], (together.row[apart], others[apart])), shape=together.shape)
        return top_per_row(kept, k)

    def score(self, params: Any, contexts: Contexts) -> NDArray[np.float32]:
        """Sums of similarities, float32 [Q, I]; 0 where no item of the history is a neighbour."""
        neighbours = np.asarray(params["neighbours"])
        weights = self._weights(neighbours, np.asarray(params["similarity"]))
        visible = contexts if self.config.events == "all" else contexts.liked_only()
        shown = context_matrix(visible, len(neighbours))
        scores = np.empty((len(contexts), len(neighbours)), np.float32)
        for part in query_chunks(*scores.shape):
            scores[part] = (shown[part] @ weights).toarray()
        return scores

    def _weights(self, neighbours: NDArray[np.int32], similarity: NDArray[np.float32]) -> csr_array:
        """Sparse [I, I]: row j holds what an event of item j adds to every item."""
        n_items, k = neighbours.shape
        if self.config.normalize:
            similarity = similarity / np.maximum(similarity.sum(axis=1, keepdims=True), 1e-9)
        offsets = np.arange(0, n_items * k + 1, k)
        by_target = csr_array((similarity.ravel(), neighbours.ravel(), offsets), shape=(n_items, n_items), copy=True)
        by_target.eliminate_zeros()
        return by_target.T.tocsr()


def _blocks(events: Events) -> list[slice]:
    """Slices of items that meet about :data:`PAIRS_AT_ONCE` pairs of events, at least one item each."""
    degrees = np.diff(events.offsets)
    pairs = np.bincount(events.items, weights=degrees[events.user_idx], minlength=events.n_items)
    block = (np.cumsum(pairs) // PAIRS_AT_ONCE).astype(np.int64)
    edges = np.concatenate([[0], np.flatnonzero(np.diff(block)) + 1, [events.n_items]])
    return [slice(int(start), int(stop)) for start, stop in pairwise(edges)]
