"""int8 linears: the rounding's bounds, what is stored, that the adapter learns on them, and whose adapter it is."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.config import LoraConfig, SftConfig
from r2rec_jax.models.backbone import Backbone, quantize_backbone
from r2rec_jax.models.huggingface import load_backbone, save_merged
from r2rec_jax.models.lora import init_lora
from r2rec_jax.models.peft import load_adapter, save_adapter
from r2rec_jax.models.quantize import dequantize_channels, quantize_channels
from r2rec_jax.sampling.decoder import Decoder
from r2rec_jax.score import drift_of, score_ids
from r2rec_jax.tokens.examples import Example
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.sft import train_sft

LORA = LoraConfig(rank=4, alpha=8.0)
IDS = [int(i) for i in np.random.default_rng(0).integers(3, 97, 40)]


@given(seed=st.integers(0, 99), power=st.integers(-20, 20))
@settings(deadline=None, max_examples=30)
def test_a_weight_is_off_by_half_a_step_at_most(seed: int, power: int) -> None:
    kernel = np.random.default_rng(seed).standard_normal((2, 9, 5)).astype(np.float32) * 2.0**power
    kernel[:, :, 0] = 0
    codes, scale = quantize_channels(jnp.asarray(kernel))
    assert codes.dtype == jnp.int8
    assert (np.abs(np.asarray(codes, np.int32)).max(axis=1)[:, 1:] == 127).all()
    wrong = np.abs(np.asarray(dequantize_channels(codes, scale)) - kernel)
    assert (wrong <= np.asarray(scale)[:, None] * 0.5001).all()
    assert (wrong[:, :, 0] == 0).all()


@pytest.fixture
def pair(make_backbone, tmp_path) -> tuple[Backbone, Backbone]:
    """A wider backbone with full weights, and loaded from its folder in int8."""
    full = make_backbone(LORA, hidden_size=64, intermediate_size=192, head_dim=16, tie_word_embeddings=False)
    return full, load_backbone(save_merged(full, None, tmp_path / "full"), LORA, "float32", quantize="int8")


def size(tree: nnx.State) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def test_loading_in_int8_is_quantising_what_was_loaded(pair) -> None:
    full, loaded = pair
    made = quantize_backbone(full)
    assert made.graphdef == loaded.graphdef and made.sha256 == loaded.sha256
    for one, other in zip(jax.tree.leaves(made.base), jax.tree.leaves(loaded.base), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    kernels = [(path, leaf) for path, leaf in nnx.to_flat_state(loaded.base) if path[-1] == "kernel"]
    assert len(kernels) == 7 and all(leaf[...].dtype == jnp.int8 for _, leaf in kernels)
    layers, wide = size(loaded.base["layers"]), size(full.base["layers"])
    assert 0.25 * wide < layers < 0.30 * wide
    with pytest.raises(ValueError, match="must have full weights"):
        quantize_backbone(loaded)


def test_drift_is_small_and_is_not_none(pair, random_lora) -> None:
    full, quantised = pair
    for lora in (None, jax.tree.map(lambda x: 0.1 * x, random_lora(full))):
        drift = drift_of(score_ids(quantised, lora, IDS), score_ids(full, lora, IDS))
        assert 1e-5 < drift["mean_abs"] < 0.02
        assert drift["max_abs"] < 0.1


@pytest.mark.slow
def test_decoder_draws_with_int8_what_the_scorer_scores(pair) -> None:
    quantised = pair[1]
    decoder = Decoder(quantised.graphdef, quantised.config, [1], 2)
    rollout = decoder.generate(quantised.lora, quantised.base, [IDS[:20]], group=2, max_new_tokens=8, temperature=0.7,
                               top_p=1.0, key=jax.random.key(0))
    for tokens, length, logprobs in zip(rollout.tokens[0], rollout.lengths[0], rollout.logprobs[0], strict=True):
        ids = [*IDS[:20], *tokens[:length].tolist()]
        model = FrozenModel(quantised.graphdef, quantised.base)
        row = jnp.asarray(ids)[None]
        hidden = model_hidden(quantised, row)
        logits = hidden @ merge_head(quantised) / 0.7
        expected = jax.nn.log_softmax(logits, -1)[0, jnp.arange(19, len(ids) - 1), row[0, 20:]]
        np.testing.assert_allclose(logprobs[:length], expected, atol=2e-4)
        assert model.base is quantised.base


def model_hidden(backbone: Backbone, row: jax.Array) -> jax.Array:
    positions = jnp.arange(row.shape[1])[None]
    return backbone.model().hidden_states(row, positions, jnp.ones_like(row), jnp.zeros_like(row))


def merge_head(backbone: Backbone) -> jax.Array:
    return backbone.model().head()


@pytest.mark.slow
def test_sft_learns_on_int8_and_touches_nothing_but_the_adapter(pair) -> None:
    quantised = pair[1]
    examples = [Example(str(i), tuple(IDS[i:i + 8]), (*IDS[i + 8:i + 14], 1)) for i in range(4)]
    before = jax.tree.map(np.array, quantised.base)
    model = FrozenModel(quantised.graphdef, quantised.base)
    fresh = init_lora(quantised.lora, jax.random.key(1))
    trained = train_sft(model, fresh, examples, SftConfig(epochs=40, batch_size=4, micro_batch=1, lr=3e-2), seed=0)

    def loss(lora: nnx.State) -> float:
        scores = [score_ids(quantised, lora, [*e.prompt_ids, *e.completion_ids])[8:] for e in examples]
        return -float(np.mean(scores))

    assert loss(trained.params) < loss(fresh) - 1  # a head of small random weights allows no more than 1.2
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(quantised.base), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_adapter_says_which_form_it_was_trained_on(pair, random_lora, tmp_path) -> None:
    full, quantised = pair
    assert full.sha256 == full.weights_sha256 == quantised.weights_sha256 != quantised.sha256
    lora = random_lora(full)
    folder = save_adapter(lora, LORA, quantised, tmp_path / "adapter")
    record = json.loads((folder / "r2rec.json").read_text())
    assert (record["quantize"], record["base_weights_sha256"]) == ("int8", full.sha256)
    with pytest.raises(ValueError, match=r"trained on these weights with backbone.quantize int8; .* loaded with none"):
        load_adapter(folder, full)
    load_adapter(folder, quantised)
    again, _ = load_adapter(folder, full, other_precision=True)
    with pytest.raises(ValueError, match="merged into full weights"):
        save_merged(quantised, lora, tmp_path / "refused")
    merged = load_backbone(save_merged(full, again, tmp_path / "merged"), None, "float32")
    np.testing.assert_allclose(score_ids(merged, None, IDS)[1:], score_ids(full, lora, IDS)[1:], atol=2e-3)
