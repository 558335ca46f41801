"""Our logits against transformers' LlamaForCausalLM, float32, tiny random models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from r2rec_jax.models.huggingface import load_backbone, save_merged
from r2rec_jax.models.llama import build_llama, split_llama

LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 256}


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 97, (2, 33))


@pytest.mark.parametrize("overrides", [
    {}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4}, {"tie_word_embeddings": True}, {"head_dim": 10},
    {"rms_norm_eps": 1e-2}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
], ids=["gqa", "mqa", "mha", "tied", "head_dim", "eps", "theta"])
def test_logits_equal_transformers(make_reference, our_logits, torch_logits, tokens, overrides) -> None:
    model, folder = make_reference(**overrides)
    expected = torch_logits(model, tokens)
    assert expected.std() > 0.5
    np.testing.assert_allclose(our_logits(load_backbone(folder, None, "float32"), None, tokens), expected,
                               atol=1e-4, rtol=1e-4)


def test_shards_equal_one_file(make_reference, our_logits, torch_logits, tokens) -> None:
    model, folder = make_reference(shard="9KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    np.testing.assert_allclose(our_logits(load_backbone(folder, None, "float32"), None, tokens),
                               torch_logits(model, tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_llama3_scaling_at_2500_positions(make_reference, our_logits, torch_logits) -> None:
    model, folder = make_reference(
        num_hidden_layers=1, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        max_position_embeddings=4096, rope_parameters=LLAMA3)
    row = np.random.default_rng(1).integers(0, 97, (1, 2500))
    expected = torch_logits(model, row)
    backbone = load_backbone(folder, None, "float32")
    np.testing.assert_allclose(our_logits(backbone, None, row), expected, atol=2e-4, rtol=1e-4)

    unscaled = split_llama(build_llama(replace(backbone.config, rope_scaling=None), None, "float32"))[0]
    ignored = our_logits(replace(backbone, graphdef=unscaled), None, row)
    assert np.abs(ignored - expected)[0, 2000:].max() > 0.1, "the test must see scaling that is ignored"


def test_packed_and_shared_prefix_rows_equal_separate_rows(make_reference, our_logits, torch_logits) -> None:
    model, folder = make_reference()
    backbone = load_backbone(folder, None, "float32")
    rng = np.random.default_rng(2)
    prompt, first, second = (rng.integers(0, 97, n) for n in (9, 5, 7))

    packed = np.concatenate([prompt, first, second, [0, 0]])[None]
    segments = np.repeat([1, 2, 3, 0], [9, 5, 7, 2])[None]
    positions = np.concatenate([np.arange(9), np.arange(5), np.arange(7), [0, 0]])[None]
    ours = our_logits(backbone, None, packed, segments=segments, positions=positions)[0]
    for part, span in ((prompt, slice(0, 9)), (first, slice(9, 14)), (second, slice(14, 21))):
        np.testing.assert_allclose(ours[span], torch_logits(model, part[None])[0], atol=1e-4, rtol=1e-4)

    parents = np.repeat([0, 1, 1, 0], [9, 5, 7, 2])[None]
    positions = np.concatenate([np.arange(9), 9 + np.arange(5), 9 + np.arange(7), [0, 0]])[None]
    ours = our_logits(backbone, None, packed, segments=segments, parents=parents, positions=positions)[0]
    for part, span in ((first, slice(9, 14)), (second, slice(14, 21))):
        whole = torch_logits(model, np.concatenate([prompt, part])[None])[0]
        np.testing.assert_allclose(ours[span], whole[9:], atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(ours[:9], whole[:9], atol=1e-4, rtol=1e-4)


def test_padding_changes_nothing(make_reference, our_logits) -> None:
    _, folder = make_reference()
    backbone = load_backbone(folder, None, "float32")
    rng = np.random.default_rng(3)
    row = rng.integers(0, 97, (1, 12))
    alone = our_logits(backbone, None, row)
    for fill in (rng.integers(0, 97, (1, 6)), np.full((1, 6), 5)):
        padded = np.concatenate([row, fill], axis=1)
        segments = np.repeat([1, 0], [12, 6])[None]
        np.testing.assert_allclose(our_logits(backbone, None, padded, segments=segments)[:, :12], alone, atol=1e-5)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", [5_000_000_000, 9_000])
def test_folder_that_we_write_loads_in_transformers(
    make_reference, our_logits, torch_logits, tokens, tmp_path, tied, shard
) -> None:
    from transformers import AutoModelForCausalLM

    model, folder = make_reference(tie_word_embeddings=tied, rope_parameters=LLAMA3)
    backbone = load_backbone(folder, None, "float32")
    out = save_merged(backbone, None, tmp_path / "written", max_shard_bytes=shard)
    again = AutoModelForCausalLM.from_pretrained(out, dtype="float32", attn_implementation="eager").eval()
    np.testing.assert_array_equal(torch_logits(again, tokens), torch_logits(model, tokens))
    assert load_backbone(out, None, "float32").sha256 == backbone.sha256
