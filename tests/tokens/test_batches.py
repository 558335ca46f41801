"""Layouts: each target's predictor sees its own context, in order, and nothing else."""

from __future__ import annotations

import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.tokens.examples import Batch, Example, group_rows, pack, pad, plan_packing

ids = st.integers(1, 99)
prompts = st.lists(ids, min_size=1, max_size=6)


def contexts(batch: Batch) -> list[list[tuple[tuple[int, ...], int]]]:
    """For each row, (tokens that the predictor sees, target) of every target with weight, by the attention rule."""
    rows = []
    for b in range(batch.tokens.shape[0]):
        seen = []
        for c in np.flatnonzero(batch.target_weights[b]):
            q = batch.target_index[b, c]
            k = np.arange(q + 1)
            segments = batch.segments[b, k]
            related = (segments == batch.segments[b, q]) | (segments == batch.parents[b, q])
            visible = k[(segments > 0) & related]
            np.testing.assert_array_equal(batch.positions[b, visible], np.arange(len(visible)))
            seen.append((tuple(batch.tokens[b, visible].tolist()), int(batch.target_tokens[b, c])))
        rows.append(seen)
    return rows


def naive(prompt, completion) -> list[tuple[tuple[int, ...], int]]:
    return [((*prompt, *completion[:j]), completion[j]) for j in range(len(completion))]


def assert_form(batch: Batch, rows: int, length: int, targets: int) -> None:
    for leaf in (batch.tokens, batch.positions, batch.segments, batch.parents):
        assert leaf.shape == (rows, length) and leaf.dtype == np.int32
    for leaf in (batch.target_index, batch.target_tokens):
        assert leaf.shape == (rows, targets) and leaf.dtype == np.int32
    assert batch.target_weights.shape == (rows, targets) and batch.target_weights.dtype == np.float32
    assert set(np.unique(batch.target_weights)) <= {0.0, 1.0}
    assert batch.target_index.min(initial=0) >= 0 and batch.target_index.max(initial=0) < length
    assert len(jax.tree.leaves(batch)) == 7


def test_group_rows_worked_example() -> None:
    batch = group_rows([[5, 6]], [[[7, 2], [8]]], prompt_length=3, completion_length=2)
    expected = {
        "tokens": [[5, 6, 0, 7, 2, 8, 0]], "positions": [[0, 1, 0, 2, 3, 2, 0]], "segments": [[1, 1, 0, 2, 2, 3, 0]],
        "parents": [[0, 0, 0, 1, 1, 1, 0]], "target_index": [[1, 3, 1, 1]], "target_tokens": [[7, 2, 8, 0]],
        "target_weights": [[1, 1, 1, 0]],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(getattr(batch, name), value, err_msg=name)
    assert_form(batch, 1, 7, 4)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), n_prompts=st.integers(1, 3), group=st.integers(1, 4), slack=st.integers(0, 3))
def test_group_rows_equal_one_row_each(data: st.DataObject, n_prompts: int, group: int, slack: int) -> None:
    given_prompts = [data.draw(prompts) for _ in range(n_prompts)]
    completions = [[data.draw(st.lists(ids, max_size=5)) for _ in range(group)] for _ in range(n_prompts)]
    batch = group_rows(given_prompts, completions, 6 + slack, 5 + slack)
    assert_form(batch, n_prompts, 6 + slack + group * (5 + slack), group * (5 + slack))
    expected = [[pair for c in members for pair in naive(p, c)]
                for p, members in zip(given_prompts, completions, strict=True)]
    assert contexts(batch) == expected
    weights = batch.target_weights.reshape(n_prompts, group, -1)
    np.testing.assert_array_equal(weights.sum(-1), [[len(c) for c in members] for members in completions])
    for row in range(n_prompts):  # padded targets point at a real token too
        assert (batch.segments[row, batch.target_index[row]] > 0).all()


@settings(max_examples=50, deadline=None)
@given(data=st.data(), width=st.integers(3, 7))
def test_padded_arrays_give_the_same_rows(data: st.DataObject, width: int) -> None:
    """The sampler's array, wider or narrower than the row's slots, with rubbish after each length."""
    lengths = np.array([[data.draw(st.integers(0, 3)) for _ in range(3)] for _ in range(2)])
    padded = np.random.default_rng(0).integers(1, 99, (2, 3, width))
    lists = [[padded[p, g, : lengths[p, g]].tolist() for g in range(3)] for p in range(2)]
    left = group_rows([[1], [2, 3]], padded, 4, 5, lengths=lengths, pad_id=9)
    right = group_rows([[1], [2, 3]], lists, 4, 5, pad_id=9)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_group_rows_of_a_real_size_are_quick() -> None:
    rng = np.random.default_rng(0)
    completions = rng.integers(0, 9, (64, 8, 1024))
    lengths = rng.integers(1, 1025, (64, 8))
    start = time.perf_counter()
    group_rows([list(range(1, 3000))] * 64, completions, 3072, 1024, lengths=lengths)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(("arguments", "message"), [
    (([[]], [[[1]]], 3, 2), "a prompt must have 1 to 3 tokens; got 0"),
    (([[1, 2, 3, 4]], [[[1]]], 3, 2), "a prompt must have 1 to 3 tokens; got 4"),
    (([[1]], [[[1, 2, 3]]], 3, 2), "a completion must have 0 to 2 tokens; got 3"),
    (([[1], [2]], [[[1]], [[1], [2]]], 3, 2), "same number of completions"),
    (([[1], [2]], [[[1]]], 3, 2), "2 prompts, 1 groups"),
    (([[1]], np.ones((1, 2)), 3, 2, np.ones((1, 2))), r"\[P, G, L\]"),
    (([[1]], np.ones((1, 1, 2)), 3, 9, np.full((1, 1), 3)), "0 to 2 tokens; got 3"),
])
def test_group_rows_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_rows(*arguments)


examples = st.lists(st.builds(Example, st.just("e"), prompts.map(tuple),
                              st.lists(ids, min_size=1, max_size=4).map(tuple)), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(given_examples=examples, slack=st.integers(0, 3), pad_id=st.integers(0, 99))
def test_pad_keeps_every_target(given_examples: list[Example], slack: int, pad_id: int) -> None:
    rows = len(given_examples) + slack
    batch = pad(given_examples, 10 + slack, 4 + slack, rows=rows, pad_id=pad_id)
    assert_form(batch, rows, 10 + slack, 4 + slack)
    assert contexts(batch) == [*(naive(e.prompt_ids, e.completion_ids) for e in given_examples), *[[]] * slack]


@settings(max_examples=200, deadline=None)
@given(given_examples=examples, length=st.integers(10, 30))
def test_pack_keeps_every_target_and_mixes_none(given_examples: list[Example], length: int) -> None:
    plan = plan_packing([e.length for e in given_examples], length)
    assert sorted(i for row in plan for i in row) == list(range(len(given_examples)))
    assert all(sum(given_examples[i].length for i in row) <= length for row in plan)
    batch = pack(given_examples, len(plan), length)
    assert_form(batch, len(plan), length, length)
    expected = [[pair for i in row for pair in naive(given_examples[i].prompt_ids, given_examples[i].completion_ids)]
                for row in plan]
    assert contexts(batch) == expected


def test_pack_and_plan_worked_examples() -> None:
    assert plan_packing([3, 7, 4, 2], 8) == [[1], [2, 0], [3]]
    batch = pack([Example("a", (5, 6), (7, 2)), Example("b", (9,), (2,))], 1, 7)
    np.testing.assert_array_equal(batch.tokens, [[5, 6, 7, 2, 9, 2, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2, 3, 0, 1, 0]])
    np.testing.assert_array_equal(batch.segments, [[1, 1, 1, 1, 2, 2, 0]])
    np.testing.assert_array_equal(batch.target_index, [[1, 2, 4, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.target_tokens, [[7, 2, 2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(batch.target_weights, [[1, 1, 1, 0, 0, 0, 0]])


def test_layouts_refuse_what_does_not_fit() -> None:
    example = Example("movie-7", (1, 2, 3), (4, 5))
    with pytest.raises(ValueError, match="at most 4 tokens and 2 targets; got 5 and 2 with example 'movie-7'"):
        pad([example], 4, 2)
    with pytest.raises(ValueError, match="5 tokens and 1 targets; got 5 and 2"):
        pad([example], 5, 1)
    with pytest.raises(ValueError, match="at most 1 examples"):
        pad([example, example], 5, 2, rows=1)
    with pytest.raises(ValueError, match=r"at least one token.*'x'"):
        pad([Example("x", (), (1,))], 5, 2)
    with pytest.raises(ValueError, match="must fit 1 rows"):
        pack([example, example], 1, 5)
    with pytest.raises(ValueError, match="at most 4 tokens"):
        pack([example], 1, 4)
