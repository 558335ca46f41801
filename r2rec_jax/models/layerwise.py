"""The forward pass one layer at a time: for backbones whose wide form does not fit.

XLA on a CPU widens bfloat16 factors of a product to float32. In a scan it widens the whole stack at once: the compiled
score of an 8B model has 28.8 GB of temporaries beside its 16 GB of weights. A program of one layer, called L times with
the layer's number, slices first and widens that slice: 0.9 GB.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from r2rec_jax.models.attention import attend_segments
from r2rec_jax.models.llama import merge_llama


@partial(jax.jit, static_argnums=0)
def _layer(graphdef: Any, lora: nnx.State, base: nnx.State, x: Float[Array, "B T D"], index: Int[Array, ""],
           positions: Int[Array, "B T"], segments: Int[Array, "B T"], parents: Int[Array, "B T"]
           ) -> Float[Array, "B T D"]:
    model = merge_llama(graphdef, lora, base)
    layer_def, stack = model.layer_stack()
    layer = nnx.merge(layer_def, jax.tree.map(
        lambda y: jax.lax.dynamic_index_in_dim(y, index, keepdims=False), stack))
    q, k, v = layer.qkv(x, *model.rope(positions))
    return layer.finish(x, attend_segments(q, k, v, segments, parents))


@partial(jax.jit, static_argnums=0)
def _embed(graphdef: Any, lora: nnx.State, base: nnx.State, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return merge_llama(graphdef, lora, base).embedded(tokens)


@partial(jax.jit, static_argnums=0)
def _norm(graphdef: Any, lora: nnx.State, base: nnx.State, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    return merge_llama(graphdef, lora, base).norm(x)


def hidden_states_by_layer(
    graphdef: Any, lora: nnx.State, base: nnx.State, tokens: Int[Array, "B T"], positions: Int[Array, "B T"],
    segments: Int[Array, "B T"], parents: Int[Array, "B T"],
) -> Float[Array, "B T D"]:
    """What ``Llama.hidden_states`` gives (without a gradient), in L + 2 calls of three programs.

    Args:
        graphdef, lora, base: the policy, from ``models.llama.split_llama``.
        tokens, positions, segments, parents: as there.
    """
    x = _embed(graphdef, lora, base, tokens)
    layers = jax.tree.leaves(base["layers"])[0].shape[0]
    for index in range(layers):
        x = _layer(graphdef, lora, base, x, index, positions, segments, parents)
    return _norm(graphdef, lora, base, x)
