from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.models.attention import attend, segment_mask
from r2rec_jax.models.blockwise import attend_rows, block_mask

LAYOUTS = {
    "one segment": ([1] * 11, [0] * 11),
    "padded": ([1] * 7 + [0] * 4, [0] * 11),
    "packed": ([1, 1, 1, 2, 2, 2, 2, 3, 3, 0, 0], [0] * 11),
    "shared prefix": ([1, 1, 1, 1, 2, 2, 3, 3, 3, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0]),
}


def inputs(heads: int, kv_heads: int, dtype=jnp.float32, batch: int = 2, length: int = 11, width: int = 6):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(batch, length, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def rows_of(layout: str, batch: int = 2):
    segments, parents = LAYOUTS[layout]
    return jnp.asarray([segments] * batch, jnp.int32), jnp.asarray([parents] * batch, jnp.int32)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("heads", "kv_heads", "block"), [(4, 4, 4), (6, 2, 4), (3, 1, 64)])
def test_output_and_gradients_equal_the_plain_form(layout, heads, kv_heads, block):
    q, k, v, weight = inputs(heads, kv_heads)
    segments, parents = rows_of(layout)
    real = (segments > 0)[..., None, None]
    mask = segment_mask(segments, parents)

    def ours(q, k, v):
        return jnp.sum(jnp.where(real, attend_rows(q, k, v, segments, parents, block), 0) * weight)

    def plain(q, k, v):
        return jnp.sum(jnp.where(real, attend(q, k, v, mask), 0) * weight)

    found, wanted = (jax.value_and_grad(f, (0, 1, 2))(q, k, v) for f in (ours, plain))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    for ours_grad, plain_grad in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(ours_grad, plain_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_blocks_mask_is_rows_of_the_whole_mask(layout):
    segments, parents = rows_of(layout)
    whole = np.asarray(segment_mask(segments, parents))
    for start, end in ((0, 4), (4, 9), (9, 11)):
        np.testing.assert_array_equal(block_mask(segments, parents, start, end), whole[:, start:end, :end])
        assert not whole[:, start:end, end:].any()


def test_padding_has_no_gradient_and_makes_no_nan():
    q, k, v, weight = inputs(4, 2)
    segments, parents = rows_of("padded")
    grads = jax.grad(lambda *x: jnp.sum(attend_rows(*x, segments, parents, 4) * weight), (0, 1, 2))(q, k, v)
    assert all(bool(jnp.isfinite(g).all()) for g in grads)
    assert all(float(jnp.abs(g[:, 7:]).max()) == 0 for g in grads)


def test_bfloat16_is_accumulated_in_float32():
    q, k, v, weight = inputs(4, 2, jnp.bfloat16, length=11)
    segments, parents = rows_of("packed")
    real = (segments > 0)[..., None, None]
    out = attend_rows(q, k, v, segments, parents, 4)
    assert out.dtype == jnp.bfloat16
    exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)), segment_mask(segments, parents))
    assert float(jnp.abs(jnp.where(real, out.astype(jnp.float32) - exact, 0)).max()) < 0.02
    grads = jax.grad(lambda *x: jnp.sum(attend_rows(*x, segments, parents, 4).astype(jnp.float32) * weight))(q, k, v)
    assert grads.dtype == jnp.bfloat16


def test_no_square_array_is_kept_for_the_backward_pass():
    """The residuals of a long row are a few times its inputs, far below one [T, T] array a head."""
    length, heads = 1024, 4
    q, k, v, weight = inputs(heads, heads, batch=1, length=length, width=8)
    ones = jnp.ones((1, length), jnp.int32)

    def loss(q, k, v):
        return jnp.sum(attend_rows(q, k, v, ones, 0 * ones, 128) * weight)

    _, backward = jax.vjp(loss, q, k, v)
    kept = sum(x.size for x in jax.tree.leaves(backward))
    assert kept < heads * length * length / 8
