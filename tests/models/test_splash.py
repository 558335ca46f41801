"""Splash attention under Pallas' interpreter, against the plain form. The kernel itself runs on TPUs only."""

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

from r2rec_jax.models.attention import attend, attend_segments, segment_mask
from r2rec_jax.models.splash import attend_masked, tile_size

LAYOUTS = {  # (segment, parent, tokens); 300 tokens together, in three tiles of 128
    "one segment": [(1, 0, 300)],
    "padding alone": [(0, 0, 300)],
    "padded by a tile and more": [(1, 0, 110), (0, 0, 190)],
    "padding in between": [(1, 0, 30), (0, 0, 200), (2, 1, 70)],
    "packed": [(1, 0, 80), (2, 0, 148), (3, 0, 12), (4, 0, 36), (0, 0, 24)],
    "shared prefix": [(1, 0, 132), (2, 1, 68), (3, 1, 20), (4, 1, 64), (0, 0, 16)],
    "two prompts": [(1, 0, 48), (2, 1, 56), (3, 1, 36), (4, 0, 80), (5, 4, 40), (6, 4, 40)],
}
LENGTH = 300


def inputs(heads: int, kv_heads: int, dtype: Any = jnp.float32, length: int = LENGTH, width: int = 6) -> list[Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, length, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def rows_of(*layouts: str) -> tuple[jax.Array, jax.Array]:
    rows = [[(segment, parent) for segment, parent, count in LAYOUTS[name] for _ in range(count)] for name in layouts]
    both = jnp.asarray(rows, jnp.int32)
    return both[:, :, 0], both[:, :, 1]


@cache
def with_gradients(plain: bool) -> Callable[..., Any]:
    """Compiled ((sum, output), gradients) of a weighted sum over the tokens that see a key."""
    def loss(q: Any, k: Any, v: Any, mask: Any, weight: Any) -> Any:
        out = attend(q, k, v, mask) if plain else attend_masked(q, k, v, mask, block=128, interpret=True)
        out = jnp.where(mask.any(axis=2)[..., None, None], out, 0)
        return jnp.sum(out.astype(jnp.float32) * weight), out

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def assert_same(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found[0][1], wanted[0][1], rtol=1e-5, atol=1e-5)
    for ours, plain in zip(found[1], wanted[1], strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2)])
def test_output_and_gradients_equal_the_plain_form(layout: str, heads: int, kv_heads: int) -> None:
    *qkv, weight = inputs(heads, kv_heads)
    mask = segment_mask(*rows_of(layout, "shared prefix"))
    assert_same(*(with_gradients(plain)(*qkv, mask, weight) for plain in (False, True)))


row = st.lists(st.integers(0, 3), min_size=20, max_size=20)


@given(st.lists(st.tuples(row, row), min_size=2, max_size=2))
@settings(max_examples=15, deadline=None)
def test_rows_in_any_order_equal_the_plain_form(batch: list[tuple[list[int], list[int]]]) -> None:
    """Segments and parents in no order, 15 tokens each: queries that see nothing, padding that sees a prompt."""
    *qkv, weight = inputs(2, 2)
    segments, parents = (jnp.repeat(jnp.asarray([row[i] for row in batch], jnp.int32), 15, axis=1) for i in (0, 1))
    mask = segment_mask(segments, parents)
    assert_same(*(with_gradients(plain)(*qkv, mask, weight) for plain in (False, True)))


def test_padding_gives_zeros_has_no_gradient_and_makes_no_nan() -> None:
    """Also where its output is used, and where whole tiles, or rows, hold nothing else."""
    q, k, v, weight = inputs(2, 2)
    segments, parents = rows_of("padded by a tile and more", "padding alone")
    mask = segment_mask(segments, parents)

    @jax.jit
    def both(*qkv: Any) -> Any:
        def loss(*qkv: Any) -> Any:
            out = attend_masked(*qkv, mask, block=128, interpret=True)
            return jnp.sum((out + 1) * weight), out

        return jax.grad(loss, (0, 1, 2), has_aux=True)(*qkv)

    grads, out = both(q, k, v)
    real = np.asarray(segments) > 0
    for x in (out, *grads):
        assert np.isfinite(x).all()
        assert not np.asarray(x)[~real].any()
        assert np.asarray(x)[real].any()


def test_a_row_does_not_depend_on_its_company() -> None:
    *qkv, weight = inputs(2, 2)
    rows = [segment_mask(*rows_of("shared prefix", other)) for other in ("one segment", "padding alone")]
    (_, first), _ = with_gradients(False)(*qkv, rows[0], weight)
    (_, second), _ = with_gradients(False)(*qkv, rows[1], weight)
    np.testing.assert_array_equal(first[0], second[0])


def test_what_is_not_finite_is_not_hidden() -> None:
    *qkv, weight = inputs(2, 2)
    mask = segment_mask(*rows_of("one segment", "one segment"))
    for place in range(3):
        broken = [x.at[:, 3].set(jnp.nan) if i == place else x for i, x in enumerate(qkv)]
        (value, _), grads = with_gradients(False)(*broken, mask, weight)
        assert jnp.isnan(value) and any(bool(jnp.isnan(grad).any()) for grad in grads)


def test_bfloat16_is_accumulated_in_float32() -> None:
    *qkv, weight = inputs(2, 2, jnp.bfloat16)
    mask = segment_mask(*rows_of("packed", "one segment"))
    (_, out), grads = with_gradients(False)(*qkv, mask, weight)
    assert {out.dtype, *(grad.dtype for grad in grads)} == {jnp.dtype(jnp.bfloat16)}
    (_, exact), _ = with_gradients(True)(*(x.astype(jnp.float32) for x in qkv), mask, weight)
    assert float(jnp.abs(out.astype(jnp.float32) - exact).max()) < 0.03


def test_tiles_are_of_equal_size_and_hold_whole_lanes() -> None:
    assert [tile_size(n, 512) for n in (75, 700, 1024, 1100)] == [(128, 128), (384, 768), (512, 1024), (384, 1152)]


def test_on_a_cpu_the_kernel_is_refused() -> None:
    *qkv, _ = inputs(2, 2)
    with pytest.raises(ValueError, match="interpret mode"):
        jax.jit(lambda *x: attend_segments(*x, *rows_of("packed", "packed"), "splash")).lower(*qkv).compile()
