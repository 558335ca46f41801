"""GRPO's advantages and objective (Eq. 4), arrays in and arrays out.

    J = mean_i (1/|o_i|) sum_t [ w min(rho A_i, clip(rho, 1 - eps, 1 + eps_high) A_i) - beta (exp(d) - d - 1) ]
    rho = exp(log pi - log pi_old),  d = log pi_ref - log pi,  both log-ratios clamped to +-20;  loss = -J

``rho`` is one number a token (``importance: token``), or the geometric mean of the completion's (``sequence``, GSPO).
``w`` is 1, or min(pi_old / pi_sampled, cap) with its gradient stopped, for a sampler whose log-probabilities differ
from the trainer's (truncated importance sampling, ``sampler_cap``).

The average over completions and tokens is a weight a token, computed once on the host (:func:`completion_weights`), so
the loss is a plain weighted sum that does not care how completions lie in rows, nor how an update is cut into
micro-batches. The paper gives Eq. 4 with a KL term but not its estimator; this is the k3 estimator of Schulman (2020),
whose gradient is not zero where the value is (exp(d) - 1, through d).

``dr_grpo``: Liu et al., 2025 (a constant instead of |o_i|). ``dapo``: Yu et al., 2025 (mean over all tokens of the
update). ``bnpo``: the mean over the tokens of each device pass, as trl has it. GSPO: Zheng et al., 2025. Truncated
importance sampling between engines: Yao et al., 2025.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

LossForm = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
Scale = Literal["group", "batch", "none"]

LOG_RATIO_LIMIT = 20.0
STD_FLOOR = 1e-4


def group_advantages(rewards: Float[np.ndarray, "P G"], scale: Scale = "group") -> Float[np.ndarray, "P G"]:
    """A_i = (R_i - mean of the group) / (std + 1e-4), with the sample standard deviation.

    Args:
        rewards: of G >= 2 completions a prompt.
        scale: whose deviation divides: the ``group``'s, that of all rewards of the ``batch``, or ``none`` (Dr. GRPO).

    Returns:
        Float32 advantages; those of a group sum to 0. ``[[1, 2, 3]]`` gives about ``[[-1, 0, 1]]``.

    Raises:
        ValueError: when a reward is not finite or a group has fewer than two completions.
    """
    values = np.asarray(rewards, np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"rewards must be [prompts, completions >= 2]; got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"rewards must be finite; got {values[~np.isfinite(values)][0]}")
    centred = values - values.mean(axis=1, keepdims=True)
    if scale == "group":
        centred = centred / (values.std(axis=1, ddof=1, keepdims=True) + STD_FLOOR)
    elif scale == "batch":
        centred = centred / (values.std(ddof=1) + STD_FLOOR)
    elif scale != "none":
        raise ValueError(f"grpo.scale_rewards must be 'group', 'batch' or 'none'; got {scale!r}")
    return centred.astype(np.float32)


def completion_weights(
    lengths: Int[np.ndarray, "P G"], kept: Bool[np.ndarray, "P G"], form: LossForm, max_new_tokens: int,
    micro_prompts: int = 1,
) -> Float[np.ndarray, "P G"]:
    """The weight of each token of a completion in J, so that J = sum over tokens of weight * term.

    A completion that is not kept (truncated, with ``mask_truncated``) weighs nothing. In ``grpo`` and ``dr_grpo`` it
    still counts in the number N of completions, so dropping one never makes the others louder.

    Args:
        lengths: tokens of each completion, the end token included.
        kept: whether it is trained on.
        form: ``grpo`` 1 / (N |o_i|); ``dr_grpo`` 1 / (N max_new_tokens); ``dapo`` 1 / (tokens of the update);
            ``bnpo`` 1 / (passes * tokens of the pass), passes of ``micro_prompts`` prompts each.
        max_new_tokens: completion limit.
        micro_prompts: prompts of a device pass (``bnpo`` alone depends on it).

    Returns:
        Float32 weights. Lengths ``[[1, 3]]``, all kept: grpo ``[[1/2, 1/6]]``, dapo ``[[1/4, 1/4]]``.

    Raises:
        ValueError: no such form.
    """
    tokens = np.maximum(np.asarray(lengths, np.float64), 1)
    if form == "grpo":
        weights = 1 / (tokens * tokens.size)
    elif form == "dr_grpo":
        weights = np.full(tokens.shape, 1 / (max_new_tokens * tokens.size))
    elif form == "dapo":
        weights = np.full(tokens.shape, 1 / max(1.0, float((tokens * kept).sum())))
    elif form == "bnpo":
        starts = np.arange(0, len(tokens), micro_prompts)
        sums = np.add.reduceat((tokens * kept).sum(axis=1), starts)
        per_pass = 1 / (np.maximum(sums, 1) * len(starts))
        weights = np.broadcast_to(per_pass[np.arange(len(tokens)) // micro_prompts, None], tokens.shape)
    else:
        raise ValueError(f"grpo.loss must be 'grpo', 'dr_grpo', 'dapo' or 'bnpo'; got {form!r}")
    return (weights * kept).astype(np.float32)


def grpo_loss(
    logprobs: Float[Array, "B C"],
    old_logprobs: Float[Array, "B C"] | None,
    reference_logprobs: Float[Array, "B C"] | None,
    advantages: Float[Array, "B C"],
    weights: Float[Array, "B C"],
    *,
    epsilon: float,
    epsilon_high: float,
    beta: float,
    completions: Int[Array, "B C"] | None = None,
    group: int = 0,
    sampled_logprobs: Float[Array, "B C"] | None = None,
    sampler_cap: float | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """-J over the tokens of weight > 0, and what is logged beside it.

    Args:
        logprobs: of the policy that is trained; gradients flow through these alone.
        old_logprobs: of the policy that sampled; None takes ``logprobs`` themselves with the gradient stopped, which
            is the same for the first update after a rollout.
        reference_logprobs: of the reference policy; None leaves the KL term out.
        advantages: A_i, repeated over the completion's tokens.
        weights: of :func:`completion_weights`; 0 for padding and dropped completions, whatever the other arrays hold.
        epsilon, epsilon_high: clip range below and above 1.
        beta: weight of the KL term.
        completions: which completion of its row a token belongs to, 0 to ``group`` - 1: the ratio is then the geometric
            mean over each completion (``importance: sequence``); None for a ratio a token.
        group: completions a row, with ``completions``.
        sampled_logprobs: as the sampler reported them, with ``sampler_cap``.
        sampler_cap: largest weight w that corrects for a sampler that differs from the trainer; None leaves w = 1.

    Returns:
        The loss, and sums over the tokens of weight > 0: ``tokens``, ``kl``, ``ratio``, ``clip_low``, ``clip_high``
        (tokens whose gradient was clipped away below or above), ``correction`` (w). Divide by ``tokens`` for means.
    """
    mask = weights > 0
    logprobs = jnp.where(mask, logprobs, 0)
    old = jax.lax.stop_gradient(logprobs) if old_logprobs is None else jnp.where(mask, old_logprobs, 0)
    log_ratio = logprobs - old
    if completions is not None:
        log_ratio = mean_by_completion(log_ratio, mask, completions, group)
    ratio = jnp.exp(jnp.clip(log_ratio, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT))
    clipped = jnp.clip(ratio, 1 - epsilon, 1 + epsilon_high)
    advantages = jnp.where(mask, advantages, 0)
    correction = jnp.ones_like(logprobs)
    if sampler_cap is not None and sampled_logprobs is not None:
        apart = jnp.where(mask, old - sampled_logprobs, 0)
        correction = jax.lax.stop_gradient(jnp.minimum(jnp.exp(jnp.minimum(apart, LOG_RATIO_LIMIT)), sampler_cap))
    terms = correction * jnp.minimum(ratio * advantages, clipped * advantages)
    kl = jnp.zeros_like(logprobs)
    if reference_logprobs is not None:
        d = jnp.clip(jnp.where(mask, reference_logprobs, 0) - logprobs, -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        kl = jnp.expm1(d) - d
    loss = -jnp.sum(weights * (terms - beta * kl))
    low = mask & (ratio < 1 - epsilon) & (advantages < 0)
    high = mask & (ratio > 1 + epsilon_high) & (advantages > 0)
    sums = {"tokens": mask, "kl": kl, "ratio": jnp.where(mask, ratio, 0), "clip_low": low, "clip_high": high,
            "correction": jnp.where(mask, correction, 0)}
    return loss, {name: jax.lax.stop_gradient(jnp.sum(x.astype(jnp.float32))) for name, x in sums.items()}


def mean_by_completion(values: Float[Array, "B C"], mask: Bool[Array, "B C"], completions: Int[Array, "B C"], group: int
                       ) -> Float[Array, "B C"]:
    """The mean over each completion's tokens, at each of its tokens.

    Values ``[[1, 3, 5]]`` of completions ``[[0, 0, 1]]``, nothing masked, give ``[[2, 2, 5]]``.
    """
    of = jax.nn.one_hot(completions, group, dtype=values.dtype) * mask[..., None]
    sums = jnp.einsum("BC,BCG->BG", jnp.where(mask, values, 0), of)
    return jnp.einsum("BG,BCG->BC", sums / jnp.maximum(of.sum(axis=1), 1), of)
