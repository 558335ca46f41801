"""More tokens for a model that exists."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.config import LoraConfig
from r2rec_jax.models.backbone import parameter
from r2rec_jax.models.huggingface import load_backbone, save_merged
from r2rec_jax.models.vocabulary import with_vocabulary

PIECES = {97: [5, 9, 5], 98: [40], 99: [7, 8]}


def logits(backbone, tokens):
    tokens = jnp.asarray(tokens)[None]
    model, ones = backbone.model(), jnp.ones_like(tokens)
    hidden = model.hidden_states(tokens, jnp.arange(tokens.shape[1])[None], ones, 0 * ones)
    return np.asarray(hidden @ model.head())[0]


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_are_the_means_of_their_pieces_and_all_else_stays(make_backbone, tied: bool) -> None:
    before = make_backbone(lora=LoraConfig(rank=2), tie_word_embeddings=tied)
    after = with_vocabulary(before, PIECES)
    assert after.config.vocab_size == after.hf_config["vocab_size"] == 100
    assert before.config.vocab_size == before.hf_config["vocab_size"] == 97
    old, new = (logits(backbone, [1, 5, 40, 9, 96]) for backbone in (before, after))
    np.testing.assert_allclose(new[:, :97], old, rtol=1e-5, atol=1e-5)
    for index, pieces in PIECES.items():
        np.testing.assert_allclose(new[:, index], old[:, pieces].mean(axis=1), rtol=1e-4, atol=1e-5)
        table = np.asarray(parameter(after.base, ("embed",)))
        np.testing.assert_allclose(table[index], table[pieces].mean(axis=0), rtol=1e-6)
    assert jax.tree.structure(after.lora) == jax.tree.structure(before.lora)
    assert after.sha256 != before.sha256


def test_it_is_written_and_read_like_any_other(make_backbone, tmp_path) -> None:
    after = with_vocabulary(make_backbone(tie_word_embeddings=False), PIECES)
    again = load_backbone(save_merged(after, None, tmp_path / "out"), None, "float32")
    assert again.sha256 == after.sha256 and again.config == after.config


def test_rows_that_lie_ready_are_taken_over(make_backbone) -> None:
    before = make_backbone()
    after = with_vocabulary(before, {95: [3, 4]})
    assert after.config == before.config
    table, old = (np.asarray(parameter(b.base, ("embed",))) for b in (after, before))
    np.testing.assert_allclose(table[95], old[[3, 4]].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(np.delete(table, 95, axis=0), np.delete(old, 95, axis=0))


def test_means_are_taken_in_float32_and_kept_in_the_dtype_of_the_weights(make_backbone) -> None:
    after = with_vocabulary(make_backbone(dtype="bfloat16"), {97: list(range(50))})
    table = parameter(after.base, ("embed",))
    assert table.dtype == jnp.bfloat16
    wide = np.asarray(table[:50].astype(jnp.float32)).mean(axis=0)
    np.testing.assert_array_equal(np.asarray(table[97]), wide.astype(jnp.bfloat16))


def test_gaps_and_rounded_weights_are_refused(make_backbone) -> None:
    with pytest.raises(ValueError, match="no gap behind a vocabulary of 97; got none of id 97"):
        with_vocabulary(make_backbone(), {98: [1]})
    with pytest.raises(ValueError, match="spelled a new token; got nothing for id 97"):
        with_vocabulary(make_backbone(), {97: []})
    with pytest.raises(ValueError, match="enlarged in full weights"):
        with_vocabulary(replace(make_backbone(), quantize="int8"), PIECES)
