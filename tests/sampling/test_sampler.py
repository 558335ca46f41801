"""Temperature, exact top-p and the draw, against a NumPy reference that sorts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from r2rec_jax.sampling.sampler import draw, nucleus_threshold, row_keys, sample


def sorted_nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """The smallest prefix of the sorted row with enough mass, ties at its last value included; float32 sums."""
    kept = np.zeros(weights.shape, bool)
    for row, out in zip(weights, kept, strict=True):
        target = np.float32(top_p) * row.sum(dtype=np.float64)
        for value in np.unique(row)[::-1]:
            out[:] = row >= value
            if row[out].sum(dtype=np.float64) >= target:
                break
    return kept


def nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """What is at least our threshold."""
    mass = top_p * jnp.sum(jnp.asarray(weights), axis=1)
    return weights >= np.asarray(nucleus_threshold(jnp.asarray(weights), mass))[:, None]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z.astype(np.float64) - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


# Weights that are multiples of 1/1024 sum without rounding in float32, so any disagreement is the algorithm's.
exact_rows = hnp.arrays(np.int32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=st.integers(0, 50))


@settings(max_examples=60, deadline=None)
@given(counts=exact_rows, p=st.integers(1, 1023))
def test_nucleus_equals_the_sorted_reference(counts: np.ndarray, p: int) -> None:
    counts[:, 0] += 1  # no row of zeros
    weights = counts.astype(np.float32) / 1024
    got = nucleus(weights, p / 1024)
    np.testing.assert_array_equal(got, sorted_nucleus(weights, p / 1024))


def test_nucleus_at_a_real_vocabulary() -> None:
    logits = np.random.default_rng(0).standard_normal((4, 49152)).astype(np.float32) * np.array([[0.1], [1], [3], [9]])
    weights = np.exp(logits - logits.max(axis=1, keepdims=True)).astype(np.float32)
    for top_p in (0.01, 0.5, 0.9, 0.999):
        got = nucleus(weights, top_p)
        mass = (weights * got).sum(axis=1, dtype=np.float64) / weights.sum(axis=1, dtype=np.float64)
        smallest = np.where(got, weights, np.inf).min(axis=1)
        assert (mass >= top_p - 1e-5).all()
        assert (mass - smallest / weights.sum(axis=1) < top_p + 1e-5).all(), "one token fewer would have done"
        assert ((weights >= smallest[:, None]) == got).all()


def test_ties_at_the_threshold_stay_together() -> None:
    weights = np.array([[0.5, 0.125, 0.125, 0.125, 0.125], [0.25, 0.25, 0.25, 0.125, 0.125]], np.float32)
    assert nucleus(weights, 0.55).tolist() == [[True] * 5, [True, True, True, False, False]]
    assert nucleus(weights, 0.5).tolist() == [[True, False, False, False, False],
                                              [True, True, True, False, False]]


def test_one_hot_and_masked_logits() -> None:
    logits = jnp.full((3, 300), -jnp.inf).at[jnp.arange(3), jnp.array([0, 299, 256])].set(2.0)
    keys = jax.random.split(jax.random.key(0), 3)
    for top_p in (0.9, 1.0):
        tokens, logprobs = sample(logits, keys, 0.6, top_p)
        assert tokens.tolist() == [0, 299, 256]
        np.testing.assert_array_equal(logprobs, 0.0)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 0.9), (1.0, 1.0), (1.7, 0.3)])
def test_draws_follow_the_distribution(temperature: float, top_p: float) -> None:
    """Chi-square of 20,000 draws over 600 tokens (three blocks) against the renormalised nucleus."""
    count, vocab = 20_000, 600
    row = np.random.default_rng(1).standard_normal(vocab).astype(np.float32) * 2
    p = softmax(row[None] / temperature)[0]
    kept = sorted_nucleus(p[None].astype(np.float32), top_p)[0]
    keys = row_keys(jax.random.key(3), jnp.arange(count), jnp.int32(0))
    logits = jnp.broadcast_to(row, (count, vocab))
    tokens, logprobs = jax.jit(lambda z, k: sample(z, k, temperature, top_p))(logits, keys)
    np.testing.assert_allclose(logprobs, np.log(p)[np.asarray(tokens)], atol=2e-5)
    seen = np.bincount(np.asarray(tokens), minlength=vocab)
    assert seen[~kept].sum() == 0
    expected = np.where(kept, p, 0) / p[kept].sum() * count
    common = expected >= 5
    observed = np.append(seen[common], seen[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    live = wanted > 0
    chi2, freedom = ((observed - wanted)[live] ** 2 / wanted[live]).sum(), live.sum() - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom), (chi2, freedom)


def test_greedy_takes_the_first_largest_and_scores_at_temperature_one() -> None:
    logits = jnp.array([[0.0, 3.0, 3.0, 1.0], [5.0, 1.0, 0.0, 2.0]])
    tokens, logprobs = sample(logits, jax.random.split(jax.random.key(0), 2), 0.0, 0.5)
    assert tokens.tolist() == [1, 0]
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[jnp.arange(2), tokens], rtol=1e-6)


def test_zero_weight_is_never_drawn() -> None:
    weights = jnp.zeros((1, 1000)).at[0, jnp.array([3, 256, 999])].set(jnp.array([1e-30, 1.0, 1e-3]))
    keys = row_keys(jax.random.key(0), jnp.arange(4000), jnp.int32(0))
    drawn = draw(jnp.broadcast_to(weights, (4000, 1000)), keys)
    assert set(drawn.tolist()) == {256, 999}


def test_a_row_depends_on_its_own_key_only() -> None:
    logits = jax.random.normal(jax.random.key(0), (6, 500))
    keys = row_keys(jax.random.key(1), jnp.arange(6), jnp.int32(4))
    tokens, _ = sample(logits, keys, 1.0, 0.9)
    alone, _ = sample(logits[4:5], row_keys(jax.random.key(1), jnp.array([4]), jnp.int32(4)), 1.0, 0.9)
    assert alone[0] == tokens[4]
    other, _ = sample(logits, row_keys(jax.random.key(1), jnp.arange(6), jnp.int32(5)), 1.0, 0.9)
    assert (other != tokens).any()


@pytest.mark.parametrize(("temperature", "top_p"), [(-1.0, 0.9), (float("nan"), 0.9), (1.0, 0.0), (1.0, 1.1)])
def test_bad_numbers_are_named(temperature: float, top_p: float) -> None:
    with pytest.raises(ValueError, match=r"must be .*got"):
        sample(jnp.zeros((1, 4)), jax.random.split(jax.random.key(0), 1), temperature, top_p)
