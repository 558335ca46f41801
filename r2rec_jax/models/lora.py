"""Linear layers with a low-rank adapter (Hu et al., 2021), functional.

y = x W + (alpha / r) (x A) B, with W [in, out] frozen, A [in, R] and B [R, out] trained. A starts as Kaiming-uniform
with a = sqrt(5) (bound 1/sqrt(in), as peft does), B as zeros, so a fresh adapter changes nothing. The adapter is kept
in float32 whatever the backbone's dtype, and cast to the activations' dtype in the product, or to ``matmul_dtype``.

A policy is the tree of these LoRAParam values: the base model is the zero tree (:func:`zeros_like_lora`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from r2rec_jax.models.products import multiply, multiply_weight, transpose_written
from r2rec_jax.models.quantize import Quantize, dequantize_channels


class LoraLinear(nnx.Module):
    """A bias-free linear layer, stacked over layers, with an optional adapter.

    Attributes:
        kernel: frozen weight, [L, in, out] in the stack and [in, out] inside one layer; int8 when quantised.
        kernel_scale: float32 [L, out], with an int8 kernel only.
        lora_a, lora_b: adapter, [L, in, R] and [L, R, out]; absent when ``rank`` is 0.
        scale: alpha / r.
        matmul_dtype: what the factors of its products are rounded to (``models.products``); None for not at all.
    """

    def __init__(self, stack: int, d_in: int, d_out: int, *, rank: int, alpha: float, dtype: jnp.dtype,
                 rngs: nnx.Rngs, quantize: Quantize = "none", matmul_dtype: Any = None) -> None:
        """Draw the weights; those of an int8 layer are only room, for ``models.backbone`` to fill."""
        std, shape = d_in**-0.5, (stack, d_in, d_out)
        self.quantized = quantize != "none"
        self.matmul_dtype = matmul_dtype
        if self.quantized:
            self.kernel = nnx.Param(jnp.zeros(shape, jnp.int8))
            self.kernel_scale = nnx.Param(jnp.ones((stack, d_out), jnp.float32))
        else:
            self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape, dtype) * jnp.asarray(std, dtype))
        self.scale = alpha / rank if rank else 0.0
        self.rank = rank
        if rank:
            self.lora_a = nnx.LoRAParam(init_lora_a(rngs.lora(), (stack, d_in, rank)))
            self.lora_b = nnx.LoRAParam(jnp.zeros((stack, rank, d_out), jnp.float32))

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        """Apply one layer's weights (the leading stack axis must have been sliced away)."""
        kernel = self.kernel[...]
        if self.quantized:
            # Without it XLA takes the cast out of the decoder's token loop and keeps every layer wide.
            kernel, x = jax.lax.optimization_barrier((kernel, x))
        # Rows of tokens: over batch and time as two axes, XLA transposes what a trained kernel's gradient is made of.
        rows, kernel = x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype)
        y: Any = rows @ kernel if self.matmul_dtype is None else multiply_weight(self.matmul_dtype, False, rows, kernel)
        y = y.reshape(*x.shape[:-1], kernel.shape[-1])
        if self.quantized:
            y = (y.astype(jnp.float32) * self.kernel_scale[...]).astype(y.dtype)
        if self.rank:
            a, b = self.lora_a[...].astype(y.dtype), self.lora_b[...].astype(y.dtype)
            low: Any = low_rank(self.matmul_dtype, rows, a, b)
            y = y + low.reshape(y.shape) * jnp.asarray(self.scale, y.dtype)
        return y

    def weight(self) -> Float[Array, "I O"]:
        """The frozen weight of one layer as numbers, dequantised where it is int8."""
        kernel = self.kernel[...]
        return dequantize_channels(kernel, self.kernel_scale[...]) if self.quantized else kernel


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def low_rank(matmul_dtype: Any, x: Float[Array, "M I"], a: Float[Array, "I R"], b: Float[Array, "R O"]
             ) -> Float[Array, "M O"]:
    """(x A) B, with a gradient whose products never transpose a wide array; ``matmul_dtype`` as in the layer.

    JAX's own gradient contracts x with the gradient of x A, and the gradient of the output with x A, over their first
    axes; XLA transposes [tokens, in] and [tokens, out] for that on a CPU, recomputing what they are made of entry by
    entry. Here only the narrow factors [tokens, R] are transposed.
    """
    return _low_rank_forward(matmul_dtype, x, a, b)[0]


def _low_rank_forward(matmul_dtype: Any, x: Array, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    low = multiply(matmul_dtype, x, a)
    return multiply(matmul_dtype, low, b), (x, a, b, low)


def _low_rank_backward(matmul_dtype: Any, saved: tuple[Array, ...], grad: Array) -> tuple[Array, Array, Array]:
    x, a, b, low = saved
    grad_low = multiply(matmul_dtype, grad, b, turn=True)
    if matmul_dtype is None:
        return grad_low @ a.T, (grad_low.T @ x).T, low.T @ grad
    of_a, of_b = (transpose_written(narrow.astype(matmul_dtype)) for narrow in (grad_low, low))
    of_x = multiply(matmul_dtype, grad_low, a, turn=True).astype(x.dtype)
    return of_x, transpose_written(multiply(matmul_dtype, of_a, x)), multiply(matmul_dtype, of_b, grad)


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


def init_lora_a(key: Array, shape: tuple[int, ...]) -> Float[Array, "L I R"]:
    """Kaiming-uniform with a = sqrt(5): uniform in +-1/sqrt(in), float32."""
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def init_lora(template: nnx.State, key: Array) -> nnx.State:
    """A fresh adapter of the template's structure: A drawn anew, B zero.

    Args:
        template: LoRA tree (its values are not used).
        key: typed PRNG key.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(template)
    fresh = []
    for i, (path, leaf) in enumerate(leaves):
        if "lora_a" in jax.tree_util.keystr(path):
            fresh.append(init_lora_a(jax.random.fold_in(key, i), leaf.shape))
        else:
            fresh.append(jnp.zeros(leaf.shape, jnp.float32))
    return jax.tree_util.tree_unflatten(treedef, fresh)


def zeros_like_lora(lora: nnx.State) -> nnx.State:
    """The zero tree: the policy that is the base model itself."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), lora)


def copy_tree(tree: Any) -> Any:
    """A copy in memory of its own, each array where it was: an alias of a donated tree would be deleted memory."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True), tree)
