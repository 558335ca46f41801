from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.models.attention import attend, segment_mask
from r2rec_jax.models.blockwise import active_tiles, attend_rows, tile_sizes

LAYOUTS = {  # (segment, parent, tokens); 75 tokens together
    "one segment": [(1, 0, 75)],
    "padded": [(1, 0, 41), (0, 0, 34)],
    "packed": [(1, 0, 20), (2, 0, 37), (3, 0, 3), (4, 0, 9), (0, 0, 6)],
    "shared prefix": [(1, 0, 33), (2, 1, 17), (3, 1, 5), (4, 1, 16), (0, 0, 4)],
    "two prompts": [(1, 0, 12), (2, 1, 14), (3, 1, 9), (4, 0, 20), (5, 4, 10), (6, 4, 10)],
}
LENGTH = 75


def inputs(heads: int, kv_heads: int, dtype=jnp.float32, batch: int = 2, length: int = LENGTH, width: int = 6):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, length, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def rows_of(*layouts: str):
    rows = [[(segment, parent) for segment, parent, count in LAYOUTS[name] for _ in range(count)] for name in layouts]
    both = jnp.asarray(rows, jnp.int32)
    return both[:, :, 0], both[:, :, 1]


@cache
def with_gradients(block: int | None) -> Callable[..., Any]:
    """Compiled (value, gradients) of a weighted sum over real tokens; ``block`` None is the plain form."""
    def loss(q, k, v, segments, parents, weight):
        mask = segment_mask(segments, parents)
        out = attend(q, k, v, mask) if block is None else attend_rows(q, k, v, segments, parents, block)
        return jnp.sum(jnp.where((segments > 0)[..., None, None], out, 0) * weight)

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("heads", "kv_heads", "block"), [(4, 4, 16), (6, 2, 32), (3, 1, 256)])
def test_output_and_gradients_equal_the_plain_form(layout, heads, kv_heads, block):
    *qkv, weight = inputs(heads, kv_heads)
    found, wanted = (with_gradients(size)(*qkv, *rows_of(layout, "packed"), weight) for size in (block, None))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    for ours_grad, plain_grad in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(ours_grad, plain_grad, rtol=1e-4, atol=1e-5)


rows = st.lists(st.integers(0, 4), min_size=32, max_size=32)


@given(st.lists(st.tuples(rows, rows), min_size=1, max_size=2))
@settings(max_examples=60, deadline=None)
def test_every_pair_that_sees_each_other_lies_in_an_active_tile(batch):
    """Also in rows where segments come in any order."""
    segments, parents = (jnp.asarray([row[i] for row in batch], jnp.int32) for i in (0, 1))
    numbers, counts = map(np.asarray, active_tiles(segments, parents, 8, 4))
    active = [set(row[:count].tolist()) for row, count in zip(numbers, counts, strict=True)]
    for _, query, key in np.argwhere(np.asarray(segment_mask(segments, parents))):
        assert key // 4 in active[query // 8]


def test_tiles_without_a_pair_are_left_out():
    for layout, expected in (("one segment", [2, 4, 6, 8, 10]), ("padded", [2, 4, 6, 0, 0])):
        segments, parents = (jnp.pad(x, ((0, 0), (0, 5))) for x in rows_of(layout))
        assert active_tiles(segments, parents, 16, 8)[1].tolist() == expected
    segments = jnp.repeat(jnp.asarray([[1, 2, 3, 4]], jnp.int32), 16, axis=1)
    assert active_tiles(segments, 0 * segments, 16, 8)[1].tolist() == [2, 2, 2, 2], "packed rows: their own tiles"
    assert active_tiles(segments, jnp.minimum(segments - 1, 1), 16, 8)[1].tolist() == [2, 4, 4, 4], "and the prompt's"


def test_tiles_are_of_equal_size():
    assert [tile_sizes(n, 256) for n in (11, 64, 576, 1000)] == [(16, 16), (64, 64), (192, 96), (256, 128)]


def test_a_row_does_not_depend_on_its_company():
    """Bit for bit: what is computed for another row's sake changes nothing."""
    q, k, v, _ = inputs(4, 2)
    attended = jax.jit(attend_rows, static_argnums=5)
    together = attended(q, k, v, *rows_of("shared prefix", "one segment"), 16)
    alone = attended(q[:1], k[:1], v[:1], *rows_of("shared prefix"), 16)
    real = np.asarray(rows_of("shared prefix")[0][0]) > 0
    np.testing.assert_array_equal(together[0][real], alone[0][real])


def test_padding_has_no_gradient_and_makes_no_nan():
    q, k, v, weight = inputs(4, 2)
    segments, parents = rows_of("padded", "one segment")
    grads = jax.jit(jax.grad(lambda *x: jnp.sum(attend_rows(*x, segments, parents, 16) * weight), (0, 1, 2)))(q, k, v)
    assert all(bool(jnp.isfinite(g).all()) for g in grads)
    assert all(float(jnp.abs(g[0, 41:]).max()) == 0 for g in grads)


def test_what_is_not_finite_is_not_hidden():
    *qkv, weight = inputs(4, 4)
    for place in range(3):
        broken = [x.at[:, 3].set(jnp.nan) if i == place else x for i, x in enumerate(qkv)]
        value, grads = with_gradients(16)(*broken, *rows_of("one segment", "one segment"), weight)
        assert jnp.isnan(value) and any(bool(jnp.isnan(grad).any()) for grad in grads)


def test_bfloat16_is_accumulated_in_float32():
    q, k, v, weight = inputs(4, 2, jnp.bfloat16)
    segments, parents = rows_of("packed", "one segment")
    real = (segments > 0)[..., None, None]
    (_, out), grad = jax.jit(jax.value_and_grad(
        lambda *x: (jnp.sum((y := attend_rows(*x, segments, parents, 16)).astype(jnp.float32) * weight), y),
        has_aux=True))(q, k, v)
    assert out.dtype == grad.dtype == jnp.bfloat16
    exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)), segment_mask(segments, parents))
    assert float(jnp.abs(jnp.where(real, out.astype(jnp.float32) - exact, 0)).max()) < 0.02


def test_no_square_array_exists():
    """What is kept for the backward pass is a few times the inputs, and a tile is all that exists of the scores."""
    length, heads = 1024, 4
    q, k, v, weight = inputs(heads, heads, batch=1, length=length, width=8)
    ones = jnp.ones((1, length), jnp.int32)

    def loss(q, k, v):
        return jnp.sum(attend_rows(q, k, v, ones, 0 * ones, 128) * weight)

    backward = jax.eval_shape(lambda *x: jax.vjp(loss, *x)[1], q, k, v)
    kept = sum(x.size for x in jax.tree.leaves(backward))
    assert kept < heads * length * length / 8
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(q, k, v).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * heads * length * length / 4
