"""Matrix products whose factors are rounded to a narrower type and whose sums are float32.

What torch calls autocast and what a TPU does with float32 by default: weights, residual stream, norms and softmax stay
float32; the two factors of a product are rounded to bfloat16 on their way in. A gradient's products are rounded alike.
On a CPU with bfloat16 instructions (AMX) XLA multiplies them five to eight times as fast as float32, if the factors lie
in the order in which it reads them: a product over tokens, which is what a weight's gradient is, has to be turned first
(:func:`turned`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_TILE = 8


def factors_for(name: str | None, dtype: Any) -> Any:
    """The type that ``backbone.matmul_dtype`` names; None for none, and for weights that are narrower themselves."""
    return jnp.dtype(name) if name is not None and dtype == jnp.float32 else None


def rounded(factors: Any, a: Float[Array, "M I"], b: Float[Array, "_ _"], turn: bool = False) -> Float[Array, "M O"]:
    """a b, or a b^T with ``turn``; ``factors`` None: as it is, else both rounded to that type and summed in float32.

    The turn is said to the product itself: a transpose before it would have the CPU widen both factors.
    """
    if factors is None:
        return a @ (b.T if turn else b)
    axes = (((1,), (1 if turn else 0,)), ((), ()))
    return jax.lax.dot_general(a.astype(factors), b.astype(factors), axes, preferred_element_type=jnp.float32)


def turned(x: Float[Array, "M C"]) -> Float[Array, "C M"]:
    """The transpose, written out.

    On a CPU XLA would fold a plain one into the product that reads it, and then widen both factors to float32: 12.5 ms
    instead of 2.8 for [576, 2048] x [2048, 1536]. One of a product's result it folds after it has decided not to widen,
    and then has no kernel (jax 0.10.2). Through a third axis it is kept.
    """
    if jax.default_backend() != "cpu":
        return x.T
    rows, columns = x.shape
    x = jnp.pad(x, ((0, -rows % _TILE), (0, 0)))
    return x.reshape(-1, _TILE, columns).transpose(2, 0, 1).reshape(columns, -1)[:, :rows]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def product(factors: Any, turn: bool, x: Float[Array, "M I"], weight: Float[Array, "_ _"]) -> Float[Array, "M O"]:
    """x W in float32, of factors rounded to ``factors``; so are those of its gradient.

    Args:
        factors: type of the factors.
        turn: the weight lies as [O, I] and not as [I, O].
        x: rows, float32 or rounded already (its gradient has its type).
        weight: float32, or narrower.
    """
    return rounded(factors, x, weight, turn)


def _product_forward(factors: Any, turn: bool, x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(factors, turn, x, weight), (x, weight)


def _product_backward(factors: Any, turn: bool, saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, weight = saved
    narrow, grad = x.astype(factors), grad.astype(factors)
    of_weight = rounded(factors, turned(grad), narrow) if turn else rounded(factors, turned(narrow), grad)
    return rounded(factors, grad, weight, not turn).astype(x.dtype), of_weight.astype(weight.dtype)


product.defvjp(_product_forward, _product_backward)
