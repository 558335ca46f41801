"""Attention over whole rows in tiles of scores, exact, with a backward pass that recomputes the probabilities.

A tile is a block of queries by a block of keys. Which tiles hold a pair that sees each other follows from the segments
(:func:`active_tiles`), and no other tile is computed: none above the diagonal, none between segments that were packed
into one row, none between completions that share a prompt. The loops over tiles have counts that are known at run time
only, so one program serves all rows of a shape. Within a block of queries the softmax is carried from tile to tile; the
forward pass keeps the output and the log-sum-exp of each query, and the backward pass takes P = exp(S - lse) from them
(Dao et al., "FlashAttention", 2022, section 3.1):

    dV += P^T dO    dP = dO V^T    dS = P * (dP - sum(dO * O))    dQ += dS K    dK += dS^T Q

What makes it fast on a CPU: a tile stays in the caches; it lies keys by queries, so that all products are plain ones
(one that contracts over the first axis of both factors runs at two fifths of the speed) and maxima and sums run along
vectors; the query heads of a group are columns of one product; a mask is added as one array that is written out for
all heads of a group (computed within the addition, it tripled the cost of a tile). Numbers are in ARCHITECTURE.md.

A tile in which a row sees nothing leaves that row's numbers as they are, bit for bit, so that a row does not depend on
those beside it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

CPU_BLOCK = 256
"""Queries a tile, at most; it has half as many keys, or all where there is one tile."""
NARROW_BLOCK = 64
"""The same on a CPU for heads of at most :data:`NARROW`: their products are slow in any tile, so the rest decides."""
NARROW = 32
ACCELERATOR_BLOCK = 1024
"""The same where a step of a loop costs more than its work: GPUs and TPUs."""

_MASKED = -1e30
_MANY = 2**30


def default_block(width: int) -> int:
    """Queries a tile for heads of ``width`` on jax's default backend."""
    if jax.default_backend() != "cpu":
        return ACCELERATOR_BLOCK
    return NARROW_BLOCK if width <= NARROW else CPU_BLOCK


def tile_sizes(length: int, block: int) -> tuple[int, int]:
    """(queries, keys) a tile: as few blocks of queries as ``block`` allows, of equal size, a multiple of 16.

    Example: 576 tokens and blocks of 256 give (192, 96); 1,000 give (256, 128); 250 are one tile, (256, 256).
    """
    blocks = -(-length // block)
    queries = -(-length // (16 * blocks)) * 16
    return queries, queries if blocks == 1 else queries // 2


def active_tiles(segments: Int[Array, "B T"], parents: Int[Array, "B T"], queries: int, keys: int
                 ) -> tuple[Int[Array, "I J"], Int[Array, " I"]]:
    """Which blocks of keys each block of queries needs: block numbers, rising, and how many of them count.

    A tile is taken when the segments or parents of its queries lie between the smallest and the largest segment of its
    keys in some row; that may take one too many, and never one too few.

    Example: segments [1, 1, 2, 2], no parents, tiles of 2 by 2: numbers [[0, 1], [1, 0]], counts [1, 1].
    """
    batch, length = segments.shape
    of_keys = segments.reshape(batch, -1, keys)
    least, most = _least(of_keys), of_keys.max(axis=2)

    def near(ids: Int[Array, "B T"]) -> Bool[Array, "B I J"]:
        blocks = ids.reshape(batch, -1, queries)
        return (_least(blocks)[:, :, None] <= most[:, None]) & (blocks.max(axis=2)[:, :, None] >= least[:, None])

    before = jnp.arange(queries - 1, length, queries)[:, None] >= jnp.arange(0, length, keys)[None]
    active = ((near(segments) | near(parents)) & before).any(axis=0)
    return jnp.argsort(~active, axis=1, stable=True).astype(jnp.int32), active.sum(axis=1, dtype=jnp.int32)


def _least(ids: Int[Array, "B I Q"]) -> Int[Array, "B I"]:
    return jnp.where(ids > 0, ids, _MANY).min(axis=2)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend_rows(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    parents: Int[Array, "B T"],
    block: int | None = None,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention of rows that hold several segments, scores scaled by 1/sqrt(H), softmax in float32.

    Args:
        q, k, v: queries, keys and values.
        segments, parents: who sees whom, by the rule of ``attention``.
        block: queries a tile; None is :func:`default_block`.

    Returns:
        The output; of a token that sees no key (padding) it must not be used, and it has no gradient.
    """
    return _forward(q, k, v, segments, parents, block)[0]


class _Tiles:
    """The arrays of a call, cut into blocks; letters I, J number blocks of queries and keys, M is group x queries."""

    def __init__(self, k: Any, segments: Any, parents: Any, heads: int, block: int | None) -> None:
        self.length, self.kv_heads = k.shape[1], k.shape[2]
        self.group = heads // self.kv_heads
        self.queries, self.keys = tile_sizes(self.length, block or default_block(k.shape[3]))
        self.room = -(-self.length // self.queries) * self.queries
        self.segments, self.parents = self._padded(segments), self._padded(parents)
        self.blocks = self.room // self.queries
        if self.blocks > 1:
            self.numbers, self.counts = active_tiles(self.segments, self.parents, self.queries, self.keys)

    def _padded(self, x: Any) -> Any:
        return jnp.pad(x, [(0, 0), (0, self.room - self.length), *[(0, 0)] * (x.ndim - 2)])

    def cut(self, x: Float[Array, "B T N H"], size: int) -> Float[Array, "I B K M H"]:
        """By blocks of ``size`` tokens and heads of keys."""
        batch, width, kv_heads = x.shape[0], x.shape[3], self.kv_heads
        parts = self._padded(x).reshape(batch, -1, size, kv_heads, x.shape[2] // kv_heads, width)
        return parts.transpose(1, 0, 3, 4, 2, 5).reshape(self.room // size, batch, kv_heads, -1, width)

    def joined(self, x: Float[Array, "I B K M H"], size: int) -> Float[Array, "B T N H"]:
        """The reverse of :meth:`cut`."""
        blocks, batch, kv_heads, _, width = x.shape
        parts = x.reshape(blocks, batch, kv_heads, -1, size, width).transpose(1, 0, 4, 2, 3, 5)
        return parts.reshape(batch, self.room, -1, width)[:, :self.length]

    def bias(self, i: Any, j: Any) -> Float[Array, "B 1 S M"]:
        """0 where a key sees and is seen, a large negative number elsewhere, for all query heads of a group."""
        def part(x: Any, number: Any, size: int) -> Any:
            return jax.lax.dynamic_slice_in_dim(x, number * size, size, axis=1)

        segment, parent = part(self.segments, i, self.queries), part(self.parents, i, self.queries)
        key = part(self.segments, j, self.keys)[:, :, None]
        related = ((segment[:, None] == key) | (parent[:, None] == key)) & (key > 0)
        before = i * self.queries + jnp.arange(self.queries)[None] >= j * self.keys + jnp.arange(self.keys)[:, None]
        bias = jnp.where(related & before[None], 0, jnp.float32(_MASKED))
        return jnp.concatenate([bias] * self.group, axis=2)[:, None]

    def over_queries(self, body: Any, carry: Any) -> Any:
        """``body(i, carry)`` for every block of queries. One alone is no loop: that compiles in half the time."""
        return body(0, carry) if self.blocks == 1 else jax.lax.fori_loop(0, self.blocks, body, carry)

    def over_keys(self, i: Any, step: Any, carry: Any) -> Any:
        """``step(j, carry)`` for every block of keys that block ``i`` of queries needs, in order."""
        if self.blocks == 1:
            return step(0, carry)
        mine = self.numbers[i]
        return jax.lax.fori_loop(0, self.counts[i], lambda n, carry: step(mine[n], carry), carry)


def _product(axes: str, a: Array, b: Array) -> Array:
    return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


def _forward(q: Any, k: Any, v: Any, segments: Any, parents: Any, block: int | None) -> tuple[Any, tuple[Any, ...]]:
    tiles = _Tiles(k, segments, parents, q.shape[2], block)
    queries, keys = tiles.cut(q, tiles.queries), tiles.cut(k, tiles.keys)
    values = tiles.cut(v, tiles.keys).swapaxes(3, 4)  # once, here: in the product XLA takes a slower kernel on a CPU
    scale = q.shape[3] ** -0.5
    columns = queries.shape[1:4]

    def per_block(i: Any, done: tuple[Any, Any]) -> tuple[Any, Any]:
        query = queries[i]

        def step(j: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            top, total, out = carry
            scores = _product("BKSH,BKMH->BKSM", keys[j], query) * scale + tiles.bias(i, j)
            higher = jnp.maximum(top, scores.max(axis=2))
            weights, fade = jnp.exp(scores - higher[:, :, None]), jnp.exp(top - higher)
            added = _product("BKHS,BKSM->BKHM", values[j], weights.astype(v.dtype))
            return higher, total * fade + weights.sum(axis=2), out * fade[:, :, None] + added

        start = (jnp.full(columns, _MASKED), jnp.zeros(columns), jnp.zeros((*columns[:2], q.shape[3], columns[2])))
        top, total, out = tiles.over_keys(i, step, start)
        # A query that saw no key has garbage here; its probabilities are 0 in the backward pass. What is not a number
        # stays so.
        lse = jnp.where(top < _MASKED / 2, -_MASKED, top + jnp.log(jnp.maximum(total, 1e-30)))
        out = (out / jnp.maximum(total, 1e-30)[:, :, None]).swapaxes(2, 3).astype(q.dtype)
        return done[0].at[i].set(out), done[1].at[i].set(lse)

    empty = (jnp.zeros_like(queries), jnp.zeros(queries.shape[:4]))
    out, lse = tiles.over_queries(per_block, empty)
    out = tiles.joined(out, tiles.queries)
    return out, (q, k, v, segments, parents, out, lse)


def _backward(block: int | None, saved: tuple[Any, ...], grad: Any) -> tuple[Any, ...]:
    q, k, v, segments, parents, out, lse = saved
    tiles = _Tiles(k, segments, parents, q.shape[2], block)
    queries, keys, values = tiles.cut(q, tiles.queries), tiles.cut(k, tiles.keys), tiles.cut(v, tiles.keys)
    grads = tiles.cut(grad, tiles.queries)
    turned = keys.swapaxes(3, 4)
    delta = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=3, keepdims=True)
    deltas = tiles.cut(delta, tiles.queries)[..., 0]
    scale = q.shape[3] ** -0.5

    def per_block(i: Any, done: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        query, grad_out, lses, own = queries[i], grads[i], lse[i][:, :, None], deltas[i][:, :, None]

        def step(j: Any, carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
            dq, dk, dv = carry
            key = keys[j]
            scores = _product("BKSH,BKMH->BKSM", key, query) * scale + tiles.bias(i, j)
            probs = jnp.exp(scores - lses)
            dp = _product("BKSH,BKMH->BKSM", values[j], grad_out)
            ds = (probs * (dp - own) * scale).astype(q.dtype)
            dv = dv.at[j].add(_product("BKSM,BKMH->BKSH", probs.astype(q.dtype), grad_out))
            dk = dk.at[j].add(_product("BKSM,BKMH->BKSH", ds, query))
            return dq + _product("BKHS,BKSM->BKHM", turned[j], ds), dk, dv

        start = jnp.zeros((*query.shape[:2], query.shape[3], query.shape[2]))
        dq, dk, dv = tiles.over_keys(i, step, (start, *done[1:]))
        return done[0].at[i].set(dq.swapaxes(2, 3).astype(q.dtype)), dk, dv

    empty = (jnp.zeros_like(queries), *(jnp.zeros(x.shape, jnp.float32) for x in (keys, values)))
    dq, dk, dv = tiles.over_queries(per_block, empty)
    return (tiles.joined(dq, tiles.queries), tiles.joined(dk, tiles.keys).astype(k.dtype),
            tiles.joined(dv, tiles.keys).astype(v.dtype), None, None)


attend_rows.defvjp(_forward, _backward)
