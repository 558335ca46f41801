"""Does a model use the interaction chains? The same queries with the chains of other users in their prompts.

A model that uses its chains gets worse with foreign ones; one that does not will not notice. Every query of a split
gets the chains of another user's query: queries are ordered by a hash of the seed and their users, and take the chains
of those that stand as many places on as the user with the most queries has. Prompts leave out, and count, a chain that
holds one of the query's candidates, which the donor may have rated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.data.queries import Split
from r2rec_jax.data.randomness import fold, root_key
from r2rec_jax.stages.prepared import Prepared


def donors(users: Sequence[int], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Whose chains each query gets: a permutation that pairs no user with itself.

    Args:
        users: of every query.
        keys: [queries] a hash of each query's user, which the order is drawn by.

    Raises:
        ValueError: one user has more than half of the queries.

    Example:
        >>> donors([7, 8, 7, 9], np.array([2, 1, 2, 3], np.uint64)).tolist()   # by keys: 8, 7, 7, 9; two places on
        [3, 2, 1, 0]
    """
    order = np.lexsort((np.asarray(users), keys))
    most = int(np.unique(np.asarray(users), return_counts=True)[1].max())
    if 2 * most > len(users):
        raise ValueError(f"swapped chains need queries of which no user has more than half; one has {most} of "
                         f"{len(users)}; use evaluate.chains: none, or a split of more users")
    found = np.empty(len(users), np.int64)
    found[order] = np.roll(order, -most)
    return found


def with_swapped_chains(prepared: Prepared, split: Split, seed: int) -> Prepared:
    """The same data, each query of ``split`` with another user's chains.

    Args:
        prepared: the data.
        split: whose queries; all frozen ones swap with each other, however many are evaluated.
        seed: of the pairing.

    Raises:
        ValueError: one user has more than half of the queries.
    """
    queries = prepared.queries[split]
    users = [query.user_idx for query in queries]
    keys = fold(root_key(seed, "swapped chains"), prepared.dataset.user_keys[users])
    given = {query.query_id: prepared.chains_of(queries[donor])
             for query, donor in zip(queries, donors(users, keys).tolist(), strict=True)}
    return replace(prepared, chains={**prepared.chains, **given})
