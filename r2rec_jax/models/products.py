"""Products with weights whose factors are rounded to bfloat16 and whose sums are float32 (``backbone.matmul_dtype``).

Weights, adapters, the residual stream, norms and attention stay float32; the two factors of a product by a linear, an
adapter or the head are rounded on their way in, and those of its gradient alike. A TPU does as much with float32 by
default. On a CPU with bfloat16 instructions (AMX) XLA has far faster kernels for it (ARCHITECTURE.md), if it sees both
factors as they lie: a product over tokens, which is what a weight's gradient is, needs a transpose that is written out
(:func:`transpose_written`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_TILE = 8


def resolve_matmul_dtype(name: str | None, dtype: Any) -> Any:
    """The type that ``backbone.matmul_dtype`` names; None for none, and for weights that are narrower themselves."""
    return jnp.dtype(name) if name is not None and dtype == jnp.float32 else None


def multiply(matmul_dtype: Any, a: Float[Array, "M I"], b: Float[Array, "_ _"], turn: bool = False
             ) -> Float[Array, "M O"]:
    """a b, or a b^T with ``turn``: both rounded to ``matmul_dtype``, summed in float32; None leaves them as they are.

    The turn is said to the product itself: a transpose before it would have a CPU widen both factors.
    """
    if matmul_dtype is None:
        return a @ (b.T if turn else b)
    axes = (((1,), (1 if turn else 0,)), ((), ()))
    return jax.lax.dot_general(a.astype(matmul_dtype), b.astype(matmul_dtype), axes,
                               preferred_element_type=jnp.float32)


def transpose_written(x: Float[Array, "M C"]) -> Float[Array, "C M"]:
    """The transpose, written out.

    On a CPU XLA would fold a plain one into the product that reads it, and then widen both factors to float32. One of a
    product's result it folds after it has decided not to widen, and then has no kernel (jax 0.10.2). Through a third
    axis it is kept.
    """
    if jax.default_backend() != "cpu":
        return x.T
    rows, columns = x.shape
    x = jnp.pad(x, ((0, -rows % _TILE), (0, 0)))
    return x.reshape(-1, _TILE, columns).transpose(2, 0, 1).reshape(columns, -1)[:, :rows]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def multiply_weight(matmul_dtype: Any, turn: bool, x: Float[Array, "M I"], weight: Float[Array, "_ _"]
                    ) -> Float[Array, "M O"]:
    """x W in float32, its factors and those of its gradient rounded.

    Args:
        matmul_dtype: what they are rounded to.
        turn: the weight lies as [O, I] and not as [I, O].
        x: rows of tokens, float32 or narrower (its gradient has its type).
        weight: float32 or narrower.
    """
    return multiply(matmul_dtype, x, weight, turn)


def _forward(matmul_dtype: Any, turn: bool, x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return multiply(matmul_dtype, x, weight, turn), (x, weight)


def _backward(matmul_dtype: Any, turn: bool, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, weight = saved
    narrow, grad = x.astype(matmul_dtype), grad.astype(matmul_dtype)
    left, right = (grad, narrow) if turn else (narrow, grad)
    of_weight = multiply(matmul_dtype, transpose_written(left), right)
    return multiply(matmul_dtype, grad, weight, not turn).astype(x.dtype), of_weight.astype(weight.dtype)


multiply_weight.defvjp(_forward, _backward)
