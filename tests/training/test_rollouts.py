"""Group rows: squeezing loses nothing, and the shared prefix gives the naive layout's loss and gradient."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.config import GrpoConfig
from r2rec_jax.sampling.decoder import Rollout
from r2rec_jax.tokens.examples import Example, group_rows, pad
from r2rec_jax.training.grpo import make_grpo_loss, make_passes
from r2rec_jax.training.rollouts import GroupBatch, group_shape, squeeze
from r2rec_jax.training.rows import RowShape

LIMIT = 6


def rollout_of(groups: list[list[list[int]]], finished: bool = True) -> Rollout:
    lengths = np.array([[len(c) for c in group] for group in groups])
    tokens = np.zeros((*lengths.shape, LIMIT), np.int32)
    for (p, g), n in np.ndenumerate(lengths):
        tokens[p, g, :n] = groups[p][g]
    logprobs = np.where(np.arange(LIMIT) < lengths[:, :, None], -2.0, 0.0).astype(np.float32)
    return Rollout(tokens, lengths, logprobs, (lengths < LIMIT) | finished)


def test_squeeze_worked_example():
    padded = group_rows([[5, 6]], [[[7, 2], [8]]], prompt_length=3, completion_length=2)
    tight = squeeze(padded, 2, RowShape(7, 4))
    assert tight.tokens.tolist() == [[5, 6, 7, 2, 8, 0, 0], [0] * 7]
    assert tight.positions.tolist()[0] == [0, 1, 2, 3, 2, 0, 0]
    assert tight.segments.tolist()[0] == [1, 1, 2, 2, 3, 0, 0]
    assert tight.parents.tolist()[0] == [0, 0, 1, 1, 1, 0, 0]
    assert tight.target_index.tolist()[0] == [1, 2, 1, 0]
    assert tight.target_tokens.tolist()[0] == [7, 2, 8, 0]
    assert tight.target_weights.tolist()[0] == [1, 1, 1, 0]
    with pytest.raises(ValueError, match="at most 2 rows of 4 tokens"):
        squeeze(padded, 2, RowShape(4, 4))


ids = st.lists(st.integers(3, 60), min_size=1, max_size=LIMIT)


@given(st.lists(ids, min_size=2, max_size=2), st.lists(st.lists(ids, min_size=3, max_size=3), min_size=2, max_size=2))
@settings(max_examples=50)
def test_squeezed_rows_hold_the_same_tokens_and_targets(prompts, groups):
    padded = group_rows(prompts, groups, LIMIT, LIMIT)
    tight = squeeze(padded, 2, RowShape(4 * LIMIT, 3 * LIMIT))
    for old, new in ((padded, tight),):
        for row in range(2):
            real_old, real_new = old.segments[row] > 0, new.segments[row] > 0
            for name in ("tokens", "positions", "segments", "parents"):
                np.testing.assert_array_equal(getattr(old, name)[row][real_old], getattr(new, name)[row][real_new])
            assert real_new[: real_new.sum()].all(), "no padding between segments"
            kept_old, kept_new = old.target_weights[row] > 0, new.target_weights[row] > 0
            for name in ("tokens", "segments", "positions"):
                at_old = getattr(old, name)[row][old.target_index[row][kept_old]]
                at_new = getattr(new, name)[row][new.target_index[row][kept_new]]
                np.testing.assert_array_equal(at_old, at_new)
            np.testing.assert_array_equal(old.target_tokens[row][kept_old], new.target_tokens[row][kept_new])


def test_shapes_are_few():
    shapes = {group_shape(rollout_of([[[3] * n, [3] * m]]), 70, LIMIT * 100) for n in range(1, 7) for m in range(1, 7)}
    assert len(shapes) == 1
    lengths = [Rollout(np.zeros((1, 8, 1)), np.full((1, 8), n), np.zeros((1, 8, 1)), np.ones((1, 8), bool))
               for n in range(1, 129)]
    assert {group_shape(r, 70, 128) for r in lengths} == {RowShape(128 + c, c) for c in (256, 512, 768, 1024)}


OPTIONS = [*itertools.product(("grpo", "dr_grpo", "dapo", "bnpo"), (0.0, 0.1), (1, 2), (False, True), ("token",)),
           *itertools.product(("grpo", "dapo"), (0.0, 0.1), (1, 2), (True,), ("sequence",))]


@pytest.fixture(scope="module")
def case(make_examples):
    """Two prompts with three completions each, one of them cut off at the limit, and their scores by old policies."""
    prompts = make_examples(2, seed=9)
    rng = np.random.default_rng(1)
    groups = [[rng.integers(3, 60, n).tolist() for n in row] for row in ((6, 1, 3), (2, 6, 4))]
    rollout = rollout_of(groups, finished=False)
    noise = [rng.normal(-4, 0.3, rollout.tokens.shape).astype(np.float32) for _ in range(2)]
    return prompts, groups, rollout, rng.normal(size=(2, 3)), noise


@pytest.fixture(scope="module")
def value_and_grad(tiny):
    """Compiled once for each configuration of the loss that makes a difference to the program."""
    model, _ = tiny
    return {(beta, level): jax.jit(jax.value_and_grad(
        make_grpo_loss(model, GrpoConfig(beta=beta, importance=level, temperature=0.7, sampler_cap=1.5, group_size=3)),
        has_aux=True)) for beta in (0.0, 0.1) for level in ("token", "sequence")}


@pytest.mark.parametrize(("loss", "beta", "iterations", "mask_truncated", "level"), OPTIONS)
def test_shared_prefix_equals_the_naive_layout(tiny, case, value_and_grad, loss, beta, iterations, mask_truncated,
                                              level):
    model, lora = tiny
    prompts, groups, rollout, rewards, (old, reference) = case
    config = GrpoConfig(group_size=3, prompts_per_step=2, loss=loss, beta=beta, iterations=iterations,
                        mask_truncated=mask_truncated, max_new_tokens=LIMIT, temperature=0.7)
    step = value_and_grad[beta, level]

    def scored(group: GroupBatch, places) -> GroupBatch:
        shape = group.weights.shape
        values = [np.zeros(shape, np.float32) for _ in range(2)]
        for row, columns in enumerate(places):
            for column, place in enumerate(columns):
                values[0][row, column], values[1][row, column] = old[place], reference[place]
        return group.replace(old=jnp.asarray(values[0]) if iterations > 1 else None,
                             reference=jnp.asarray(values[1]) if beta else None)

    places = [[(p, g, t) for g in range(3) for t in range(rollout.lengths[p, g])] for p in range(2)]
    shared = 0.0, jax.tree.map(jnp.zeros_like, lora)
    passes = make_passes(prompts, rollout, rewards, config, 12, 0)
    assert len(passes) == 2
    for p, group in enumerate(passes):
        (value, _), grads = step(lora, model.base, scored(group, [places[p]]))
        shared = shared[0] + float(value), jax.tree.map(jnp.add, shared[1], grads)

    naive = 0.0, jax.tree.map(jnp.zeros_like, lora)
    for p, g in np.ndindex(2, 3):
        mine = [place for place in places[p] if place[1] == g]
        columns = [i for i, place in enumerate(places[p]) if place[1] == g]
        length, targets = passes[p].rows.tokens.shape[1], passes[p].weights.shape[1]
        rows = pad([Example("x", prompts[p].prompt_ids, tuple(groups[p][g]))], length, targets)
        parts = [jnp.zeros((1, targets)).at[0, : len(mine)].set(x[0, np.array(columns)])
                 for x in (passes[p].advantages, passes[p].weights, passes[p].sampled)]
        alone = GroupBatch(rows, *parts, jnp.zeros((1, targets), jnp.int32))
        (value, _), grads = step(lora, model.base, scored(alone, [mine]))
        naive = naive[0] + float(value), jax.tree.map(jnp.add, naive[1], grads)

    assert shared[0] == pytest.approx(naive[0], rel=1e-4, abs=1e-6)
    largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(naive[1]))
    assert largest > 1e-4
    for a, b in zip(jax.tree.leaves(shared[1]), jax.tree.leaves(naive[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * largest)
