"""Llama as an NNX module with stacked layers, used functionally.

``graphdef, lora, base = nnx.split(model, nnx.LoRAParam, ...)`` once; hot steps merge inside ``jax.jit``. Every layer
parameter has a leading axis L, so training and scoring scan over it (:meth:`Llama.hidden_states`) and the decoder
slices it (:meth:`Llama.layer`). Everything that varies between checkpoints (eps, theta, RoPE scaling, head_dim, tied
embeddings) comes from config.json through :meth:`LlamaConfig.from_hf`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from r2rec_jax.config import LoraConfig
from r2rec_jax.models.attention import AttentionBackend, attend_segments, resolve_backend
from r2rec_jax.models.lora import LoraLinear
from r2rec_jax.models.quantize import Quantize
from r2rec_jax.models.rope import RopeScaling, angles, inverse_frequencies, rotate
from r2rec_jax.parallel.sharding import by_rows, table_by_vocabulary


@dataclass(frozen=True)
class LlamaConfig:
    """Shape and constants of a Llama checkpoint.

    Attributes:
        vocab_size: V.  hidden_size: D.  ffn: F.  layers: L.  heads: N.  kv_heads: K.  head_dim: H.
        rms_eps: added to the mean square in RMSNorm.
        rope_theta: RoPE base.
        rope_scaling: ``llama3`` scaling, or None.
        tied: the output head is the embedding transposed.
        max_positions: declared context length.
    """

    vocab_size: int
    hidden_size: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rms_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied: bool
    max_positions: int

    @classmethod
    def from_hf(cls, hf: dict[str, Any]) -> LlamaConfig:
        """Read an HF config.json (both spellings of the RoPE fields).

        Raises:
            ValueError: not a Llama, or a feature this implementation does not have (biases, other activations,
                other RoPE types), naming it.
        """
        if hf.get("model_type") != "llama":
            raise ValueError(f"the backbone must be of model_type 'llama'; config.json says {hf.get('model_type')!r}")
        for name, wanted in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
            if hf.get(name, wanted) != wanted:
                raise ValueError(f"config.json: {name} must be {wanted!r} for this Llama; got {hf[name]!r}")
        needed = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        absent = [name for name in needed if not isinstance(hf.get(name), int)]
        if absent:
            raise ValueError(f"config.json must state {', '.join(absent)} as whole numbers; got "
                             f"{[hf.get(name) for name in absent]}")
        rope = dict(hf.get("rope_parameters") or hf.get("rope_scaling") or {})
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise ValueError(f"config.json: RoPE type must be 'default' or 'llama3'; got {kind!r}")
        scaling = None
        if kind == "llama3":
            fields = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
            lost = [name for name in fields if name not in rope]
            if lost:
                raise ValueError(f"config.json: llama3 RoPE scaling must state {', '.join(fields)}; it lacks "
                                 f"{', '.join(lost)}")
            factor, low, high, original = (rope[name] for name in fields)
            scaling = RopeScaling(float(factor), float(low), float(high), int(original))
        theta = rope.get("rope_theta", hf.get("rope_theta", 10000.0))
        heads = int(hf["num_attention_heads"])
        return cls(
            vocab_size=int(hf["vocab_size"]), hidden_size=int(hf["hidden_size"]), ffn=int(hf["intermediate_size"]),
            layers=int(hf["num_hidden_layers"]), heads=heads,
            kv_heads=int(hf.get("num_key_value_heads") or heads),
            head_dim=int(hf.get("head_dim") or int(hf["hidden_size"]) // heads),
            rms_eps=float(hf.get("rms_norm_eps", 1e-6)), rope_theta=float(theta), rope_scaling=scaling,
            tied=bool(hf.get("tie_word_embeddings", False)),
            max_positions=int(hf.get("max_position_embeddings", 2048)),
        )


class RmsNorm(nnx.Module):
    """x / sqrt(mean(x^2) + eps) * scale, computed in float32."""

    def __init__(self, shape: tuple[int, ...], eps: float, dtype: jnp.dtype) -> None:
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise the last axis; returns x's dtype."""
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return normed.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LlamaLayer(nnx.Module):
    """One transformer block; built stacked over L, called on a slice."""

    def __init__(self, config: LlamaConfig, lora: LoraConfig | None, dtype: jnp.dtype, rngs: nnx.Rngs,
                 quantize: Quantize, matmul_dtype: Any) -> None:
        c = config
        self.head_dim, self.matmul_dtype = c.head_dim, matmul_dtype

        def linear(name: str, d_in: int, d_out: int) -> LoraLinear:
            rank = lora.rank if lora is not None and name in lora.targets else 0
            return LoraLinear(c.layers, d_in, d_out, rank=rank, alpha=lora.alpha if lora else 1.0, dtype=dtype,
                              rngs=rngs, quantize=quantize, matmul_dtype=matmul_dtype)

        self.attn_norm = RmsNorm((c.layers, c.hidden_size), c.rms_eps, dtype)
        self.q = linear("q", c.hidden_size, c.heads * c.head_dim)
        self.k = linear("k", c.hidden_size, c.kv_heads * c.head_dim)
        self.v = linear("v", c.hidden_size, c.kv_heads * c.head_dim)
        self.o = linear("o", c.heads * c.head_dim, c.hidden_size)
        self.mlp_norm = RmsNorm((c.layers, c.hidden_size), c.rms_eps, dtype)
        self.gate = linear("gate", c.hidden_size, c.ffn)
        self.up = linear("up", c.hidden_size, c.ffn)
        self.down = linear("down", c.ffn, c.hidden_size)

    def qkv(self, x: Float[Array, "... T D"], cos: Float[Array, "... T H2"], sin: Float[Array, "... T H2"]
            ) -> tuple[Float[Array, "... T N H"], Float[Array, "... T K H"], Float[Array, "... T K H"]]:
        """Normalised input to rotated queries and keys, and values."""
        h = self.attn_norm(x)
        split = lambda y: y.reshape(*y.shape[:-1], -1, self.head_dim)  # noqa: E731
        q, k, v = split(self.q(h)), split(self.k(h)), split(self.v(h))
        q, k, v = (by_rows(x, kv_heads=k.shape[2]) for x in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        return q, k, v

    def finish(self, x: Float[Array, "... T D"], attended: Float[Array, "... T N H"]) -> Float[Array, "... T D"]:
        """Attention output projection, residual, SwiGLU block, residual."""
        x = x + self.o(attended.reshape(*attended.shape[:-2], -1))
        h = self.mlp_norm(x)
        return by_rows(x + self.down(swiglu(self.gate(h), self.up(h))))


@jax.custom_vjp
def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) up; its gradient needs the two alone, and nothing that was computed of them is kept."""
    return jax.nn.silu(gate) * up


def _swiglu_backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    gate, up = saved
    open_ = jax.nn.sigmoid(gate)
    return grad * up * open_ * (1 + gate * (1 - open_)), grad * gate * open_


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), _swiglu_backward)


class Llama(nnx.Module):
    """The whole model; see the module's docstring for how it is used.

    Attributes:
        config: its shape.
        matmul_dtype: what the factors of its products by weights are rounded to (``models.products``), None for not at
            all.
    """

    def __init__(self, config: LlamaConfig, *, lora: LoraConfig | None, dtype: jnp.dtype, rngs: nnx.Rngs,
                 quantize: Quantize = "none", matmul_dtype: Any = None) -> None:
        c = config
        self.config, self.matmul_dtype = c, matmul_dtype
        self.embed = nnx.Param(
            jax.random.normal(rngs.params(), (c.vocab_size, c.hidden_size), dtype) * jnp.asarray(0.02, dtype))
        self.layers = LlamaLayer(c, lora, dtype, rngs, quantize, matmul_dtype)
        self.norm = RmsNorm((c.hidden_size,), c.rms_eps, dtype)
        if not c.tied:
            self.lm_head = nnx.Param(
                jax.random.normal(rngs.params(), (c.hidden_size, c.vocab_size), dtype) * jnp.asarray(0.02, dtype))

    def head(self) -> Float[Array, "D V"]:
        """The output projection (the embedding transposed when tied)."""
        return self.embed[...].T if self.config.tied else self.lm_head[...]

    def embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """The embeddings of tokens."""
        return by_rows(table_by_vocabulary(self.embed[...])[tokens])

    def stored_head(self) -> tuple[Float[Array, "_ _"], bool]:
        """The output projection as it lies in memory, and whether that is [V, D] (tied) and not [D, V]."""
        return (self.embed[...], True) if self.config.tied else (self.lm_head[...], False)

    def rope(self, positions: Int[Array, "... T"]) -> tuple[Float[Array, "... T H2"], Float[Array, "... T H2"]]:
        """cos and sin for these positions."""
        c = self.config
        return angles(positions, jnp.asarray(inverse_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)))

    def layer_stack(self) -> tuple[Any, nnx.State]:
        """(graphdef, state) of the stacked layers, for scanning or slicing."""
        return nnx.split(self.layers)

    def hidden_states(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
        parents: Int[Array, "B T"],
        *,
        attention: AttentionBackend = "auto",
        remat: bool = False,
    ) -> Float[Array, "B T D"]:
        """Final normalised hidden states of whole rows (the head is applied by the caller, where needed).

        Args:
            tokens: token ids.
            positions: RoPE position of each token.
            segments: sequence a token belongs to, 0 for padding.
            parents: segment it may also look at (a shared prompt), 0 for none.
            attention: backend.
            remat: recompute each layer in the backward pass.
        """
        x = self.embedded(tokens)
        cos, sin = self.rope(positions)
        backend = resolve_backend(attention, x.dtype, self.config.head_dim)
        graphdef, stack = self.layer_stack()

        def block(x: Float[Array, "B T D"], state: nnx.State) -> tuple[Float[Array, "B T D"], None]:
            layer = nnx.merge(graphdef, state)
            q, k, v = layer.qkv(x, cos, sin)
            return layer.finish(x, attend_segments(q, k, v, segments, parents, backend)), None

        x, _ = jax.lax.scan(jax.checkpoint(block) if remat else block, x, stack)
        return self.norm(x)


def build_llama(config: LlamaConfig, lora: LoraConfig | None, dtype: Any, seed: int = 0, quantize: Quantize = "none",
                matmul_dtype: Any = None) -> Llama:
    """A randomly initialised model (the ``tiny`` backbone, and tests); int8 layers are zeros."""
    return Llama(config, lora=lora, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(params=seed, lora=seed + 1),
                 quantize=quantize, matmul_dtype=matmul_dtype)


def abstract_llama(config: LlamaConfig, lora: LoraConfig | None, dtype: Any, quantize: Quantize = "none",
                   matmul_dtype: Any = None) -> Llama:
    """The same model with shapes instead of arrays: nothing is allocated."""
    return nnx.eval_shape(lambda: build_llama(config, lora, dtype, quantize=quantize, matmul_dtype=matmul_dtype))


def split_llama(model: Llama) -> tuple[Any, nnx.State, nnx.State]:
    """(graphdef, lora, base): the form that every jitted step takes."""
    graphdef, lora, base = nnx.split(model, nnx.LoRAParam, ...)
    return graphdef, lora, base


def merge_llama(graphdef: Any, lora: nnx.State, base: nnx.State) -> Llama:
    """Put a policy back together, inside a jitted function."""
    return nnx.merge(graphdef, lora, base)
