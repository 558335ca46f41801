"""Packing an update into rows: shapes, bounds, and nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.config import SftConfig
from r2rec_jax.tokens.examples import Example
from r2rec_jax.training.rows import RowShape, pack_update, plan_rows, round_up, row_shapes


def example(prompt: int, completion: int, name: str = "e") -> Example:
    return Example(name, tuple(range(3, 3 + prompt)), tuple(range(100, 100 + completion)))


def test_worked_example():
    examples = [example(n - 1, 1) for n in (3, 7, 4, 2)]
    assert plan_rows(examples, RowShape(8, 8)) == [[1], [2, 0], [3]]
    assert plan_rows(examples, RowShape(8, 1)) == [[1], [2], [0], [3]]
    assert [round_up(n) for n in (1, 64, 65, 130)] == [64, 64, 128, 192]


sizes = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 150)), min_size=1, max_size=20)


@given(sizes, st.integers(1, 4), st.data())
def test_every_token_is_laid_once_in_one_of_at_most_three_shapes(pairs, rows, data):
    examples = [example(p, c, str(i)) for i, (p, c) in enumerate(pairs)]
    shapes = row_shapes(examples)
    assert len(shapes) <= 3 and all(s.length % 64 == 0 and s.targets <= s.length for s in shapes)
    chosen = data.draw(st.lists(st.sampled_from(examples), min_size=1, max_size=8))
    batches = pack_update(chosen, shapes, rows)
    assert {b.tokens.shape for b in batches} <= {(rows, s.length) for s in shapes}
    assert len({(b.tokens.shape, b.target_index.shape) for b in batches}) == 1
    assert sum(int((b.segments > 0).sum()) for b in batches) == sum(e.length for e in chosen)
    laid = [t for b in batches for t in b.target_tokens[b.target_weights > 0].tolist()]
    assert sorted(laid) == sorted(t for e in chosen for t in e.completion_ids)


def test_the_shape_depends_on_the_update_alone():
    examples = [example(60, 4), example(10, 4)]
    shapes = row_shapes(examples, [32, 64])
    first = pack_update([examples[1]], shapes, 1)[0].tokens.shape
    pack_update(examples, shapes, 1)
    assert pack_update([examples[1]], shapes, 1)[0].tokens.shape == first == (1, 32)


def test_errors_name_the_example():
    with pytest.raises(ValueError, match=r"sft\.buckets must be positive lengths; got \(0,\)"):
        SftConfig(buckets=(0,))
    with pytest.raises(ValueError, match=r"sft.buckets must hold the longest example, 64 tokens \(long\); got 32"):
        row_shapes([example(60, 4, "long")], [32])
    with pytest.raises(ValueError, match="at least one example"):
        row_shapes([])


def test_packing_wastes_little_of_mixed_lengths():
    rng = np.random.default_rng(0)
    examples = [example(int(rng.integers(600, 750)), int(rng.integers(200, 300))) for _ in range(8)]
    examples += [example(int(rng.integers(150, 200)), int(rng.integers(50, 80))) for _ in range(8)]
    batches = pack_update(examples, row_shapes(examples), 1)
    assert np.mean([np.mean(b.segments == 0) for b in batches]) < 0.15
