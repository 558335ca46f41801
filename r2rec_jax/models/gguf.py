"""Llama weights out of a GGUF file, dequantised to float32 and renamed to what HF checkpoints call them.

Departures from the file: queries and keys are stored there for the interleaved rotation (pairs 2h, 2h+1) and are
brought back to HF's order (pairs h, h + H/2); a missing ``output.weight`` means a tied head; ``rope_freqs.weight``
(Llama 3.1's scaling, as factors) is turned back into the ``llama3`` setting that makes those factors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from r2rec_jax.models.rope import RopeScaling, inverse_frequencies
from r2rec_jax.models.weights import EMBEDDING, HEAD, LINEARS, NORMS, TensorSource
from r2rec_jax.reasons import one_line

BLOCK = {
    "attn_q": LINEARS["q"], "attn_k": LINEARS["k"], "attn_v": LINEARS["v"], "attn_output": LINEARS["o"],
    "ffn_gate": LINEARS["gate"], "ffn_up": LINEARS["up"], "ffn_down": LINEARS["down"],
    "attn_norm": NORMS["attn_norm"], "ffn_norm": NORMS["mlp_norm"],
}
OUTSIDE = {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.norm.weight", "output.weight": HEAD}
ROPE_FACTORS = "rope_freqs.weight"

LLAMA3_BAND = (1.0, 4.0, 8192)
"""Low and high frequency factor and original context of every published Llama 3.x: what factors are tried against."""


def read_gguf(path: str | Path) -> tuple[dict[str, Any], TensorSource]:
    """(config.json's content, tensors by HF name) of a GGUF file of the llama architecture.

    Raises:
        ValueError: truncated, not GGUF, another architecture, or a feature this Llama does not have.
    """
    path = Path(path)
    reader = _open(path)

    def value(name: str, default: Any = None) -> Any:
        return reader.fields[name].contents() if name in reader.fields else default

    architecture = value("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{path}: general.architecture must be 'llama'; got {architecture!r}")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _hf_config(path, value, tensors)
    names = {_hf_name(name): name for name in tensors if name != ROPE_FACTORS}
    heads = {LINEARS["q"]: config["num_attention_heads"], LINEARS["k"]: config["num_key_value_heads"]}

    def read(name: str) -> np.ndarray:
        from gguf.quants import dequantize

        tensor = tensors[names[name]]
        weight = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(_shape(tensor))
        for module, count in heads.items():
            if name.endswith(f"{module}.weight"):
                return unpermute(weight, count)
        return weight

    shapes = {hf: _shape(tensors[name]) for hf, name in names.items()}
    return config, TensorSource(str(path), shapes, read)


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key weight from interleaved pairs to halves.

    Example: one head of width 4 stores rows (0, 2, 1, 3) of the HF weight; they come back as 0, 1, 2, 3.
    """
    out, width = weight.shape
    if out % (2 * heads):
        return weight  # the shape check names the tensor
    return weight.reshape(heads, out // heads // 2, 2, width).swapaxes(1, 2).reshape(out, width)


def _open(path: Path) -> Any:
    from gguf import GGUFReader

    if not path.is_file():
        raise ValueError(f"{path} must be a GGUF file; there is no such file")
    try:
        reader = GGUFReader(str(path))
        end = max((int(t.data_offset) + int(t.n_bytes) for t in reader.tensors), default=0)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is truncated or not a GGUF file ({one_line(error)}); fetch it again") from None
    if end > path.stat().st_size or not reader.tensors:
        raise ValueError(f"{path} is truncated: {path.stat().st_size} bytes of {end}; fetch it again")
    return reader


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in reversed(tensor.shape))


def _hf_name(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[3] == "weight" and parts[2] in BLOCK:
        return f"model.layers.{parts[1]}.{BLOCK[parts[2]]}.weight"
    return name


def _hf_config(path: Path, value: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    wanted = {"hidden_size": "embedding_length", "intermediate_size": "feed_forward_length",
              "num_hidden_layers": "block_count", "num_attention_heads": "attention.head_count",
              "rms_norm_eps": "attention.layer_norm_rms_epsilon"}
    config: dict[str, Any] = {hf: value(f"llama.{key}") for hf, key in wanted.items()}
    lost = [f"llama.{key}" for hf, key in wanted.items() if config[hf] is None]
    if lost or "token_embd.weight" not in tensors:
        raise ValueError(f"{path} lacks {', '.join(lost) or 'token_embd.weight'}; it is not a whole Llama")
    uneven = [hf for hf in config if isinstance(config[hf], list)]
    if uneven or isinstance(value("llama.attention.head_count_kv"), list):
        raise ValueError(f"{path}: every layer must have the same shape; {uneven or ['num_key_value_heads']} vary")
    if value("llama.expert_count", 0):
        raise ValueError(f"{path}: experts are not supported; llama.expert_count is {value('llama.expert_count')}")
    heads = config["num_attention_heads"]
    head_dim = value("llama.attention.key_length", config["hidden_size"] // heads)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if value(key, head_dim) != head_dim:
            raise ValueError(f"{path}: {key} must equal the head width {head_dim}; got {value(key)}")
    scaling = value("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"{path}: RoPE scaling must be none or llama3's factors; llama.rope.scaling.type is "
                         f"{scaling!r}")
    theta = float(value("llama.rope.freq_base", 10000.0))
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **config,
        "vocab_size": _shape(tensors["token_embd.weight"])[0],
        "num_key_value_heads": value("llama.attention.head_count_kv", heads), "head_dim": head_dim,
        "hidden_act": "silu", "max_position_embeddings": value("llama.context_length", 2048),
        "rope_theta": theta, "rope_scaling": _rope_scaling(path, tensors, head_dim, theta),
        "tie_word_embeddings": "output.weight" not in tensors, "attention_bias": False, "mlp_bias": False,
        "bos_token_id": value("tokenizer.ggml.bos_token_id"), "eos_token_id": value("tokenizer.ggml.eos_token_id"),
        "pad_token_id": value("tokenizer.ggml.padding_token_id"),
    }


def _rope_scaling(path: Path, tensors: dict[str, Any], head_dim: int, theta: float) -> dict[str, Any] | None:
    if ROPE_FACTORS not in tensors:
        return None
    factors = np.asarray(tensors[ROPE_FACTORS].data, np.float32).reshape(-1)
    low, high, original = LLAMA3_BAND
    factor = round(float(factors.max()), 4)
    scaling = RopeScaling(factor, low, high, original)
    made = inverse_frequencies(head_dim, theta, None) / inverse_frequencies(head_dim, theta, scaling)
    if factors.shape != made.shape or not np.allclose(factors, made, rtol=1e-3):
        raise ValueError(f"{path}: {ROPE_FACTORS} must be the factors of llama3 scaling with low_freq_factor {low:g}, "
                         f"high_freq_factor {high:g} and original context {original}; they are others, so use the "
                         "safetensors checkpoint, whose config.json states them")
    return {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original}
