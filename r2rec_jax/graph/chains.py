"""Interaction chains (Eq. 1), drawn for all queries at once.

For a query of user u, the visible history H is all of u's own events before the target. The neighbours are

    U_cand(u) = { u' != u : u' has at least two training edges to items of H }

A chain draws u' uniformly from U_cand, then an ordered pair of distinct shared items (i0, i1) uniformly, and reads

    u -r(u,i0)- i0 -r(u',i0)- u' -r(u',i1)- i1 -r(u,i1)- u

The chains of a query are independent draws, with replacement: where few chains exist, one can come twice. A query
without a neighbour has none. u's own events may include ones that are no training edge (at test time the validation
item); other users appear through training edges only, and with ``before_target`` through those older than the target.

How: u' is proposed uniformly and accepted when it shares two items. That is the exact law, and cheap where most users
share something (MovieLens). Queries with few edges around them, and draws that were rejected too often, list U_cand
through the item -> users index instead and draw from the list, which is the same law. Which way is taken depends on the
query alone, and every random number is a hash of (seed, user, place, draw, purpose), so no query depends on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.randomness import fold, root_key, uniform_index
from r2rec_jax.graph.bipartite import Bipartite

ATTEMPTS = 24
"""Rejected proposals of one draw before its query's neighbours are listed."""

_BITMAP_BYTES = 1 << 26
_EXPANDED = 1 << 22
_PICK_NEIGHBOUR, _PICK_FIRST, _PICK_SECOND = (np.uint64(1 << 40 | code) for code in (1, 2, 3))


@dataclass(frozen=True)
class Chain:
    """u - item0 - neighbour - item1 - u, with the four ratings in the order of the hops."""

    user_idx: int
    item0: int
    neighbour: int
    item1: int
    rating_u0: float
    rating_n0: float
    rating_n1: float
    rating_u1: float


@dataclass(frozen=True, eq=False)
class _Draws:
    """Results so far of the draws of one chunk, [Q, n]; neighbour -1 where there is none."""

    neighbour: NDArray[np.int32]
    items: NDArray[np.int32]
    own_ratings: NDArray[np.float32]
    neighbour_ratings: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Proposals:
    """Users with two edges or more, by the time of their first edge: a prefix can be neighbours at a given time."""

    users: NDArray[np.int32]
    first_edge: NDArray[np.int64]


def _spread(starts: NDArray, lengths: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Owner and position of every element of the ranges ``starts[k] : starts[k] + lengths[k]``.

    Example:
        >>> _spread(np.array([5, 9]), np.array([2, 1]))
        (array([0, 0, 1]), array([5, 6, 9]))
    """
    owners = np.repeat(np.arange(len(lengths)), lengths)
    ends = np.cumsum(lengths)
    positions = np.arange(len(owners)) + np.repeat(starts - (ends - lengths), lengths)
    return owners, positions


def _slices(sizes: NDArray, limit: int) -> Iterator[slice]:
    """Consecutive slices whose sizes sum to at most ``limit`` (or that hold a single larger element)."""
    start, ends = 0, np.cumsum(sizes)
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield slice(start, stop)
        start = stop


def _order_proposals(graph: Bipartite) -> _Proposals:
    users = np.flatnonzero(graph.user_degrees >= 2)
    if not len(users):
        return _Proposals(users.astype(np.int32), users)
    first = np.minimum.reduceat(graph.timestamps, graph.user_offsets[:-1][graph.user_degrees > 0])
    first = first[graph.user_degrees[graph.user_degrees > 0] >= 2]
    order = np.argsort(first, kind="stable")
    return _Proposals(users[order].astype(np.int32), first[order])


class _Chunk:
    """The queries of one chunk, with their visible items as a bitmap [Q, I]."""

    def __init__(self, graph: Bipartite, dataset: Dataset, users: NDArray, places: NDArray, keys: NDArray,
                 cutoffs: NDArray | None, bitmap: NDArray[np.bool_]) -> None:
        events = dataset.interactions
        self.graph, self.users, self.cutoffs = graph, users, cutoffs
        self.keys = keys  # uint64 [Q, n]
        starts = events.offsets[users]
        lengths = np.minimum(places, events.offsets[users + 1] - starts)
        owners, rows = _spread(starts, lengths)
        self.items = events.item_idx[rows]
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        cells = owners * graph.n_items + self.items
        order = np.argsort(cells)
        self._cells, self._ratings = cells[order], events.rating[rows][order]
        self._visible = bitmap
        bitmap[cells] = True
        degrees = graph.item_degrees[self.items]
        self.reach = np.bincount(owners, weights=degrees, minlength=len(users)).astype(np.int64)

    def clear(self) -> None:
        """Give the bitmap back clean."""
        self._visible[self._cells] = False

    def own_rating(self, query: NDArray, item: NDArray) -> NDArray[np.float32]:
        return self._ratings[np.searchsorted(self._cells, query * self.graph.n_items + item)]

    def shared(self, query: NDArray, neighbour: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Edges of each neighbour to visible items of its query: (owner in ``query``, edge), by owner, then item."""
        graph = self.graph
        owners, edges = _spread(graph.user_offsets[neighbour], graph.user_degrees[neighbour])
        kept = self._visible[(query * graph.n_items)[owners] + graph.user_items[edges]]
        if self.cutoffs is not None:
            kept &= graph.timestamps[edges] < self.cutoffs[query][owners]
        kept = np.flatnonzero(kept)
        return owners[kept], edges[kept]

    def take(self, draws: _Draws, query: NDArray, draw: NDArray, neighbour: NDArray) -> NDArray[np.bool_]:
        """Accept the users that share two items, pick the ordered pairs, and store them."""
        accepted = np.zeros(len(query), dtype=bool)
        for part in _slices(self.graph.user_degrees[neighbour], _EXPANDED):
            q, d, n = query[part], draw[part], neighbour[part]
            owners, edges = self.shared(q, n)
            counts = np.bincount(owners, minlength=len(q))
            good = np.flatnonzero((counts >= 2) & (n != self.users[q]))
            starts, sizes = (np.cumsum(counts) - counts)[good], counts[good]
            q, d, n = q[good], d[good], n[good]
            first = uniform_index(fold(self.keys[q, d], _PICK_FIRST), sizes)
            second = uniform_index(fold(self.keys[q, d], _PICK_SECOND), sizes - 1)
            second += second >= first
            draws.neighbour[q, d] = n
            for side, pick in enumerate((first, second)):
                chosen = edges[starts + pick]
                item = self.graph.user_items[chosen]
                draws.items[q, d, side] = item
                draws.neighbour_ratings[q, d, side] = self.graph.ratings[chosen]
                draws.own_ratings[q, d, side] = self.own_rating(q, item)
            accepted[np.arange(len(query))[part][good]] = True
        return accepted

    def reject(self, draws: _Draws, queries: NDArray, proposals: _Proposals) -> NDArray[np.int64]:
        """Draw by rejection for ``queries``; returns those with a draw that found nothing in all its attempts."""
        bound = np.full(len(self.users), len(proposals.users), dtype=np.int64)
        if self.cutoffs is not None:
            bound = np.searchsorted(proposals.first_edge, self.cutoffs, side="left")
        n = self.keys.shape[1]
        queries = queries[bound[queries] > 0]
        query, draw = np.repeat(queries, n), np.tile(np.arange(n), len(queries))
        for attempt in range(ATTEMPTS):
            if not len(query):
                break
            pick = uniform_index(fold(self.keys[query, draw], np.uint64(attempt)), bound[query])
            left = ~self.take(draws, query, draw, proposals.users[pick])
            query, draw = query[left], draw[left]
        return np.unique(query)

    def enumerate(self, draws: _Draws, queries: NDArray) -> None:
        """Draw from the full list of neighbours for the draws of ``queries`` that have none yet."""
        found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int32))]
        for query in queries.tolist():
            neighbours = self._neighbours(query)
            if len(neighbours):
                draw = np.flatnonzero(draws.neighbour[query] < 0)
                pick = uniform_index(fold(self.keys[query, draw], _PICK_NEIGHBOUR), len(neighbours))
                found.append((np.full(len(draw), query), draw, neighbours[pick]))
        query, draw, neighbour = (np.concatenate(column) for column in zip(*found, strict=True))
        if not self.take(draws, query, draw, neighbour).all():
            raise AssertionError("a listed neighbour must share two visible items")

    def _neighbours(self, query: int) -> NDArray[np.int32]:
        """U_cand of one query, ascending: the users that the lists of two visible items have in common."""
        graph = self.graph
        items = self.items[self._starts[query]: self._starts[query + 1]].tolist()
        if self.reach[query] > _EXPANDED:
            counts = np.zeros(graph.n_users, dtype=np.int32)
            for item in items:
                counts[self._users_of(query, item)] += 1  # a user comes once in a list
            found = np.flatnonzero(counts >= 2).astype(np.int32)
        else:
            users = np.sort(np.concatenate([np.zeros(0, np.int32), *(self._users_of(query, item) for item in items)]))
            found = _repeated(users)
        return found[found != self.users[query]]

    def _users_of(self, query: int, item: int) -> NDArray[np.int32]:
        """Users with a training edge to ``item`` that the query may know of."""
        graph = self.graph
        if self.cutoffs is None:
            return graph.users_of(item)
        edges = graph.item_edges[graph.item_offsets[item]: graph.item_offsets[item + 1]]
        return graph.users_of(item)[graph.timestamps[edges] < self.cutoffs[query]]


def _repeated(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """Each value that comes twice or more often in a sorted array, once.

    Example:
        >>> _repeated(np.array([1, 2, 2, 2, 5, 7, 7], dtype=np.int32))
        array([2, 7], dtype=int32)
    """
    same = values[1:] == values[:-1]
    first = same.copy()
    first[1:] &= ~same[:-1]
    return values[1:][first]


def _listing_is_cheaper(graph: Bipartite, reach: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether to list a query's neighbours at once, by the edges touched for the usual five chains.

    Listing touches ``reach`` edges (those of the visible items); five draws at ten proposals each touch fifty times a
    user's mean degree. The number of chains asked for does not enter: the first five of ten are the five.

    Where users are many and share little, proposals are in vain: there are at most ``reach / 2`` neighbours, so below
    ``2 * n_users / ATTEMPTS`` a draw is likelier than not to be rejected every time.
    """
    return (reach * graph.n_users <= 50 * len(graph.user_items)) | (reach * ATTEMPTS <= 2 * graph.n_users)


def _empty(queries: int, chains: int) -> _Draws:
    shape = (queries, chains)
    return _Draws(np.full(shape, -1, np.int32), np.full((*shape, 2), -1, np.int32), np.zeros((*shape, 2), np.float32),
                  np.zeros((*shape, 2), np.float32))


def _cutoffs(dataset: Dataset, users: NDArray, places: NDArray) -> NDArray[np.int64]:
    """Timestamp of the event at each place; the largest integer where the place lies behind the last event."""
    events = dataset.interactions
    rows = events.offsets[users] + places
    inside = rows < events.offsets[users + 1]
    return np.where(inside, events.timestamp[np.minimum(rows, len(events) - 1)], np.iinfo(np.int64).max)


def _as_chains(users: NDArray, draws: _Draws) -> list[tuple[Chain, ...]]:
    columns = np.stack([draws.items[..., 0], draws.neighbour, draws.items[..., 1]], axis=-1).tolist()
    ratings = np.stack([draws.own_ratings[..., 0], draws.neighbour_ratings[..., 0], draws.neighbour_ratings[..., 1],
                        draws.own_ratings[..., 1]], axis=-1).tolist()
    return [
        tuple(Chain(user, *ids, *stars) for ids, stars in zip(row, scores, strict=True) if ids[1] >= 0)
        for user, row, scores in zip(users.tolist(), columns, ratings, strict=True)
    ]


def sample_chains(graph: Bipartite, dataset: Dataset, user_idx: Sequence[int] | NDArray,
                  place: Sequence[int] | NDArray, *, chains: int, seed: int, before_target: bool = False,
                  ) -> list[tuple[Chain, ...]]:
    """Draw ``chains`` interaction chains for every query.

    Args:
        graph: the training edges.
        dataset: all events (a query sees its own user's events before its place, edges or not).
        user_idx, place: the user of each query, and the place of its target.
        chains: how many to draw a query.
        seed: of the draws.
        before_target: use only those edges of other users that are older than the target's event.

    Returns:
        One tuple a query, in order: ``chains`` of them, or none where the user has no neighbour.
    """
    users, places = np.asarray(user_idx, dtype=np.int64), np.asarray(place, dtype=np.int64)
    keys = fold(fold(root_key(seed, "chains"), dataset.user_keys[users]), places.astype(np.uint64))
    keys = fold(keys[:, None], np.arange(chains, dtype=np.uint64)[None, :])
    proposals = _order_proposals(graph)
    per_chunk = max(1, _BITMAP_BYTES // graph.n_items)
    bitmap = np.zeros(min(per_chunk, max(1, len(users))) * graph.n_items, dtype=bool)
    result: list[tuple[Chain, ...]] = []
    for start in range(0, len(users), per_chunk):
        part = slice(start, start + per_chunk)
        cutoffs = _cutoffs(dataset, users[part], places[part]) if before_target else None
        chunk = _Chunk(graph, dataset, users[part], places[part], keys[part], cutoffs, bitmap)
        draws = _empty(len(chunk.users), chains)
        small = _listing_is_cheaper(graph, chunk.reach)
        failed = chunk.reject(draws, np.flatnonzero(~small), proposals)
        chunk.enumerate(draws, np.union1d(np.flatnonzero(small), failed))
        result.extend(_as_chains(chunk.users, draws))
        chunk.clear()
    return result
