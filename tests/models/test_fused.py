"""What cuDNN's kernel is given, through jax's own plain form of the same call: the kernel itself needs a GPU."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.models.attention import FUSED_MULTIPLE, attend, attend_segments, fused_inputs, segment_mask
from tests.models.test_blockwise import LAYOUTS, inputs, rows_of


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_and_gradients_of_real_tokens_are_those_of_the_plain_form(layout: str,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []
    fused = jax.nn.dot_product_attention

    def instead(*qkv, mask, implementation):
        asked.append((implementation, mask.shape))
        return fused(*qkv, mask=mask, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", instead)
    *qkv, weight = inputs(6, 2)
    segments, parents = rows_of(layout, "packed")
    real = (segments > 0)[..., None, None]

    def loss(through_fused: bool, *qkv: jax.Array) -> jax.Array:
        out = (attend_segments(*qkv, segments, parents, "cudnn") if through_fused
               else attend(*qkv, segment_mask(segments, parents)))
        return jnp.sum(jnp.where(real, out, 0) * weight)

    found, wanted = (jax.value_and_grad(loss, (1, 2, 3))(which, *qkv) for which in (True, False))
    np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    for ours, plain in zip(found[1], wanted[1], strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    assert asked == [("cudnn", (2, 1, FUSED_MULTIPLE, FUSED_MULTIPLE))]


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9), st.sampled_from([1, 64, 128]))
def test_every_query_sees_something_and_real_ones_what_they_should(tokens: list[tuple[int, int]], more: int) -> None:
    segments, parents = (jnp.asarray([[*column, *[0] * more]]) for column in zip(*tokens, strict=True))
    (q,), mask = fused_inputs((jnp.ones((1, segments.shape[1], 1, 2)),), segments, parents)
    length = segments.shape[1]
    assert q.shape[1] == mask.shape[2] == mask.shape[3] and q.shape[1] % FUSED_MULTIPLE == 0
    assert q.shape[1] - length < FUSED_MULTIPLE and np.asarray(mask).any(axis=-1).all()
    plain, got = np.asarray(segment_mask(segments, parents))[0], np.asarray(mask)[0, 0, :length, :length]
    seeing = plain.any(axis=-1)
    np.testing.assert_array_equal(got[seeing], plain[seeing])
    np.testing.assert_array_equal(got[~seeing], np.eye(length, dtype=bool)[~seeing])
