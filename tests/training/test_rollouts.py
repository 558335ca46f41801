"""Group rows: squeezing loses nothing, and the shared prefix gives the naive layout's loss and gradient."""

from __future__ import annotations

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.config import GrpoConfig
from r2rec_jax.sampling.rollout import Rollout
from r2rec_jax.tokens.examples import Example, group_rows, pad
from r2rec_jax.training.grpo import make_grpo_loss, make_passes
from r2rec_jax.training.losses import group_advantages
from r2rec_jax.training.rollouts import GroupBatch, group_shape, squeeze, with_advantages
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


@pytest.fixture(scope="module")
def case(make_examples):
    """Two prompts with three completions each, one of them cut off at the limit, and their scores by old policies."""
    prompts = make_examples(2, seed=9)
    rng = np.random.default_rng(1)
    groups = [[rng.integers(3, 60, n).tolist() for n in row] for row in ((6, 1, 3), (2, 6, 4))]
    rollout = rollout_of(groups, finished=False)
    noise = [rng.normal(-4, 0.3, rollout.tokens.shape).astype(np.float32) for _ in range(2)]
    return prompts, groups, rollout, rng.normal(size=(2, 3)), noise


def scored_by(group: GroupBatch, places, old, reference) -> GroupBatch:
    """The pass with these policies' scores; ``places`` says which (prompt, completion, token) each column holds."""
    def laid(values):
        out = np.zeros(group.weights.shape, np.float32)
        out[0, : len(places)] = [values[place] for place in places]
        return out

    return group.replace(**{name: None if values is None else laid(values)
                            for name, values in (("old", old), ("reference", reference))})


@pytest.mark.parametrize(("micro", "shards"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_advantages_lie_at_their_completions_tokens(case, micro, shards):
    prompts, groups, rollout, _, _ = case
    config = GrpoConfig(group_size=3, prompts_per_step=2, micro_prompts=micro, max_new_tokens=LIMIT)
    advantages = np.arange(1.0, 7.0).reshape(2, 3)
    passes = with_advantages(make_passes(prompts, rollout, config, 12, 0, shards), advantages)
    columns = np.concatenate([group.advantages for group in passes])
    for p, row in enumerate(groups):
        expected = np.repeat(advantages[p], [len(completion) for completion in row])
        np.testing.assert_array_equal(columns[p, : len(expected)], expected)
        assert not columns[p, len(expected):].any()
    assert not columns[2:].any(), "rows of padding"


PROGRAMS = [(beta, iterations, level, cap) for beta, iterations, level, cap in itertools.product(
    (0.0, 0.1), (1, 2), ("token", "sequence"), (None, 1.5))
    if (beta > 0) ^ (iterations > 1) ^ (level == "sequence") ^ (cap is None)]
"""Half of the combinations: any three of the four options in all of theirs."""


@pytest.mark.slow
@pytest.mark.parametrize(("beta", "iterations", "level", "cap"), PROGRAMS)
def test_shared_prefix_equals_the_naive_layout(tiny, case, beta, iterations, level, cap):
    """Value and gradient under every option: the parameters here make programs, those within change what they get."""
    model, lora = tiny
    prompts, groups, rollout, rewards, (old, reference) = case
    program = GrpoConfig(group_size=3, prompts_per_step=2, beta=beta, iterations=iterations, importance=level,
                         sampler_cap=cap, max_new_tokens=LIMIT, temperature=0.7)
    step = jax.jit(jax.value_and_grad(make_grpo_loss(model, program), has_aux=True))
    scores = old if iterations > 1 else None, reference if beta else None

    def add(total, group):
        (value, _), grads = jax.device_get(step(lora, model.base, group))
        return total[0] + value, [a + b for a, b in zip(total[1], jax.tree.leaves(grads), strict=True)]

    for form, mask_truncated, scale in itertools.product(
            ("grpo", "dr_grpo", "dapo", "bnpo"), (False, True), ("group", "batch", "none")):
        config = replace(program, loss=form, mask_truncated=mask_truncated, scale_rewards=scale)
        passes = with_advantages(make_passes(prompts, rollout, config, 12, 0), group_advantages(rewards, scale))
        assert len(passes) == 2
        shared = naive = 0.0, [np.zeros(x.shape, np.float32) for x in jax.tree.leaves(lora)]
        for p, group in enumerate(passes):
            places = [(p, g, t) for g in range(3) for t in range(rollout.lengths[p, g])]
            shared = add(shared, scored_by(group, places, *scores))
            length, targets = group.rows.tokens.shape[1], group.weights.shape[1]
            for g in range(3):
                columns = np.array([i for i, place in enumerate(places) if place[1] == g])
                rows = pad([Example("x", prompts[p].prompt_ids, tuple(groups[p][g]))], length, targets)
                parts = [np.pad(np.asarray(x)[:, columns], ((0, 0), (0, targets - len(columns))))
                         for x in (group.advantages, group.weights, group.sampled)]
                alone = GroupBatch(rows, *parts, np.zeros((1, targets), np.int32))
                naive = add(naive, scored_by(alone, [place for place in places if place[1] == g], *scores))
        told = (form, mask_truncated, scale)
        assert shared[0] == pytest.approx(naive[0], rel=1e-4, abs=1e-6), told
        largest = max(float(np.abs(x).max()) for x in naive[1])
        assert largest > 1e-4, told
        for a, b in zip(shared[1], naive[1], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5 * largest, err_msg=str(told))
