"""One decoding step: the layers on one new token a row, against a shared prefix and the rows' own suffixes.

A prompt's keys and values are computed once and read by its whole group; every row owns a suffix cache. Row g of
prompt p scores both parts and takes one float32 softmax over the two:

    a = [q . K_prefix[p] | q . K_suffix[p, g]] / sqrt(H);   out = softmax(a) [V_prefix[p] ; V_suffix[p, g]]

Example, prompt p of 3 tokens padded to S = 4, third step (slot t = 2) of a suffix cache of T = 4 slots:

    prefix slot   0  1  2  3 | suffix slot   0  1  2  3
    seen          y  y  y  - |               y  y  y  -        the new token sits in slot 2, at RoPE position 3 + 2

Two layouts of the layers' weights:

- ``stored``: the model's own stacked arrays, one slice a layer, the adapter applied beside the frozen weight. Nothing
  is rounded anew, so it is the layout for bfloat16 and for every accelerator.
- ``merged``: W + (alpha / r) A B, norm scales folded in, q|k|v and gate|up joined and all transposed to [out, in], made
  once a call (:func:`merge_layer`), rounded where products are (``models.products``). It needs a second copy of the
  layers while a call lasts, so it is used only in float32 on a CPU, where it is the faster one (see decoder.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from r2rec_jax.models.attention import MASKED
from r2rec_jax.models.llama import LlamaConfig, merge_llama
from r2rec_jax.models.lora import LoraLinear
from r2rec_jax.models.products import multiply
from r2rec_jax.models.rope import rotate


@struct.dataclass
class Cache:
    """Keys and values of one layer, in the very shapes that the products read.

    A CPU would copy any other order once a token; with the batch axes apart, [P, K, G, ...], XLA also keeps two copies
    of the suffix, because it merges them for the product.

    Attributes:
        prefix_k, prefix_v: the prompts', read only; PK is P x K.
        suffix_k, suffix_v: the rows' own; PKG is P x K x G.
    """

    prefix_k: Float[Array, "PK H S"]
    prefix_v: Float[Array, "PK S H"]
    suffix_k: Float[Array, "PKG H T"]
    suffix_v: Float[Array, "PKG T H"]


@struct.dataclass
class Place:
    """Where this step's tokens are.

    Attributes:
        slot: suffix slot of the new tokens, the same for every row.
        cos, sin: rotary angles of each prompt's new position.
        prefix_seen: prompt slots that hold a token.
        suffix_seen: suffix slots up to this one.
    """

    slot: Int[Array, ""]
    cos: Float[Array, "P H2"]
    sin: Float[Array, "P H2"]
    prefix_seen: Bool[Array, "P S"]
    suffix_seen: Bool[Array, " T"]


@struct.dataclass
class MergedLayer:
    """One layer of the ``merged`` layout."""

    qkv: Float[Array, "NKH D"]
    o: Float[Array, "D NH"]
    gate_up: Float[Array, "2F D"]
    down: Float[Array, "D F"]


def merge_layer(graphdef: Any, lora: nnx.State, base: nnx.State, index: Int[Array, ""]) -> MergedLayer:
    """One layer's weights with the adapter and the norm scales multiplied in, transposed; see the module.

    Called once a layer with a traced index: one program for all layers compiles ten times as long.
    """
    layer_def, stack = merge_llama(graphdef, lora, base).layer_stack()
    layer = nnx.merge(layer_def, jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, index, keepdims=False), stack))

    def weight(linear: LoraLinear) -> Float[Array, "O I"]:
        merged = linear.weight().T
        if linear.rank:
            merged = merged + linear.scale * (linear.lora_b[...].T @ linear.lora_a[...].T)
        return merged

    def kept(weight: Float[Array, "O I"]) -> Float[Array, "O I"]:
        return weight if layer.matmul_dtype is None else weight.astype(layer.matmul_dtype)

    attn, mlp = layer.attn_norm.scale[...], layer.mlp_norm.scale[...]
    return MergedLayer(
        qkv=kept(jnp.concatenate([weight(layer.q), weight(layer.k), weight(layer.v)]) * attn),
        o=kept(weight(layer.o)),
        gate_up=kept(jnp.concatenate([weight(layer.gate), weight(layer.up)]) * mlp),
        down=kept(weight(layer.down)))


def append(cache: Cache, k: Float[Array, "P G K H"], v: Float[Array, "P G K H"], slot: Int[Array, ""]) -> Cache:
    """Write the new tokens' keys and values into their suffix slot."""
    k, v = (x.swapaxes(1, 2).reshape(-1, x.shape[-1]) for x in (k, v))
    return replace(cache, suffix_k=lax.dynamic_update_slice_in_dim(cache.suffix_k, k[:, :, None], slot, axis=2),
                   suffix_v=lax.dynamic_update_slice_in_dim(cache.suffix_v, v[:, None], slot, axis=1))


def attend_two_parts(q: Float[Array, "P G N H"], cache: Cache, place: Place) -> Float[Array, "P G N H"]:
    """One softmax over prefix and suffix, in float32 (equal to attention over the concatenation)."""
    prompts, group, heads, width = q.shape
    kv_heads = cache.prefix_k.shape[0] // prompts
    shared = heads // kv_heads
    q = q.reshape(prompts, group, kv_heads, shared, width).swapaxes(1, 2) * jnp.asarray(width**-0.5, q.dtype)
    wide = {"preferred_element_type": jnp.float32}
    # b: the products' batch, P K for the prefix and P K G for the suffix. R: rows of a product, G M and M.
    first = jnp.einsum("bRH,bHS->bRS", q.reshape(prompts * kv_heads, -1, width), cache.prefix_k, **wide)
    second = jnp.einsum("bRH,bHT->bRT", q.reshape(-1, shared, width), cache.suffix_k, **wide)
    rows = (prompts, heads * group)  # P and K G M
    first = jnp.where(place.prefix_seen[:, None], first.reshape(*rows, -1), MASKED)
    second = jnp.where(place.suffix_seen, second.reshape(*rows, -1), MASKED)
    top = jnp.maximum(jnp.max(first, -1, keepdims=True), jnp.max(second, -1, keepdims=True))
    first, second = jnp.exp(first - top), jnp.exp(second - top)
    total = jnp.sum(first, -1, keepdims=True) + jnp.sum(second, -1, keepdims=True)
    kind = cache.prefix_v.dtype
    first = first.reshape(prompts * kv_heads, group * shared, -1).astype(kind)
    second = second.reshape(prompts * kv_heads * group, shared, -1).astype(kind)
    out = jnp.einsum("bRS,bSH->bRH", first, cache.prefix_v, **wide).reshape(*rows, width)
    out = (out + jnp.einsum("bRT,bTH->bRH", second, cache.suffix_v, **wide).reshape(*rows, width)) / total
    out = out.astype(q.dtype).reshape(prompts, kv_heads, group, shared, width)
    return out.swapaxes(1, 2).reshape(prompts, group, heads, width)


def stored_step(
    layers: tuple[Any, ...], x: Float[Array, "P G D"], caches: tuple[Cache, ...], place: Place
) -> tuple[Float[Array, "P G D"], tuple[Cache, ...]]:
    """All layers on one token a row, weights as they are stored.

    Args:
        layers: :class:`r2rec_jax.models.llama.LlamaLayer` slices.
        x: embedded tokens.
        caches: one a layer.
        place: masks and angles.
    """
    cos, sin = place.cos[:, None], place.sin[:, None]
    done = []
    for layer, cache in zip(layers, caches, strict=True):
        q, k, v = layer.qkv(x, cos, sin)
        cache = append(cache, k, v, place.slot)
        x = layer.finish(x, attend_two_parts(q, cache, place))
        done.append(cache)
    return x, tuple(done)


def merged_step(
    config: LlamaConfig, layers: tuple[MergedLayer, ...], x: Float[Array, "P G D"], caches: tuple[Cache, ...],
    place: Place,
) -> tuple[Float[Array, "P G D"], tuple[Cache, ...]]:
    """The same with :func:`merge_layer`'s weights."""
    c = config
    prompts, group, width = x.shape
    cos, sin = place.cos[:, None], place.sin[:, None]
    x = x.reshape(-1, width)
    done = []
    for layer, cache in zip(layers, caches, strict=True):
        qkv = _weighted(_normed(x, c.rms_eps), layer.qkv)
        qkv = qkv.reshape(prompts, group, c.heads + 2 * c.kv_heads, c.head_dim)
        rotated = rotate(qkv[:, :, : c.heads + c.kv_heads], cos, sin)
        q, k, v = rotated[:, :, : c.heads], rotated[:, :, c.heads :], qkv[:, :, c.heads + c.kv_heads :]
        cache = append(cache, k, v, place.slot)
        x = x + _weighted(attend_two_parts(q, cache, place).reshape(prompts * group, -1), layer.o)
        gate, up = jnp.split(_weighted(_normed(x, c.rms_eps), layer.gate_up), 2, axis=1)
        x = x + _weighted(jax.nn.silu(gate) * up, layer.down)
        done.append(cache)
    return x.reshape(prompts, group, width), tuple(done)


def _weighted(x: Float[Array, "R I"], weight: Float[Array, "O I"]) -> Float[Array, "R O"]:
    """x W^T in float32; x is rounded to what the weight has been rounded to."""
    return multiply(weight.dtype, x, weight, turn=True)


def _normed(x: Float[Array, "R D"], eps: float) -> Float[Array, "R D"]:
    """RMSNorm without its scale (folded into the next weight)."""
    return x * lax.rsqrt(jnp.mean(x * x, axis=1, keepdims=True) + eps)
