"""Products of rounded factors: held against float64 products of the rounded numbers, and in a whole model."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from r2rec_jax.config import BackboneConfig, LoraConfig
from r2rec_jax.models.backbone import with_factors
from r2rec_jax.models.llama import bare_graphdef
from r2rec_jax.models.lora import low_rank
from r2rec_jax.models.products import factors_for, product, rounded, turned
from r2rec_jax.sampling.decoder import Decoder
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.pretrain import Text, make_pretrain_loss, row_batch

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
        found, pull = jax.vjp(lambda x, w: product(BFLOAT, turn, x, w), x, weight)
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
def test_turned_is_the_transpose(shape):
    x, = draw(shape)
    np.testing.assert_array_equal(jax.jit(turned)(x), x.T)


def test_without_a_type_factors_stay_as_they_are():
    a, b = draw((5, 6), (7, 6))
    np.testing.assert_array_equal(rounded(None, a, b, turn=True), a @ b.T)
    assert factors_for(None, jnp.float32) is None and factors_for("bfloat16", jnp.bfloat16) is None
    assert factors_for("bfloat16", jnp.float32) == BFLOAT
    assert BackboneConfig().factors is None and BackboneConfig(matmul_dtype="bfloat16").factors == "bfloat16"


@pytest.fixture
def both(make_backbone):
    """A backbone with float32 products, and the same with rounded ones."""
    backbone = make_backbone(LoraConfig(rank=4, alpha=8.0))
    return backbone, with_factors(backbone, "bfloat16")


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
    def gradients(backbone):
        full = FrozenModel(backbone.graphdef, backbone.base)
        bare = replace(full, graphdef=bare_graphdef(backbone.config, jnp.float32, backbone.factors))
        scale = np.float32(0.01)
        of_lora = jax.jit(jax.grad(lambda x: make_pretrain_loss(full)(backbone.base, x, batch, scale)[0]))(lora)
        loss = make_pretrain_loss(bare)
        return of_lora, jax.jit(jax.grad(lambda x: loss(x, nnx.State({}), batch, scale)[0]))(backbone.base)

    for plain, narrow in zip(*map(gradients, both), strict=True):
        a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]) for tree in (plain, narrow))
        cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        assert .99 < cosine < 1 - 1e-9, cosine


@pytest.mark.parametrize("layout", ["merged", "stored"])
def test_what_is_drawn_has_the_log_probability_that_is_scored(both, lora, layout):
    backbone, prompt = both[1], list(range(3, 20))
    drawn = Decoder(backbone.graphdef, backbone.config, [], 2, layout=layout).generate(
        lora, backbone.base, [prompt], group=2, max_new_tokens=8, temperature=1.0, top_p=1.0, key=jax.random.key(0))
    for tokens, logprobs in zip(drawn.tokens[0], drawn.logprobs[0], strict=True):
        row = row_batch([[Text.whole([*prompt, *tokens.tolist()])]], 1, 32)
        scored = FrozenModel(backbone.graphdef, backbone.base).score(lora, backbone.base, row)[0][0]
        np.testing.assert_allclose(scored[len(prompt) - 1:len(prompt) + 7], logprobs, atol=0.1)


def test_narrow_weights_are_not_concerned(make_backbone):
    assert with_factors(make_backbone(dtype="bfloat16"), "bfloat16").factors is None
