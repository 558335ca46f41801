"""Log-probabilities of given tokens without full logits.

log p(t) = (z_t - logsumexp(z)) with z = h W / temperature, in float32, over the whole vocabulary (never the top-p
set), so that sampled and scored values agree. Positions go through the head in chunks; each chunk is recomputed in the
backward pass, so at most [chunk, V] logits exist at a time. A chunk takes as many positions of every row, so that
devices that hold different rows work on it together.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

CHUNK = 256
"""Positions a pass through the head, on one device."""


def token_logprobs(
    hidden: Float[Array, "M D"],
    targets: Int[Array, " M"],
    head: Float[Array, "D V"],
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Log-probability of each target and the entropy of its distribution, both float32, in nats.

    Args:
        hidden: states that predict.
        targets: the token whose probability is asked for.
        head: output projection.
        temperature: logits are divided by it.
        chunk: positions a pass; M is padded up to a multiple of it.
    """
    logprobs, entropy = _score(hidden[None], targets[None], head, temperature, chunk)
    return logprobs[0], entropy[0]


def row_logprobs(
    hidden: Float[Array, "B T D"],
    target_index: Int[Array, "B C"],
    target_tokens: Int[Array, "B C"],
    head: Float[Array, "D V"],
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """:func:`token_logprobs` at chosen places of rows: ``hidden[b, target_index[b, c]]`` predicts
    ``target_tokens[b, c]``. Padded targets (weight 0) point anywhere and must be masked by the caller.
    """
    picked = jnp.take_along_axis(hidden, target_index[..., None], axis=1)
    return _score(picked, target_tokens, head, temperature, chunk)


def _score(hidden: Float[Array, "B C D"], targets: Int[Array, "B C"], head: Float[Array, "D V"], temperature: float,
           chunk: int) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    rows, count, _ = hidden.shape
    width = min(count, max(1, chunk // rows))
    passes = -(-count // width)

    def cut(x: Array) -> Array:
        x = jnp.pad(x, ((0, 0), (0, passes * width - count), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(rows, passes, width, *x.shape[2:]).swapaxes(0, 1)

    def join(x: Float[Array, "passes B W"]) -> Float[Array, "B C"]:
        return x.swapaxes(0, 1).reshape(rows, -1)[:, :count]

    @jax.checkpoint
    def score(h: Float[Array, "B W D"], t: Int[Array, "B W"]) -> tuple[Float[Array, "B W"], Float[Array, "B W"]]:
        logits = jnp.einsum("BWD,DV->BWV", h, head, preferred_element_type=jnp.float32) / temperature
        log_z = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, t[..., None], axis=-1)[..., 0]
        expected = jnp.sum(jnp.exp(logits - log_z[..., None]) * logits, axis=-1)
        return chosen - log_z, jax.lax.stop_gradient(log_z - expected)

    logprobs, entropy = jax.lax.map(lambda args: score(*args), (cut(hidden), cut(targets)))
    return join(logprobs), join(entropy)
