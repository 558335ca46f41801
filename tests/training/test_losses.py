"""GRPO's advantages and loss against a plain NumPy reference, and the laws they keep."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from r2rec_jax.training.losses import completion_weights, group_advantages, grpo_loss, mean_by_completion

FORMS = ("grpo", "dr_grpo", "dapo", "bnpo")


def case(seed: int = 0) -> dict[str, np.ndarray]:
    """Two groups of three completions of up to five tokens, as [P, G, T] arrays."""
    rng = np.random.default_rng(seed)
    lengths = np.array([[5, 1, 3], [2, 4, 5]])
    shape = (2, 3, 5)
    new = rng.normal(-2, 0.7, shape)
    return {"lengths": lengths, "new": new, "old": new + rng.normal(0, 0.4, shape),
            "ref": new + rng.normal(0, 0.5, shape), "rewards": rng.normal(size=(2, 3)),
            "mask": np.arange(5) < lengths[:, :, None],
            "finished": np.array([[True, True, False], [True, False, True]])}


def plain_loss(c: dict[str, np.ndarray], form: str, eps: float, eps_high: float, beta: float, scale: str,
               mask_truncated: bool, max_new: int, use_old: bool) -> float:
    """Eq. 4, completion by completion and token by token."""
    total = 0.0
    count = c["lengths"].size
    kept = c["finished"] if mask_truncated else np.ones_like(c["finished"])
    for p, g in np.ndindex(2, 3):
        group = c["rewards"][p]
        advantage = group[g] - group.mean()
        spread = {"group": group, "batch": c["rewards"], "none": None}[scale]
        if spread is not None:
            advantage /= np.sqrt(((spread - spread.mean()) ** 2).sum() / (spread.size - 1)) + 1e-4
        inner = 0.0
        for t in range(c["lengths"][p, g]):
            new = c["new"][p, g, t]
            rho = np.exp(new - c["old"][p, g, t]) if use_old else 1.0
            d = c["ref"][p, g, t] - new
            inner += min(rho * advantage, np.clip(rho, 1 - eps, 1 + eps_high) * advantage) - beta * (np.exp(d) - d - 1)
        if kept[p, g]:
            share = {"grpo": 1 / (count * c["lengths"][p, g]), "dr_grpo": 1 / (count * max_new),
                     "dapo": 1 / (c["lengths"] * kept).sum(),
                     "bnpo": 1 / (2 * (c["lengths"] * kept)[p].sum())}[form]
            total += share * inner
    return -total


def ours(c: dict[str, np.ndarray], form: str, eps: float, eps_high: float, beta: float, scale: str,
         mask_truncated: bool, max_new: int, use_old: bool):
    kept = c["finished"] if mask_truncated else np.ones_like(c["finished"])
    weights = completion_weights(c["lengths"], kept, form, max_new)[:, :, None] * c["mask"]
    advantages = np.broadcast_to(group_advantages(c["rewards"], scale)[:, :, None], c["mask"].shape)

    def loss(new):
        return grpo_loss(new, c["old"] if use_old else None, c["ref"] if beta else None, advantages, weights,
                         epsilon=eps, epsilon_high=eps_high, beta=beta)

    return loss


OPTIONS = list(itertools.product(FORMS, [(0.2, 0.2), (0.1, 0.3)], [0.0, 0.04], ["group", "batch", "none"],
                                 [True, False]))


@pytest.mark.parametrize(("form", "eps", "beta", "scale", "mask_truncated"), OPTIONS)
def test_loss_equals_the_plain_sum(form, eps, beta, scale, mask_truncated):
    c = case()
    loss = ours(c, form, *eps, beta, scale, mask_truncated, 7, True)
    expected = plain_loss(c, form, *eps, beta, scale, mask_truncated, 7, True)
    np.testing.assert_allclose(loss(jnp.asarray(c["new"], jnp.float32))[0], expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_equals_central_differences(form):
    c = case(1)
    arguments = (form, 0.2, 0.3, 0.04, "group", False, 7, True)
    with jax.enable_x64(True):
        gradient = np.asarray(jax.grad(lambda new: ours(c, *arguments)(new)[0])(jnp.asarray(c["new"])))
    step = 1e-6
    for place in np.ndindex(c["new"].shape):
        up, down = c["new"].copy(), c["new"].copy()
        up[place] += step
        down[place] -= step
        slope = (plain_loss({**c, "new": up}, *arguments) - plain_loss({**c, "new": down}, *arguments)) / (2 * step)
        np.testing.assert_allclose(gradient[place], slope, rtol=1e-4, atol=1e-7)


def test_first_update_needs_no_old_logprobs():
    """With old = new, value and gradient are those of the policy's own log-probabilities with the gradient stopped."""
    c = case(2)
    arguments = ("grpo", 0.2, 0.2, 0.04, "group", False, 7)
    new = jnp.asarray(c["new"], jnp.float32)
    scored = jax.value_and_grad(lambda x: ours({**c, "old": c["new"].astype(np.float32)}, *arguments, True)(x)[0])(new)
    stopped = jax.value_and_grad(lambda x: ours(c, *arguments, False)(x)[0])(new)
    np.testing.assert_allclose(scored[0], stopped[0], rtol=1e-6)
    np.testing.assert_allclose(scored[1], stopped[1], rtol=1e-6)
    assert float(jnp.abs(stopped[1]).max()) > 0.01


def test_kl_has_a_gradient_and_pulls_towards_the_reference():
    new, ref = jnp.array([[-1.0, -3.0]]), jnp.array([[-2.0, -2.0]])
    zero, one = jnp.zeros((1, 2)), jnp.ones((1, 2))
    gradient = jax.grad(lambda x: grpo_loss(x, None, ref, zero, one, epsilon=0.2, epsilon_high=0.2, beta=1.0)[0])(new)
    np.testing.assert_allclose(gradient, 1 - np.exp(ref - new), rtol=1e-5)
    assert gradient[0, 0] > 0 > gradient[0, 1]
    assert grpo_loss(new, None, ref, zero, one, epsilon=0.2, epsilon_high=0.2, beta=1.0)[1]["kl"] > 0


def test_far_apart_policies_stay_finite():
    far = jnp.array([[-500.0, 0.0]])
    value, gradient = jax.value_and_grad(
        lambda x: grpo_loss(x, -far - 500, -far - 500, jnp.ones((1, 2)), jnp.ones((1, 2)), epsilon=0.2,
                            epsilon_high=0.2, beta=0.04)[0])(far)
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_clip_counts():
    new = jnp.log(jnp.array([[0.5, 2.0, 0.5, 2.0, 1.0]]))
    advantages = jnp.array([[-1.0, 1.0, 1.0, -1.0, 1.0]])
    _, sums = grpo_loss(new, jnp.zeros((1, 5)), None, advantages, jnp.ones((1, 5)), epsilon=0.2, epsilon_high=0.2,
                        beta=0.0)
    assert (float(sums["clip_low"]), float(sums["clip_high"]), float(sums["tokens"])) == (1, 1, 5)


@pytest.mark.parametrize("garbage", [1e9, np.inf, np.nan])
@pytest.mark.parametrize("form", FORMS)
def test_padding_cannot_change_a_loss(form, garbage):
    c = case(3)
    dirty = {**c} | {name: np.where(c["mask"], c[name], garbage) for name in ("new", "old", "ref")}
    arguments = (form, 0.2, 0.2, 0.04, "group", True, 7, True)
    results = [jax.value_and_grad(ours(d, *arguments), has_aux=True)(jnp.asarray(d["new"], jnp.float32))
               for d in (c, dirty)]
    for clean, soiled in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(clean, soiled)


groups = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(2, 8)), elements=st.floats(-3, 3))


@given(groups, st.sampled_from(["group", "batch", "none"]))
def test_advantages_sum_to_zero(rewards, scale):
    advantages = group_advantages(rewards, scale)
    np.testing.assert_allclose(advantages.astype(np.float64).sum(axis=1), 0, atol=1e-4)
    best = np.argmax(rewards, axis=1)[:, None]
    np.testing.assert_array_equal(np.take_along_axis(advantages, best, axis=1)[:, 0], advantages.max(axis=1))


def test_advantages_use_the_sample_deviation():
    np.testing.assert_allclose(group_advantages(np.array([[1.0, 2.0, 3.0]])), [[-1 / 1.0001, 0, 1 / 1.0001]], rtol=1e-6)
    np.testing.assert_array_equal(group_advantages(np.array([[5.0, 5.0]])), [[0, 0]])
    np.testing.assert_array_equal(group_advantages(np.array([[5.0, 5.0]]), "batch"), [[0, 0]])
    np.testing.assert_allclose(group_advantages(np.array([[1.0, 3.0], [5.0, 5.0]]), "batch"),
                               np.array([[-1.0, 1.0], [0.0, 0.0]]) / (np.std([1, 3, 5, 5], ddof=1) + 1e-4), rtol=1e-6)
    with pytest.raises(ValueError, match="scale_rewards must be 'group', 'batch' or 'none'; got 'both'"):
        group_advantages(np.array([[1.0, 2.0]]), "both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rewards must be finite; got nan"):
        group_advantages(np.array([[1.0, np.nan]]))


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_a_micro_batch_are_those_of_the_update(form):
    lengths, kept = np.array([[1, 3], [2, 2]]), np.array([[True, True], [True, False]])
    weights = completion_weights(lengths, kept, form, 4)
    assert weights[1, 1] == 0
    expected = {"grpo": 3 / 4, "dr_grpo": 6 / 16, "dapo": 1.0, "bnpo": 1.0}[form]
    np.testing.assert_allclose((weights * lengths).sum(), expected, rtol=1e-6)


def test_bnpo_is_the_mean_over_passes_of_their_token_means():
    lengths, kept = np.array([[1, 3], [2, 2], [4, 4]]), np.ones((3, 2), bool)
    weights = completion_weights(lengths, kept, "bnpo", 4, micro_prompts=2)
    np.testing.assert_allclose(weights, [[1 / 16, 1 / 16], [1 / 16, 1 / 16], [1 / 16, 1 / 16]])
    weights = completion_weights(np.array([[1, 1], [4, 4]]), np.ones((2, 2), bool), "bnpo", 4)
    np.testing.assert_allclose(weights, [[1 / 4, 1 / 4], [1 / 16, 1 / 16]])


def test_mean_by_completion():
    mask = jnp.array([[True, True, True, False]])
    got = mean_by_completion(jnp.array([[1.0, 3.0, 5.0, 9.0]]), mask, jnp.array([[0, 0, 1, 1]]), 2)
    np.testing.assert_allclose(got, [[2, 2, 5, 0]])


def test_sequence_ratio_of_one_token_completions_is_the_token_ratio():
    new, old = jnp.array([[-1.0, -3.0, -2.0]]), jnp.array([[-1.5, -2.0, -2.0]])
    advantages, weights = jnp.array([[1.0, -1.0, 2.0]]), jnp.ones((1, 3)) / 3
    options = {"epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.0}

    def loss(x, **more):
        return grpo_loss(x, old, None, advantages, weights, **options, **more)[0]

    token = jax.value_and_grad(loss)(new)
    sequence = jax.value_and_grad(lambda x: loss(x, completions=jnp.array([[0, 1, 2]]), group=3))(new)
    np.testing.assert_allclose(token[0], sequence[0], rtol=1e-6)
    np.testing.assert_allclose(token[1], sequence[1], rtol=1e-6)


def test_truncated_importance_weights():
    """A token that the sampler found e times likelier than the trainer weighs 1/e; a rarer one at most the cap."""
    new = jnp.array([[-1.0, -2.0, -3.0]])
    sampled = new + jnp.array([[1.0, -1.0, 0.0]])

    def terms(x, cap):
        return grpo_loss(x, None, None, jnp.ones((1, 3)), jnp.ones((1, 3)), epsilon=0.2, epsilon_high=0.2, beta=0.0,
                         sampled_logprobs=sampled, sampler_cap=cap)

    value, sums = terms(new, 2.0)
    np.testing.assert_allclose(value, -(np.exp(-1) + 2.0 + 1.0), rtol=1e-6)
    np.testing.assert_allclose(sums["correction"], np.exp(-1) + 2.0 + 1.0, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: terms(x, 2.0)[0])(new), [[-np.exp(-1), -2.0, -1.0]], rtol=1e-6)
    assert float(terms(new, None)[0]) == -3.0
