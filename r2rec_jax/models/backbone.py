"""The frozen language model as one record, assembled tensor by tensor (``loading``) or drawn at random."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from r2rec_jax.config import LoraConfig, TinyConfig
from r2rec_jax.models.llama import Llama, LlamaConfig, abstract_llama, build_llama, merge_llama, split_llama
from r2rec_jax.models.loading import quantize_parameters, read_parameters
from r2rec_jax.models.lora import zeros_like_lora
from r2rec_jax.models.products import resolve_matmul_dtype
from r2rec_jax.models.quantize import Quantize, identity
from r2rec_jax.models.weights import (
    TensorSource,
    WeightSlot,
    check_tensors,
    combine_digests,
    digest_tensor,
    weight_slots,
)


@dataclass(frozen=True)
class Backbone:
    """A frozen Llama and the shape of the adapters on it.

    Attributes:
        graphdef: structure; with ``lora`` and ``base`` it makes the model (``models.llama.merge_llama``).
        base: the weights, never donated; only pretraining trains them, on a copy.
        config: shape and constants.
        hf_config: the checkpoint's config.json, kept for export.
        source: where the weights came from.
        weights_sha256: of the values of the weights as the checkpoint has them (``models.weights.combine_digests``).
        lora: the zero adapter, which is both the template of every adapter and the base policy.
        lora_config: rank, scale and targets of that adapter, None when there is none.
        generation_config: the checkpoint's generation_config.json, kept for export; empty when it had none.
        quantize: how the layers' linears are stored.
        matmul_dtype: what the factors of products by weights are rounded to (``models.products``), None for not at all.
    """

    graphdef: Any
    base: nnx.State
    config: LlamaConfig
    hf_config: Mapping[str, Any]
    source: str
    weights_sha256: str
    lora: nnx.State
    lora_config: LoraConfig | None = None
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    quantize: Quantize = "none"
    matmul_dtype: Any = None

    @property
    def sha256(self) -> str:
        """Identity of this model: what adapters, checkpoints and predictions name as their base."""
        return identity(self.weights_sha256, self.quantize)

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
    quantize: Quantize = "none",
    mesh: Mesh | None = None,
    generation_config: Mapping[str, Any] | None = None,
) -> Backbone:
    """Read every tensor of a checkpoint into a model, laid out on ``mesh``.

    Raises:
        ValueError: not a Llama, or tensors missing, unused or of another shape.
    """
    config = LlamaConfig.from_hf(dict(hf_config))
    check_tensors(source, config)
    target = resolve_dtype(dtype)
    graphdef, lora_shape, base_shape = split_llama(abstract_llama(config, lora, target, quantize))
    values, digests = read_parameters(source, weight_slots(config), target, quantize, mesh)
    return Backbone(
        graphdef=graphdef, base=_fill(base_shape, values), config=config, hf_config=dict(hf_config),
        source=source.where, weights_sha256=combine_digests(digests), lora=zeros_like_lora(lora_shape),
        lora_config=lora, generation_config=dict(generation_config or {}), quantize=quantize,
    )


def _fill(shape: nnx.State, values: Mapping[tuple[str, ...], jax.Array]) -> nnx.State:
    flat = [(path, variable.replace(values[tuple(map(str, path))])) for path, variable in nnx.to_flat_state(shape)]
    return nnx.from_flat_state(flat)


def quantize_backbone(backbone: Backbone) -> Backbone:
    """The same model with the layers' linears in int8, from weights that are in memory.

    Raises:
        ValueError: it is quantised already.
    """
    if backbone.quantize != "none":
        raise ValueError(f"a backbone to quantise must have full weights; {backbone.source} is {backbone.quantize}")
    dtype = parameter(backbone.base, ("embed",)).dtype
    model = abstract_llama(backbone.config, backbone.lora_config, dtype, "int8", backbone.matmul_dtype)
    graphdef, _, base_shape = split_llama(model)
    values = {tuple(map(str, path)): variable[...] for path, variable in nnx.to_flat_state(backbone.base)}
    base = _fill(base_shape, quantize_parameters(values, weight_slots(backbone.config)))
    return replace(backbone, graphdef=graphdef, base=base, quantize="int8")


def with_matmul_dtype(backbone: Backbone, name: str | None) -> Backbone:
    """The same weights in a model that rounds the factors of its products (``models.products``)."""
    dtype = parameter(backbone.base, ("embed",)).dtype
    matmul_dtype = resolve_matmul_dtype(name, dtype)
    model = abstract_llama(backbone.config, backbone.lora_config, dtype, backbone.quantize, matmul_dtype)
    return replace(backbone, graphdef=split_llama(model)[0], matmul_dtype=matmul_dtype)


def random_backbone(
    hf_config: Mapping[str, Any], lora: LoraConfig | None, dtype: str = "auto", seed: int = 0, source: str = "random"
) -> Backbone:
    """A backbone with random weights: the ``tiny`` one before its training, and tests."""
    config = LlamaConfig.from_hf(dict(hf_config))
    graphdef, drawn, base = split_llama(build_llama(config, lora, resolve_dtype(dtype), seed))
    return Backbone(
        graphdef=graphdef, base=base, config=config, hf_config=dict(hf_config), source=source,
        weights_sha256=hash_base(config, base), lora=zeros_like_lora(drawn), lora_config=lora,
    )


def rescaled(backbone: Backbone) -> Backbone:
    """Random weights scaled for training from scratch, so that embeddings outweigh what fresh layers add.

    Linears of standard deviation 0.02, those that write into the residual stream divided by sqrt(2 L) (GPT-2, Radford
    et al. 2019); embeddings of 1 / sqrt(D), so that the tied head can be confident from the start.
    """
    c = backbone.config

    def scale(path: tuple[Any, ...], value: jax.Array) -> jax.Array:
        name = tuple(map(str, path))
        if name == ("embed",):
            wanted = c.hidden_size**-0.5
        elif name[-1] == "kernel":
            wanted = 0.02 * ((2 * c.layers) ** -0.5 if name[-2] in ("o", "down") else 1.0)
        else:
            return value
        return value * (wanted / jnp.std(value.astype(jnp.float32))).astype(value.dtype)

    flat = [(path, variable.replace(scale(path, variable[...]))) for path, variable in nnx.to_flat_state(backbone.base)]
    return with_base(backbone, nnx.from_flat_state(flat), backbone.source)


def with_base(backbone: Backbone, base: nnx.State, source: str) -> Backbone:
    """The same backbone with other weights (after pretraining), hashed anew."""
    return replace(backbone, base=base, source=source, weights_sha256=hash_base(backbone.config, base))


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
