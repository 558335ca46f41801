"""GRPO's loss and its gradient against PyTorch, for every option, completion by completion."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.training.losses import completion_weights, group_advantages, grpo_loss

torch = pytest.importorskip("torch")

OPTIONS = list(itertools.product(
    ("grpo", "dr_grpo", "dapo", "bnpo"), ((0.2, 0.28),), (0.0, 0.04), ("group", "batch", "none"),
    (True, False), (True, False), ("token", "sequence")))


@pytest.mark.parametrize(("form", "eps", "beta", "scale", "mask_truncated", "use_old", "level"), OPTIONS)
def test_loss_and_gradient_equal_torch(form, eps, beta, scale, mask_truncated, use_old, level):
    rng = np.random.default_rng(11)
    lengths = np.array([[6, 2, 4, 1], [3, 6, 5, 6]])
    finished = np.array([[False, True, True, True], [True, False, True, True]])
    shape, limit = (2, 4, 6), 6
    new = rng.normal(-2, 0.5, shape).astype(np.float32)
    old, ref = (new + rng.normal(0, 0.4, shape).astype(np.float32) for _ in range(2))
    rewards = rng.normal(size=(2, 4))
    mask = np.arange(6) < lengths[:, :, None]
    kept = finished if mask_truncated else np.ones_like(finished)

    weights = completion_weights(lengths, kept, form, limit)[:, :, None] * mask
    advantages = np.broadcast_to(group_advantages(rewards, scale)[:, :, None], shape)
    rows = [np.asarray(x, np.float32).reshape(2, -1) for x in (new, old, ref, advantages, weights)]
    completions = np.broadcast_to(np.arange(4)[None, :, None], shape).reshape(2, -1) if level == "sequence" else None
    value, gradient = jax.value_and_grad(lambda x: grpo_loss(
        x, rows[1] if use_old else None, rows[2] if beta else None, *rows[3:], epsilon=eps[0], epsilon_high=eps[1],
        beta=beta, completions=completions, group=4)[0])(jnp.asarray(rows[0]))
    gradient = np.asarray(gradient).reshape(shape)

    policy = torch.tensor(new, dtype=torch.float64, requires_grad=True)
    old_t = torch.tensor(old, dtype=torch.float64) if use_old else policy.detach()
    group = torch.tensor(rewards)
    centred = group - group.mean(dim=1, keepdim=True)
    if scale != "none":
        centred = centred / ((group.std(dim=1, keepdim=True) if scale == "group" else group.std()) + 1e-4)
    log_ratio = policy - old_t
    if level == "sequence":
        tokens = torch.tensor(mask, dtype=torch.float64)
        log_ratio = ((log_ratio * tokens).sum(-1) / tokens.sum(-1)).unsqueeze(-1).expand(shape)
    ratio = torch.exp(log_ratio)
    clipped = torch.clamp(ratio, 1 - eps[0], 1 + eps[1])
    per_token = -torch.min(ratio * centred[:, :, None], clipped * centred[:, :, None])
    d = torch.tensor(ref, dtype=torch.float64) - policy
    per_token = per_token + beta * (torch.exp(d) - d - 1)
    keep = torch.tensor(mask & kept[:, :, None], dtype=torch.float64)
    summed = (per_token * keep).sum(-1)
    if form == "grpo":
        expected = (summed / torch.tensor(lengths)).mean()
    elif form == "dr_grpo":
        expected = summed.sum() / (lengths.size * limit)
    elif form == "dapo":
        expected = summed.sum() / keep.sum()
    else:
        expected = (summed.sum(-1) / keep.sum((-2, -1))).mean()
    expected.backward()

    np.testing.assert_allclose(value, expected.item(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, policy.grad.numpy(), rtol=1e-4, atol=1e-7)
