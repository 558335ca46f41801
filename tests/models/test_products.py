"""Products of rounded factors: held against float64 products of the rounded numbers, and in a whole model."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from r2rec_jax.config import BackboneConfig, LoraConfig
from r2rec_jax.models.backbone import quantize_backbone, with_matmul_dtype
from r2rec_jax.models.logprobs import row_logprobs
from r2rec_jax.models.lora import low_rank
from r2rec_jax.models.products import multiply, multiply_weight, resolve_matmul_dtype, transpose_written
from r2rec_jax.models.vocabulary import with_vocabulary
from r2rec_jax.sampling.decoder import Decoder
from r2rec_jax.sampling.step import merge_layer
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.pretrain import NO_ADAPTER, Text, make_pretrain_loss, pretrain_graphdef, row_batch

BFLOAT = jnp.dtype(jnp.bfloat16)


def as_rounded(x) -> np.ndarray:
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def draw(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("rows", [7, 16, 256])
@pytest.mark.parametrize("turn", [False, True])
def test_a_product_and_its_gradient_are_those_of_rounded_factors(rows, turn):
    x, weight, out = draw((rows, 24), (40, 24) if turn else (24, 40), (rows, 40))

    def run(x, weight, out):
        found, pull = jax.vjp(lambda x, w: multiply_weight(BFLOAT, turn, x, w), x, weight)
        return found, *pull(out)

    found, of_x, of_weight = jax.jit(run)(x, weight, out)
    a, b, g = map(as_rounded, (x, weight, out))
    b = b.T if turn else b
    for ours, wanted in ((found, a @ b), (of_x, g @ b.T), (of_weight.T if turn else of_weight, a.T @ g)):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-4)
    assert np.abs(found - np.asarray(x) @ (np.asarray(weight).T if turn else np.asarray(weight))).max() > 1e-3


@pytest.mark.parametrize("rows", [16, 9])
def test_the_adapters_product_rounds_what_is_between_too(rows):
    x, a, b, out = draw((rows, 24), (24, 8), (8, 40), (rows, 40))

    def run(*args):
        found, pull = jax.vjp(lambda x, a, b: low_rank(BFLOAT, x, a, b), *args[:3])
        return found, *pull(args[3])

    found, of_x, of_a, of_b = jax.jit(run)(x, a, b, out)
    x, a, b, g = map(as_rounded, (x, a, b, out))
    low, of_low = as_rounded(np.float32(x @ a)), as_rounded(np.float32(g @ b.T))
    for ours, wanted in ((found, low @ b), (of_x, of_low @ a.T), (of_a, x.T @ of_low), (of_b, low.T @ g)):
        np.testing.assert_allclose(ours, wanted, rtol=1e-2, atol=1e-2)  # x A may round to the neighbour


@pytest.mark.parametrize("shape", [(16, 3), (24, 8), (5, 4)])
def test_a_written_transpose_is_the_transpose(shape):
    x, = draw(shape)
    np.testing.assert_array_equal(jax.jit(transpose_written)(x), x.T)


def test_without_a_type_factors_stay_as_they_are():
    a, b = draw((5, 6), (7, 6))
    np.testing.assert_array_equal(multiply(None, a, b, turn=True), a @ b.T)
    assert resolve_matmul_dtype(None, jnp.float32) is None and resolve_matmul_dtype("bfloat16", jnp.bfloat16) is None
    assert resolve_matmul_dtype("bfloat16", jnp.float32) == BFLOAT
    assert BackboneConfig().matmul_dtype is None


@pytest.fixture
def both(make_backbone):
    """A backbone with float32 products, and the same with rounded ones."""
    backbone = make_backbone(LoraConfig(rank=4, alpha=8.0))
    return backbone, with_matmul_dtype(backbone, "bfloat16")


@pytest.fixture
def batch():
    return row_batch([[Text.whole(range(3, 30)), Text.whole(range(40, 60))], [Text.whole(range(5, 50))]], 2, 64)


@pytest.fixture
def lora(both, random_lora):
    return jax.tree.map(lambda x: 0.1 * x, random_lora(both[0]))


def test_a_model_scores_nearly_alike(both, batch, lora):
    plain, narrow = (jax.jit(FrozenModel(b.graphdef, b.base).score)(lora, b.base, batch)[0] for b in both)
    apart = np.abs(plain - narrow)[batch.target_weights > 0]
    assert 1e-5 < apart.mean() < 0.05, apart.mean()


def test_gradients_of_weights_and_of_adapters_point_the_same_way(both, batch, lora):
    """Cosine above .99 for every tree; weights without an adapter, whose graph is another."""
    def gradients(backbone, name):
        full = FrozenModel(backbone.graphdef, backbone.base)
        bare = replace(full, graphdef=pretrain_graphdef(backbone.config, name))
        scale = np.float32(0.01)
        of_lora = jax.jit(jax.grad(lambda x: make_pretrain_loss(full)(backbone.base, x, batch, scale)[0]))(lora)
        loss = make_pretrain_loss(bare)
        return of_lora, jax.jit(jax.grad(lambda x: loss(x, NO_ADAPTER, batch, scale)[0]))(backbone.base)

    for plain, narrow in zip(gradients(both[0], None), gradients(both[1], "bfloat16"), strict=True):
        a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(float) for tree in (plain, narrow))
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert .99 < cosine < 1 - 1e-6, cosine


@pytest.mark.parametrize(("layout", "near"), [("merged", 5e-3), ("stored", 1e-5)])
def test_what_is_drawn_has_the_log_probability_that_is_scored(both, lora, layout, near):
    """To a few parts in a million as weights are stored; merged ones are rounded once more."""
    backbone, prompt = both[1], list(range(3, 20))
    drawn = Decoder(backbone.graphdef, backbone.config, [], 2, layout=layout).generate(
        lora, backbone.base, [prompt], group=2, max_new_tokens=8, temperature=1.0, top_p=1.0, key=jax.random.key(0))
    for tokens, logprobs in zip(drawn.tokens[0], drawn.logprobs[0], strict=True):
        row = row_batch([[Text.whole([*prompt, *tokens.tolist()])]], 1, 32)
        scored = FrozenModel(backbone.graphdef, backbone.base).score(lora, backbone.base, row)[0][0]
        np.testing.assert_allclose(scored[len(prompt) - 1:len(prompt) + 7], logprobs, atol=near)


def test_merged_weights_are_rounded_where_products_are(both, lora):
    for backbone, kind in zip(both, (jnp.float32, jnp.bfloat16), strict=True):
        layer = merge_layer(backbone.graphdef, lora, backbone.base, jnp.int32(1))
        assert {x.dtype for x in jax.tree.leaves(layer)} == {jnp.dtype(kind)}


@pytest.mark.parametrize("vocab_first", [False, True])
@pytest.mark.parametrize("certain", [0.7, 0.998])
def test_a_frozen_heads_gradient_is_a_trained_ones_however_certain_the_model(certain, vocab_first):
    """The two sides of its formula nearly cancel: rounding one of them alone would leave nothing but the rounding."""
    hidden, head = draw((16, 32), (32, 101))
    ids = jnp.argmax(hidden @ head, axis=1)
    scale = jax.vmap(lambda h: _sharpness(h @ head, certain))(hidden)
    hidden, head = hidden * scale[:, None], head.T if vocab_first else head

    def total(h, w):
        places = jnp.arange(len(ids))[None]
        return row_logprobs(h[None], places, ids[None], w, vocab_first=vocab_first, matmul_dtype=BFLOAT)[0].sum()

    frozen, (trained, _) = jax.jit(jax.grad(total))(hidden, head), jax.jit(jax.grad(total, (0, 1)))(hidden, head)
    apart = jnp.linalg.norm(frozen - trained, axis=1) / jnp.linalg.norm(trained, axis=1)
    assert apart.max() < 0.01, apart


def _sharpness(logits, certain):
    """By what to multiply a state so that its most likely token has about this probability."""
    scales = jnp.linspace(0.1, 30, 3000)
    top = jax.nn.softmax(scales[:, None] * logits).max(axis=1)
    return scales[jnp.argmin(jnp.abs(top - certain))]


def test_other_forms_of_a_backbone_keep_the_setting(both):
    narrow = both[1]
    assert quantize_backbone(narrow).matmul_dtype == BFLOAT
    assert quantize_backbone(narrow).model().layers.q.matmul_dtype == BFLOAT
    larger = with_vocabulary(narrow, {97: [3, 4]})
    assert larger.matmul_dtype == BFLOAT and larger.model().matmul_dtype == BFLOAT


def test_narrow_weights_are_not_concerned(make_backbone):
    assert with_matmul_dtype(make_backbone(dtype="bfloat16"), "bfloat16").matmul_dtype is None
