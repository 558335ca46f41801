"""One step of message passing on the bipartite graph of users and items, without a dense matrix.

Users and items are the nodes of one graph, users first: item i is node U + i. With A [N, N] its adjacency over the
training edges, N = U + I, the one primitive is A X: every node sums the rows of its neighbours. A is symmetric, so the
gradient of the sum is the sum itself; a custom rule tells JAX so, and the backward pass costs what the forward pass
costs. Both normalisations in use scale rows before and after it:

    symmetric   D^-1/2 A D^-1/2    He et al., "LightGCN", SIGIR 2020, Eq. 3; Wang et al., "NGCF", SIGIR 2019, Eq. 8
    mean        D^-1 A             Hamilton et al., "GraphSAGE", NIPS 2017, the mean aggregator

The sums run over neighbour lists cut into pieces of at most :data:`WIDTH` entries: piece sums first, then sums of
pieces, level by level, until each node has one. Every level is WIDTH row gathers and additions of static shape,
without a scatter: the order of summation is fixed, so results repeat exactly, and on a CPU it is more than ten times
faster than a sorted ``segment_sum``, which writes out the gathered rows of all edges first.
"""

from __future__ import annotations

from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32
from numpy.typing import NDArray

from r2rec_jax.baselines.events import Events

WIDTH = 16
"""Entries of a piece of a neighbour list."""

Norm = Literal["symmetric", "mean"]


@flax.struct.dataclass
class Graph:
    """The bipartite graph as neighbour lists in pieces.

    Attributes:
        levels: int32 [WIDTH, pieces] each; the first level holds nodes, the next ones pieces of the level before; an
            index one beyond the last row stands for nobody. The last level, [1, N], is each node's one piece. (It also
            keeps XLA from computing the level before anew for every use of the sums.)
        degree: float32 [N], edges of each node.
    """

    levels: tuple[Int32[np.ndarray | Array, "W C"], ...]
    degree: Float[np.ndarray | Array, " N"]


def build_graph(events: Events, width: int = WIDTH) -> Graph:
    """The graph of ``events``, as NumPy arrays; filter the events first where only likes are edges."""
    by_item = np.argsort(events.items, kind="stable")
    neighbours = np.concatenate([events.n_users + events.items, events.user_idx[by_item]])
    degree = np.concatenate([np.diff(events.offsets), np.bincount(events.items, minlength=events.n_items)])
    offsets = np.concatenate([[0], np.cumsum(degree)])
    return Graph(neighbour_lists(offsets, neighbours, len(degree), width), degree.astype(np.float32))


def neighbour_lists(offsets: NDArray, columns: NDArray, n_columns: int, width: int = WIDTH) -> tuple[NDArray, ...]:
    """Cut adjacency lists into pieces of ``width``, pieces into pieces of pieces, until each row has at most one.

    Args:
        offsets: [rows + 1]; row r's neighbours are ``columns[offsets[r]:offsets[r+1]]``.
        columns: the neighbours.
        n_columns: how many there are; this index stands for no neighbour.
        width: entries of a piece, >= 2.

    Returns:
        Levels of int32 [width, pieces], see :class:`Graph`.

    Example:
        Rows with the neighbours (4, 5, 6) and () under width 2, of 7 columns, by pieces: ``(4, 5) (6, 7)``, where 7 is
        nobody; ``(0, 1)``; and ``(0) (1)``, where 1 is nobody.
    """
    if width < 2:
        raise ValueError(f"width must be >= 2 (pieces of one entry never come to an end); got {width}")
    levels = []
    while True:
        counts = np.diff(offsets)
        if levels and counts.max(initial=0) <= 1:
            return *levels, np.where(counts > 0, offsets[:-1], n_columns).astype(np.int32)[None]
        pieces = -(-counts // width)
        starts = np.concatenate([[0], np.cumsum(pieces)])
        row = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(row)) - np.repeat(offsets[:-1], counts)
        lists = np.full((width, starts[-1]), n_columns, np.int32)
        lists[within % width, starts[row] + within // width] = columns
        levels.append(lists)
        offsets, n_columns = starts, int(starts[-1])
        columns = np.arange(n_columns)


@jax.custom_vjp
def neighbour_sums(graph: Graph, rows: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """A X: the sum of its neighbours' rows for every node; its gradient is the same sum, since A is symmetric."""
    for lists in graph.levels:
        padded = jnp.concatenate([rows, jnp.zeros((1, rows.shape[1]), rows.dtype)])
        rows = padded.at[lists[0]].get(mode="promise_in_bounds")
        for column in range(1, lists.shape[0]):
            rows = rows + padded.at[lists[column]].get(mode="promise_in_bounds")
    return rows


def _sums_forward(graph: Graph, rows: Array) -> tuple[Array, Graph]:
    return neighbour_sums(graph, rows), graph


def _sums_backward(graph: Graph, cotangent: Array) -> tuple[None, Array]:
    return None, neighbour_sums(graph, cotangent)


neighbour_sums.defvjp(_sums_forward, _sums_backward)


def scales(degree: Float[np.ndarray | Array, " N"], norm: Norm) -> tuple[Array, Array]:
    """Factors [N, 1] of a node's row before it is sent, and of the sum that the node receives; 0 without neighbours.

    ``symmetric`` gives d^-1/2 twice, ``mean`` gives 1 and 1/d.
    """
    safe = jnp.maximum(jnp.asarray(degree), 1.0)[:, None]
    present = (jnp.asarray(degree) > 0)[:, None]
    if norm == "symmetric":
        root = jnp.where(present, jax.lax.rsqrt(safe), 0.0)
        return root, root
    return jnp.ones_like(safe), jnp.where(present, 1.0 / safe, 0.0)


def propagate(graph: Graph, rows: Float[Array, "N D"], norm: Norm) -> Float[Array, "N D"]:
    """The normalised sum that every node receives from its neighbours, zero for nodes without any."""
    sent, received = scales(graph.degree, norm)
    return neighbour_sums(graph, rows * sent) * received
