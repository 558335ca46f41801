"""Log-probabilities of given tokens without full logits.

log p(t) = (z_t - logsumexp(z)) with z = h W / temperature, in float32, over the whole vocabulary (never the top-p
set), so that sampled and scored values agree. Positions go through the head in chunks, so at most [chunk, V] logits
exist at a time.

A log-probability depends on its own hidden state alone, so under a frozen head its whole gradient is one vector a
position, which the forward pass leaves behind while the chunk's logits are there:

    d log p(t) / d h = (W[:, t] - sum_v p_v W[:, v]) / temperature

The backward pass is then a product with numbers, and no logits are computed twice. Where the head is trained
(pretraining), each chunk is recomputed in the backward pass instead.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from r2rec_jax.models.products import multiply, multiply_weight

CHUNK = 256
"""Positions a pass through the head, on one device."""

_Form = tuple[bool, Any]
"""(vocab_first, matmul_dtype), as arguments of :func:`row_logprobs`."""


def row_logprobs(
    hidden: Float[Array, "B T D"],
    target_index: Int[Array, "B C"],
    target_tokens: Int[Array, "B C"],
    head: Float[Array, "_ _"],
    temperature: float = 1.0,
    chunk: int = CHUNK,
    *,
    vocab_first: bool = False,
    matmul_dtype: Any = None,
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """Log-probability of each target and the entropy of its distribution, both float32, in nats.

    Args:
        hidden: states of rows; ``hidden[b, target_index[b, c]]`` predicts ``target_tokens[b, c]``.
        target_index: padded targets (weight 0) point anywhere and must be masked by the caller.
        target_tokens: the token whose probability is asked for.
        head: output projection [D, V], or [V, D] with ``vocab_first`` (a tied embedding as it is stored: transposing
            it would copy it once a pass).
        temperature: logits are divided by it.
        chunk: positions a pass, of all rows together; the targets are padded up to whole passes.
        vocab_first: how ``head`` is stored.
        matmul_dtype: what the factors of the head's products are rounded to (``models.products``), None for not at all.
    """
    picked = jnp.take_along_axis(hidden, target_index[..., None], axis=1)
    return _score_rows(picked, target_tokens, head, temperature, chunk, (vocab_first, matmul_dtype))


def _score_rows(hidden: Float[Array, "B C D"], targets: Int[Array, "B C"], head: Float[Array, "_ _"],
                temperature: float, chunk: int, form: _Form) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """A chunk takes as many positions of every row, so that devices that hold different rows work on it together."""
    rows, count, _ = hidden.shape
    width = min(count, max(1, chunk // rows))
    passes = -(-count // width)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, passes * width - count), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(rows, passes, width, *x.shape[2:]).swapaxes(0, 1)

    def join(x: Float[Array, "K B W"]) -> Float[Array, "B C"]:
        return x.swapaxes(0, 1).reshape(rows, -1)[:, :count]

    scored: Any = _score_chunks(temperature, form, cut(hidden), cut(targets), head)
    logprobs, entropy = scored
    return join(logprobs), join(jax.lax.stop_gradient(entropy))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _score_chunks(
    temperature: float, form: _Form, hidden: Float[Array, "K B W D"], ids: Int[Array, "K B W"],
    head: Float[Array, "_ _"],
) -> tuple[Float[Array, "K B W"], Float[Array, "K B W"]]:
    return jax.lax.map(lambda args: _score(temperature, form, args[0], args[1], head)[:2], (hidden, ids))


def _score(temperature: float, form: _Form, h: Float[Array, "B W D"], t: Int[Array, "B W"],
           head: Float[Array, "_ _"]) -> tuple[Float[Array, "B W"], Float[Array, "B W"], Float[Array, "B W V"]]:
    """(log-probabilities, entropies, probabilities) of one chunk."""
    logits = _logits(form, h, head) / temperature
    log_z = jax.nn.logsumexp(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, t[..., None], axis=-1)[..., 0]
    probs = jnp.exp(logits - log_z[..., None])
    return chosen - log_z, log_z - jnp.sum(probs * logits, axis=-1), probs


def _logits(form: _Form, h: Float[Array, "B W D"], head: Float[Array, "_ _"]) -> Float[Array, "B W V"]:
    vocab_first, matmul_dtype = form
    if matmul_dtype is not None:
        logits: Any = multiply_weight(matmul_dtype, vocab_first, h.reshape(-1, h.shape[-1]), head)
        return logits.reshape(*h.shape[:-1], -1)
    return jnp.einsum("BWD,VD->BWV" if vocab_first else "BWD,DV->BWV", h, head, preferred_element_type=jnp.float32)


def _weigh(form: _Form, of_logits: Float[Array, "B W V"], head: Float[Array, "_ _"]) -> Float[Array, "B W D"]:
    vocab_first, matmul_dtype = form
    if matmul_dtype is not None:
        rows = multiply(matmul_dtype, of_logits.reshape(-1, of_logits.shape[-1]), head, turn=not vocab_first)
        return rows.reshape(*of_logits.shape[:-1], -1)
    axes = "BWV,VD->BWD" if vocab_first else "BWV,DV->BWD"
    return jnp.einsum(axes, of_logits.astype(head.dtype), head, preferred_element_type=jnp.float32)


def _forward(temperature: float, form: _Form, hidden: Any, ids: Any, head: Any) -> tuple[Any, tuple[Any, ...]]:
    states, tokens, weights = hidden.value, ids.value, head.value
    if head.perturbed:
        return _score_chunks(temperature, form, states, tokens, weights), (states, tokens, weights, None)

    def score(args: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        logprobs, entropy, probs = _score(temperature, form, args[0], args[1], weights)
        # Subtracted before a factor is rounded: where the model is certain, the two sides of the formula cancel.
        of_logits = jax.nn.one_hot(args[1], probs.shape[-1]) - probs
        return logprobs, entropy, _weigh(form, of_logits, weights) / temperature

    logprobs, entropy, slopes = jax.lax.map(score, (states, tokens))
    return (logprobs, entropy), (states, tokens, None, slopes)


def _backward(temperature: float, form: _Form, saved: tuple[Any, ...], grads: tuple[Any, Any]
              ) -> tuple[Any, Any, Any]:
    hidden, ids, head, slopes = saved
    grad = grads[0]
    if isinstance(grad, jax.custom_derivatives.SymbolicZero):
        grad = jnp.zeros(ids.shape, jnp.float32)
    if head is None:
        return (grad[..., None] * slopes).astype(hidden.dtype), None, None

    def chunk(total: Array, args: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        h, t, g = args
        _, pull = jax.vjp(lambda h, w: _score(temperature, form, h, t, w)[0], h, head)
        grad_h, grad_w = pull(g)
        return total + grad_w, grad_h

    grad_head, grad_hidden = jax.lax.scan(chunk, jnp.zeros_like(head), (hidden, ids, grad))
    return grad_hidden, None, grad_head


_score_chunks.defvjp(_forward, _backward, symbolic_zeros=True)
