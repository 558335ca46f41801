"""Chunked log-probabilities against torch's log_softmax: values, gradients, and no full logits anywhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.extend.core import ClosedJaxpr, Jaxpr

from r2rec_jax.models.logprobs import row_logprobs

B, T, C, D, V = 2, 40, 32, 8, 512


@pytest.fixture
def case() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(B, T, D)).astype(np.float32), rng.integers(0, T, (B, C)), rng.integers(0, V, (B, C)),
            rng.normal(size=(D, V)).astype(np.float32), rng.normal(size=(B, C)).astype(np.float32))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("vocab_first", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_values_and_gradients_equal_torch(case, temperature, chunk, vocab_first) -> None:
    hidden, index, targets, head, weights = case
    stored = jnp.asarray(head.T if vocab_first else head)

    def loss(hidden, head):
        logprobs, entropy = row_logprobs(hidden, jnp.asarray(index), jnp.asarray(targets), head, temperature, chunk,
                                         vocab_first=vocab_first)
        return jnp.sum(logprobs * weights), (logprobs, entropy)

    (_, (logprobs, entropy)), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        jnp.asarray(hidden), stored)
    frozen = jax.grad(lambda hidden: loss(hidden, stored)[0])(jnp.asarray(hidden))  # computed in the forward pass

    h, w = torch.tensor(hidden, requires_grad=True), torch.tensor(head, requires_grad=True)
    picked = torch.gather(h, 1, torch.tensor(index)[..., None].expand(-1, -1, D))
    full = torch.log_softmax(picked @ w / temperature, dim=-1)
    expected = torch.gather(full, 2, torch.tensor(targets)[..., None])[..., 0]
    (expected * torch.tensor(weights)).sum().backward()
    np.testing.assert_allclose(logprobs, expected.detach(), atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(entropy, -(full.exp() * full).sum(-1).detach(), atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(grads[0], h.grad, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(frozen, h.grad, atol=2e-5, rtol=1e-4)
    np.testing.assert_allclose(grads[1].T if vocab_first else grads[1], w.grad, atol=2e-5, rtol=1e-4)


def test_no_gradient_flows_through_the_entropy(case) -> None:
    hidden, index, targets, head, _ = map(jnp.asarray, case)
    grads = jax.grad(lambda *x: jnp.sum(row_logprobs(x[0], index, targets, x[1])[1]), (0, 1))(hidden, head)
    assert all(not np.any(grad) for grad in grads)


def _largest(jaxpr: Jaxpr) -> int:
    """Elements of the largest array in a program, inner programs included."""
    most = 0
    for equation in jaxpr.eqns:
        most = max([most, *(int(np.prod(v.aval.shape)) for v in equation.outvars)])
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, Jaxpr | ClosedJaxpr)):
            if isinstance(inner, ClosedJaxpr):
                inner = inner.jaxpr
            if isinstance(inner, Jaxpr):
                most = max(most, _largest(inner))
    return most


def test_full_logits_never_exist(case) -> None:
    hidden, index, targets, head, weights = map(jnp.asarray, case)

    def loss(hidden, head, chunk):
        return jnp.sum(row_logprobs(hidden, index, targets, head, 0.6, chunk)[0] * weights)

    def largest(chunk: int) -> int:
        return _largest(jax.make_jaxpr(lambda h, w: jax.grad(loss, argnums=(0, 1))(h, w, chunk))(hidden, head).jaxpr)

    assert largest(B * C) >= B * C * V, "the measure must see full logits where they do exist"
    assert largest(8) <= 8 * V
    for trained in ((0,), (0, 1)):  # the head frozen, and trained
        compiled = jax.jit(jax.grad(lambda h, w: loss(h, w, 8), argnums=trained)).lower(hidden, head).compile()
        assert compiled.memory_analysis().temp_size_in_bytes < 4 * B * C * V
