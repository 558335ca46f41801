"""Log-probabilities of given tokens without full logits.

log p(t) = (z_t - logsumexp(z)) with z = h W / temperature, in float32, over the whole vocabulary (never the top-p
set), so that sampled and scored values agree. Positions go through the head in chunks; each chunk is recomputed in the
backward pass, so at most [chunk, V] logits exist at a time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_logprobs(
    hidden: Float[Array, "M D"],
    targets: Int[Array, " M"],
    head: Float[Array, "D V"],
    temperature: float = 1.0,
    chunk: int = 256,
) -> tuple[Float[Array, " M"], Float[Array, " M"]]:
    """Log-probability of each target and the entropy of its distribution, both float32, in nats.

    Args:
        hidden: states that predict.
        targets: the token whose probability is asked for.
        head: output projection.
        temperature: logits are divided by it.
        chunk: positions a pass; M is padded up to a multiple of it.
    """
    count, width = hidden.shape
    chunk = min(chunk, count)
    padded = -(-count // chunk) * chunk
    hidden = jnp.pad(hidden, ((0, padded - count), (0, 0))).reshape(-1, chunk, width)
    ids = jnp.pad(targets, (0, padded - count)).reshape(-1, chunk)

    @jax.checkpoint
    def score(h: Float[Array, "C D"], t: Int[Array, " C"]) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        logits = jnp.einsum("CD,DV->CV", h, head, preferred_element_type=jnp.float32) / temperature
        log_z = jax.nn.logsumexp(logits, axis=-1)
        chosen = jnp.take_along_axis(logits, t[:, None], axis=-1)[:, 0]
        expected = jnp.sum(jnp.exp(logits - log_z[:, None]) * logits, axis=-1)
        return chosen - log_z, jax.lax.stop_gradient(log_z - expected)

    logprobs, entropy = jax.lax.map(lambda args: score(*args), (hidden, ids))
    return logprobs.reshape(-1)[:count], entropy.reshape(-1)[:count]


def row_logprobs(
    hidden: Float[Array, "B T D"],
    target_index: Int[Array, "B C"],
    target_tokens: Int[Array, "B C"],
    head: Float[Array, "D V"],
    temperature: float = 1.0,
    chunk: int = 256,
) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
    """:func:`token_logprobs` at chosen places of rows: ``hidden[b, target_index[b, c]]`` predicts
    ``target_tokens[b, c]``. Padded targets (weight 0) point anywhere and must be masked by the caller.
    """
    picked = jnp.take_along_axis(hidden, target_index[..., None], axis=1)
    flat = picked.reshape(-1, picked.shape[-1])
    logprobs, entropy = token_logprobs(flat, target_tokens.reshape(-1), head, temperature, chunk)
    return logprobs.reshape(target_tokens.shape), entropy.reshape(target_tokens.shape)
