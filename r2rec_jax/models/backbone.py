"""The frozen language model as one record, assembled tensor by tensor or drawn at random.

Every parameter is read into one preallocated stacked array, handed to the device, and let go before the next, so the
host never holds more than one parameter beside what is already on the device.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r2rec_jax.config import LoraConfig, TinyConfig
from r2rec_jax.models.llama import Llama, LlamaConfig, abstract_llama, build_llama, merge_llama, split_llama
from r2rec_jax.models.lora import zeros_like_lora
from r2rec_jax.models.weights import (
    TensorSource,
    WeightSlot,
    check_tensors,
    combine_digests,
    copy_into,
    digest_tensor,
    weight_slots,
)


@dataclass(frozen=True)
class Backbone:
    """A frozen Llama and the shape of the adapters on it.

    Attributes:
        graphdef: structure; with ``lora`` and ``base`` it makes the model (``models.llama.merge_llama``).
        base: the weights, never trained and never donated.
        config: shape and constants.
        hf_config: the checkpoint's config.json, kept for export.
        source: where the weights came from.
        sha256: of the weights' values (``models.weights.combine_digests``).
        lora: the zero adapter, which is both the template of every adapter and the base policy.
        lora_config: rank, scale and targets of that adapter, None when there is none.
        generation_config: the checkpoint's generation_config.json, kept for export; empty when it had none.
    """

    graphdef: Any
    base: nnx.State
    config: LlamaConfig
    hf_config: Mapping[str, Any]
    source: str
    sha256: str
    lora: nnx.State
    lora_config: LoraConfig | None = None
    generation_config: Mapping[str, Any] = field(default_factory=dict)

    def model(self, lora: nnx.State | None = None) -> Llama:
        """The model under an adapter (None: the base)."""
        return merge_llama(self.graphdef, self.lora if lora is None else lora, self.base)


def resolve_dtype(dtype: str) -> Any:
    """``auto`` is bfloat16 on GPU and TPU and float32 on CPU."""
    if dtype == "auto":
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    return jnp.dtype(dtype)


def assemble(
    hf_config: Mapping[str, Any],
    source: TensorSource,
    lora: LoraConfig | None,
    dtype: str,
    *,
    generation_config: Mapping[str, Any] | None = None,
) -> Backbone:
    """Read every tensor of a checkpoint into a model.

    Raises:
        ValueError: not a Llama, or tensors missing, unused or of another shape.
    """
    config = LlamaConfig.from_hf(dict(hf_config))
    check_tensors(source, config)
    target = resolve_dtype(dtype)
    graphdef, lora_shape, base_shape = split_llama(abstract_llama(config, lora, target))
    digests: dict[str, str] = {}
    values = {slot.path: jax.device_put(_read_slot(slot, source, target, digests)) for slot in weight_slots(config)}
    return Backbone(
        graphdef=graphdef, base=_fill(base_shape, values), config=config, hf_config=dict(hf_config),
        source=source.where, sha256=combine_digests(digests), lora=zeros_like_lora(lora_shape), lora_config=lora,
        generation_config=dict(generation_config or {}),
    )


def _read_slot(slot: WeightSlot, source: TensorSource, dtype: Any, digests: dict[str, str]) -> np.ndarray:
    out = np.empty(slot.our_shape, dtype)
    for i, name in enumerate(slot.names):
        tensor = source.read(name)
        digests[name] = digest_tensor(name, tensor)
        copy_into(out[i] if slot.stacked else out, tensor, slot.transposed)
    return out


def _fill(shape: nnx.State, values: Mapping[tuple[str, ...], jax.Array]) -> nnx.State:
    flat = [(path, variable.replace(values[tuple(map(str, path))])) for path, variable in nnx.to_flat_state(shape)]
    return nnx.from_flat_state(flat)


def random_backbone(
    hf_config: Mapping[str, Any], lora: LoraConfig | None, dtype: str = "auto", seed: int = 0, source: str = "random"
) -> Backbone:
    """A backbone with random weights: the ``tiny`` one before its training, and tests."""
    config = LlamaConfig.from_hf(dict(hf_config))
    graphdef, drawn, base = split_llama(build_llama(config, lora, resolve_dtype(dtype), seed))
    return Backbone(
        graphdef=graphdef, base=base, config=config, hf_config=dict(hf_config), source=source,
        sha256=hash_base(config, base), lora=zeros_like_lora(drawn), lora_config=lora,
    )


def with_base(backbone: Backbone, base: nnx.State, source: str) -> Backbone:
    """The same backbone with other weights (after pretraining), hashed anew."""
    return replace(backbone, base=base, source=source, sha256=hash_base(backbone.config, base))


def hf_tensors(
    slot: WeightSlot, base: nnx.State, names: Collection[str] | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """A parameter as checkpoint tensors: (HF name, values as HF stores them), one layer on the host at a time.

    Args:
        slot: which parameter.
        base: the weights.
        names: only these tensors; None gives all.
    """
    value = parameter(base, slot.path)
    for i, name in enumerate(slot.names):
        if names is not None and name not in names:
            continue
        tensor = np.asarray(jax.device_get(value[i] if slot.stacked else value))
        yield name, tensor.T if slot.transposed else tensor


def parameter(state: nnx.State, path: tuple[str, ...]) -> jax.Array:
    """The array at a path of a state."""
    node: Any = state
    for key in path:
        node = node[key]
    return node[...]


def hash_base(config: LlamaConfig, base: nnx.State) -> str:
    """Sha256 of weights in memory; equals that of the same weights read from a checkpoint of their dtype."""
    return combine_digests({name: digest_tensor(name, tensor)
                            for slot in weight_slots(config) for name, tensor in hf_tensors(slot, base)})


def tiny_hf_config(
    tiny: TinyConfig, *, vocab_size: int, bos_id: int | None, eos_id: int, pad_id: int | None
) -> dict[str, Any]:
    """config.json of the ``tiny`` backbone: a Llama with a tied head.

    Args:
        tiny: its shape.
        vocab_size: of the tokenizer that was trained for it (at most ``tiny.vocab_size``).
        bos_id, eos_id, pad_id: its special tokens.
    """
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab_size,
        "hidden_size": tiny.hidden_size, "intermediate_size": tiny.ffn, "num_hidden_layers": tiny.layers,
        "num_attention_heads": tiny.heads, "num_key_value_heads": tiny.kv_heads,
        "head_dim": tiny.hidden_size // tiny.heads, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": tiny.max_positions, "tie_word_embeddings": True,
        "attention_bias": False, "mlp_bias": False, "initializer_range": 0.02,
        "bos_token_id": bos_id, "eos_token_id": eos_id, "pad_token_id": pad_id,
    }
