"""The model core by itself: masks, RoPE, adapters, shapes checked at run time."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError, jaxtyped

from r2rec_jax.config import BackboneConfig, LoraConfig
from r2rec_jax.models import attention, logprobs, rope
from r2rec_jax.models.llama import LlamaConfig, abstract_llama, split_llama
from r2rec_jax.models.lora import copy_tree, init_lora, low_rank, zeros_like_lora
from r2rec_jax.training.policy import FrozenModel


def test_mask_of_the_docstring() -> None:
    segments, parents = jnp.array([[1, 1, 2, 2, 3, 0]]), jnp.array([[0, 0, 1, 1, 1, 0]])
    seen = np.asarray(attention.segment_mask(segments, parents))[0]
    assert [np.flatnonzero(row).tolist() for row in seen] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], []]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12))
def test_mask_is_the_rule_of_the_docstring(tokens: list[tuple[int, int]]) -> None:
    segments, parents = (np.array(column) for column in zip(*tokens, strict=True))
    seen = np.asarray(attention.segment_mask(jnp.asarray(segments)[None], jnp.asarray(parents)[None]))[0]
    for q in range(len(tokens)):
        for k in range(len(tokens)):
            expected = k <= q and segments[k] > 0 and segments[k] in (segments[q], parents[q])
            assert seen[q, k] == expected


def test_a_query_that_sees_nothing_gives_numbers() -> None:
    q = jnp.ones((1, 2, 2, 4))
    out = attention.attend(q, q, q, jnp.zeros((1, 2, 2), bool))
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize(("platform", "dtype", "expected"), [
    ("cpu", jnp.float32, "xla"), ("cpu", jnp.bfloat16, "xla"), ("gpu", jnp.float32, "xla"),
    ("gpu", jnp.bfloat16, "cudnn"), ("tpu", jnp.bfloat16, "splash"), ("tpu", jnp.float32, "splash"),
])
def test_auto_attention_follows_the_default_backend(monkeypatch: pytest.MonkeyPatch, platform: str, dtype: Any,
                                                    expected: str) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert attention.resolve_backend("auto", dtype) == expected
    attention.check_backend("auto", dtype)
    attention.check_backend(expected, dtype)


def test_a_named_backend_is_kept_and_refused_where_it_cannot_run() -> None:
    assert attention.resolve_backend("cudnn", jnp.float32) == "cudnn"
    assert attention.resolve_backend("splash") == "splash"
    for backend in ("cudnn", "splash"):
        with pytest.raises(ValueError, match=r"backbone.attention must be 'auto' or 'xla' on a cpu with 16 bits \(.*"
                                             rf"\); got '{backend}'"):
            FrozenModel.from_config(None, None, BackboneConfig(attention=backend, dtype="bfloat16"))


@pytest.mark.parametrize(("width", "expected"), [(12, "xla"), (64, "cudnn"), (128, "cudnn"), (256, "xla")])
def test_cudnn_gets_no_heads_that_it_refuses(monkeypatch: pytest.MonkeyPatch, width: int, expected: str) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert attention.resolve_backend("auto", jnp.bfloat16, width) == expected
    if expected == "xla":
        with pytest.raises(ValueError, match=rf"backbone.attention must be .* with heads of width {width} .*'cudnn'"):
            attention.resolve_backend("cudnn", jnp.bfloat16, width)


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    x = jax.random.normal(jax.random.key(0), (2, 1, 8))
    inv = jnp.asarray(rope.inverse_frequencies(8, 100.0, None))

    def score(query_at: int, key_at: int) -> float:
        turned = [rope.rotate(x[i:i + 1], *rope.angles(jnp.array([p]), inv)) for i, p in ((0, query_at), (1, key_at))]
        np.testing.assert_allclose(jnp.linalg.norm(turned[0]), jnp.linalg.norm(x[:1]), rtol=1e-5)
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(8, 3), abs=1e-2)


def test_fresh_adapter_has_zero_b_and_its_trees_own_their_memory() -> None:
    config = LlamaConfig(97, 24, 40, 2, 4, 2, 6, 1e-5, 1e4, None, True, 128)
    _, template, _ = split_llama(abstract_llama(config, LoraConfig(rank=4), "float32"))
    lora = init_lora(template, jax.random.key(0))
    for path, variable in nnx.to_flat_state(lora):
        values = np.asarray(variable[...])
        if path[-1] == "lora_b":
            assert not values.any()
        else:
            assert np.abs(values).max() <= values.shape[1] ** -0.5
            assert np.unique(values).size > values.size // 2
    again = copy_tree(lora)
    jax.jit(lambda t: jax.tree.map(lambda x: x + 1, t), donate_argnums=0)(lora)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(again))
    assert not any(np.any(x) for x in jax.tree.leaves(zeros_like_lora(template)))


def test_annotated_shapes_hold_at_run_time() -> None:
    checked = {f.__name__: jaxtyped(f, typechecker=beartype) for f in (
        attention.segment_mask, attention.attend, rope.rotate, rope.angles, logprobs.row_logprobs)}
    ones = jnp.ones((2, 5), jnp.int32)
    mask = checked["segment_mask"](ones, 0 * ones)
    q, k = jnp.ones((2, 5, 4, 6)), jnp.ones((2, 5, 2, 6))
    checked["attend"](q, k, k, mask)
    cos, sin = checked["angles"](ones, jnp.ones(3))
    checked["rotate"](q, cos, sin)
    checked["row_logprobs"](jnp.ones((2, 5, 6)), ones[:, :3], ones[:, :3], jnp.ones((6, 11)))
    with pytest.raises(TypeCheckError):
        checked["attend"](q, k, k, mask[:, :, :4])


def test_the_adapters_product_and_its_gradient_are_those_of_the_plain_form() -> None:
    keys = jax.random.split(jax.random.key(0), 4)
    x, a, b = (jax.random.normal(key, s) for key, s in zip(keys, ((7, 6), (6, 3), (3, 8)), strict=False))
    weight = jax.random.normal(keys[3], (7, 8))
    found, wanted = (jax.value_and_grad(lambda *args, f=f: jnp.sum(jnp.sin(f(*args)) * weight), (0, 1, 2))(x, a, b)
                     for f in (partial(low_rank, None), lambda x, a, b: (x @ a) @ b))
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)
