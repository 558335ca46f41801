"""Events as sparse matrices: users (or queries) by items, with ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from r2rec_jax.baselines.events import Contexts, Events

SCORES_AT_ONCE = 1 << 24
"""How many scores a chunk of queries may hold (64 MB in float32)."""


def event_matrix(events: Events) -> csr_array:
    """Users by items, float32 [U, I], one where there is an event."""
    ones = np.ones(len(events), np.float32)
    return csr_array((ones, events.items, events.offsets), shape=(events.n_users, events.n_items), copy=True)


def context_matrix(contexts: Contexts, n_items: int) -> csr_array:
    """Queries by items, float32 [Q, I]; items at or beyond ``n_items`` are left out."""
    known = contexts.known(n_items)
    return csr_array((np.ones(len(known.items), np.float32), known.items, known.offsets),
                     shape=(len(contexts), n_items))


def query_chunks(n_queries: int, n_items: int) -> list[slice]:
    """Slices of queries whose scores of all items stay below :data:`SCORES_AT_ONCE`, at least one query each."""
    size = max(1, SCORES_AT_ONCE // max(1, n_items))
    return [slice(start, min(n_queries, start + size)) for start in range(0, n_queries, size)]


def top_per_row(matrix: csr_array, k: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The ``k`` largest stored values of every row of [R, N], largest first, ties by smaller column.

    Returns:
        columns int32 [R, k] and values float32 [R, k]; rows with fewer stored values end in column 0 with value 0.
    """
    offsets = matrix.indptr
    n_rows = len(offsets) - 1
    rows = np.repeat(np.arange(n_rows), np.diff(offsets))
    order = np.lexsort((matrix.indices, np.negative(np.asarray(matrix.data)), rows))
    place = np.arange(len(rows)) - offsets[rows]
    kept = place < k
    columns = np.zeros((n_rows, k), np.int32)
    values = np.zeros((n_rows, k), np.float32)
    columns[rows[kept], place[kept]] = matrix.indices[order][kept]
    values[rows[kept], place[kept]] = matrix.data[order][kept]
    return columns, values
