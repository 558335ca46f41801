"""GGUF files against transformers' own GGUF loading, and what is refused in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from r2rec_jax.models.gguf import read_gguf, unpermute
from r2rec_jax.models.huggingface import load_backbone
from r2rec_jax.models.rope import RopeScaling, inverse_frequencies

TOKENS = np.random.default_rng(0).integers(0, 97, (2, 19))
BLOCK = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
           "lm_head.weight": "output.weight"}


def interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's converter stores queries and keys."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    model: Any, path: Path, *, quantised: bool = False, factors: np.ndarray | None = None, skip: tuple[str, ...] = (),
    architecture: str = "llama", extra: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """A GGUF file of a transformers Llama, as llama.cpp's converter would write it."""
    c = model.config
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_value_length(c.head_dim)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if extra is not None:
        extra(writer)
    for name, weight in model.state_dict().items():
        if c.tie_word_embeddings and name == "lm_head.weight":
            continue
        values = weight.float().numpy()
        parts = name.split(".")
        stored = OUTSIDE.get(name) or f"blk.{parts[2]}.{BLOCK['.'.join(parts[3:-1])]}.weight"
        for module, heads in (("attn_q.", c.num_attention_heads), ("attn_k.", c.num_key_value_heads)):
            if module in stored:
                values = interleave(values, heads)
        if stored in skip:
            continue
        if quantised and values.ndim == 2 and values.shape[1] % 32 == 0:
            writer.add_tensor(stored, gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0),
                              raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(stored, np.ascontiguousarray(values))
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True}, {"head_dim": 10}, {"num_key_value_heads": 4}],
                         ids=["untied", "tied", "head_dim", "mha"])
def test_gguf_equals_the_model_it_was_made_from(make_reference, our_logits, torch_logits, tmp_path, overrides) -> None:
    model, folder = make_reference(**overrides)
    path = write_gguf(model, tmp_path / "model.gguf")
    backbone = load_backbone(path, None, "float32")
    np.testing.assert_allclose(our_logits(backbone, None, TOKENS), torch_logits(model, TOKENS), atol=1e-4, rtol=1e-4)
    assert backbone.sha256 == load_backbone(folder, None, "float32").sha256


def test_quantised_gguf_equals_transformers_loading(make_reference, our_logits, torch_logits, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    model, _ = make_reference(hidden_size=64, intermediate_size=96, head_dim=16)
    path = write_gguf(model, tmp_path / "model.gguf", quantised=True)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name, dtype=torch.float32).eval()
    expected = torch_logits(theirs, TOKENS)
    assert np.abs(expected - torch_logits(model, TOKENS)).max() > 1e-3, "quantisation must be visible"
    np.testing.assert_allclose(our_logits(load_backbone(path, None, "float32"), None, TOKENS), expected,
                               atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_smollm2_equals_transformers_loading(smollm2_gguf, our_logits, torch_logits) -> None:
    from transformers import AutoModelForCausalLM

    tokens = np.random.default_rng(1).integers(0, 49152, (1, 48))
    theirs = AutoModelForCausalLM.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name,
                                                  dtype=torch.float32).eval()
    expected = torch_logits(theirs, tokens)
    ours = our_logits(load_backbone(smollm2_gguf, None, "float32"), None, tokens)
    np.testing.assert_allclose(ours, expected, atol=1e-3, rtol=1e-4)


def test_llama3_factors_come_back_as_scaling(make_reference, our_logits, torch_logits, tmp_path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    model, _ = make_reference(head_dim=64, rope_parameters=rope, max_position_embeddings=131072)
    scaled = inverse_frequencies(64, 500000.0, RopeScaling(8.0, 1.0, 4.0, 8192))
    factors = inverse_frequencies(64, 500000.0, None) / scaled
    backbone = load_backbone(write_gguf(model, tmp_path / "model.gguf", factors=factors), None, "float32")
    assert backbone.config.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)
    np.testing.assert_allclose(our_logits(backbone, None, TOKENS), torch_logits(model, TOKENS), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"rope_freqs.weight must be the factors of llama3"):
        read_gguf(write_gguf(model, tmp_path / "other.gguf", factors=factors**2))


def test_unpermute_undoes_the_converter() -> None:
    weight = np.arange(2 * 8 * 3).reshape(16, 3)
    np.testing.assert_array_equal(unpermute(interleave(weight, 2), 2), weight)
    np.testing.assert_array_equal(unpermute(np.array([[0], [2], [1], [3]]), 1)[:, 0], [0, 1, 2, 3])


@pytest.mark.parametrize(("settings", "message"), [
    ({"architecture": "qwen2"}, "architecture must be 'llama'; got 'qwen2'"),
    ({"skip": ("blk.1.ffn_up.weight", "output_norm.weight")},
     "2 missing: model.layers.1.mlp.up_proj.weight, model.norm.weight"),
    ({"extra": lambda w: w.add_tensor("blk.0.attn_q.bias", np.zeros(24, np.float32))}, "1 unused: blk.0.attn_q.bias"),
    ({"extra": lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN)}, "'yarn'"),
    ({"extra": lambda w: w.add_expert_count(4)}, "experts are not supported"),
])
def test_other_models_are_refused_by_name(make_reference, tmp_path, settings, message) -> None:
    model, _ = make_reference()
    path = write_gguf(model, tmp_path / "model.gguf", **settings)
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(path, None, "float32")
    assert "\n" not in str(error.value)


def test_truncated_file_is_one_line(make_reference, tmp_path) -> None:
    model, _ = make_reference()
    whole = write_gguf(model, tmp_path / "model.gguf").read_bytes()
    for kept in (0, 3, 40, 300, 1200, len(whole) // 2, len(whole) - 1):
        broken = tmp_path / f"broken-{kept}.gguf"
        broken.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match=r"truncated or not a GGUF|is truncated") as error:
            load_backbone(broken, None, "float32")
        assert "\n" not in str(error.value)
