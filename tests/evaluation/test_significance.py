from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.evaluation.predictions import Prediction
from r2rec_jax.evaluation.ranking import MISS, ndcg_values
from r2rec_jax.evaluation.significance import bootstrap_columns, compare, holm, paired_bootstrap, wilcoxon_p


def test_interval_and_p_agree_with_the_normal_approximation():
    rng = np.random.default_rng(0)
    a, b = (rng.random((2, 1000)) < [[0.40], [0.35]]).astype(float)
    got = paired_bootstrap(a, b)
    error = (a - b).std(ddof=1) / np.sqrt(1000)
    assert got.difference == pytest.approx((a - b).mean())
    assert got.low == pytest.approx(got.difference - 1.96 * error, abs=0.15 * error)
    assert got.high == pytest.approx(got.difference + 1.96 * error, abs=0.15 * error)
    from scipy.stats import norm
    assert got.p == pytest.approx(2 * norm.sf(abs(got.difference) / error), abs=0.02)
    assert (got.users, got.draws) == (1000, 10_000)


def test_pairing_matters():
    # The same two marginals: paired they differ on every fifth user in one direction only.
    a = np.tile([1.0, 1, 0, 0, 1], 40)
    b = np.tile([1.0, 1, 0, 0, 0], 40)
    assert paired_bootstrap(a, b).p < 0.001
    assert paired_bootstrap(a, np.random.default_rng(0).permutation(b)).low < paired_bootstrap(a, b).low


def test_equal_systems_are_not_different():
    got = paired_bootstrap([1, 0, 1], [1, 0, 1])
    assert (got.difference, got.low, got.high, got.p) == (0, 0, 0, 1)


def test_sides_swap_and_seeds_decide():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 60))
    there, back = paired_bootstrap(a, b, seed=3), paired_bootstrap(b, a, seed=3)
    assert there.difference == -back.difference
    assert (there.low, there.p) == pytest.approx((-back.high, back.p))
    assert paired_bootstrap(a, b, seed=3) == there
    assert paired_bootstrap(a, b, seed=4) != there


def test_the_number_of_draws_is_kept_across_chunks():
    got = paired_bootstrap([1.0, 1.0], [0.0, 0.0], draws=1234)
    assert got.draws == 1234
    assert got.p == pytest.approx(2 / 1235)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_interval_holds_what_it_must(pairs):
    a, b = np.array(pairs, dtype=float).T
    got = paired_bootstrap(a, b, draws=400)
    assert -1 <= got.low <= got.high <= 1
    assert 2 / 401 <= got.p <= 1


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0], [1.0, 0.0]), ([[1.0]], [[1.0]]), ([np.inf], [0.0])])
def test_unpaired_or_infinite_values_are_refused(a, b):
    with pytest.raises(ValueError, match="must"):
        paired_bootstrap(a, b)


def make(query: int, rank: float, candidates: tuple[str, ...] = ("x", "y")) -> Prediction:
    return Prediction(system="a", source="s", query_id=f"q{query}", user_id=f"u{query}", prompt="", output="",
                      ranking=(), target="x", candidates=candidates, target_title="X", rank=rank, valid=True,
                      duplicates=0, outside=0, statements=0, tokens=1, truncated=False, copied_order=False, seconds=0)


def test_compare_pairs_by_query():
    a = [make(0, 1), make(1, 2), make(2, 1)]
    b = [make(2, MISS), make(0, 1), make(1, 2)]
    assert compare(a, b, draws=100).difference == pytest.approx(1 / 3)
    by_gain = compare(a, b, draws=100, values=lambda ranks: ndcg_values(ranks, 3))
    assert by_gain.difference == pytest.approx(1 / 3)


def test_compare_takes_the_mean_of_several_answers():
    a = [make(0, 1), replace(make(0, 2), answer=1), make(1, 2), replace(make(1, 2), answer=1)]
    got = compare(a, [make(0, 2), make(1, 2)], draws=100)
    assert (got.difference, got.users) == (pytest.approx(1 / 4), 2)


def test_compare_resamples_users_with_all_of_their_queries():
    # As of training queries: five users, of whom each is right on all of twenty or on none.
    def of_users(right: tuple[int, ...]) -> list[Prediction]:
        return [replace(make(20 * user + n, 1 if user in right else 2), user_id=f"u{user}")
                for user in range(5) for n in range(20)]

    a, b = of_users((0, 1, 2)), of_users((3,))
    got, careless = compare(a, b, draws=2000), paired_bootstrap([p.rank == 1 for p in a], [p.rank == 1 for p in b])
    assert (got.difference, got.users) == (pytest.approx(careless.difference), 5)
    assert careless.users == 100 and careless.p < 0.001 and got.p > 0.2
    assert got == compare(a[::-1], b, draws=2000)


def test_compare_refuses_other_queries_or_candidates():
    a = [make(0, 1), make(1, 2)]
    with pytest.raises(ValueError, match=r"same queries; 1 are .* q1 first"):
        compare(a, a[:1])
    with pytest.raises(ValueError, match="same candidates; query q1"):
        compare(a, [a[0], make(1, 2, ("x", "z"))])
    with pytest.raises(ValueError, match="same candidates"):
        compare(a, [a[0], replace(a[1], target="y")])


def test_users_are_resampled_whole():
    # Three seeds that repeat the same users carry no more evidence than one: the interval stays that of the users.
    rng = np.random.default_rng(2)
    a, b = (rng.random((2, 200)) < [[0.5], [0.4]]).astype(float)
    users = [str(n) for n in range(200)]
    once = paired_bootstrap(a, b, users=users)
    thrice = paired_bootstrap(np.tile(a, 3), np.tile(b, 3), users=users * 3)
    assert thrice == once
    careless = paired_bootstrap(np.tile(a, 3), np.tile(b, 3))
    assert careless.high - careless.low < 0.7 * (once.high - once.low)
    assert once == paired_bootstrap(a, b)


def test_users_with_more_pairs_weigh_more():
    got = paired_bootstrap([1.0, 1, 1, 0], [0.0, 0, 0, 1], users=["u", "u", "u", "v"], draws=4000)
    assert (got.difference, got.users) == (0.5, 2)
    # A draw of two users out of two: (u, u), (v, v) or one of each.
    assert (got.low, got.high) == (-1, 1)


def test_columns_are_what_each_alone_would_give():
    differences = np.random.default_rng(3).integers(-1, 2, (50, 3)).astype(float)
    users = [str(n % 20) for n in range(50)]
    together = bootstrap_columns(differences, users=users, draws=700)
    for column, got in enumerate(together):
        alone = paired_bootstrap(differences[:, column], np.zeros(50), users=users, draws=700)
        assert (got.p, got.users) == (alone.p, 20)
        assert (got.difference, got.low, got.high) == pytest.approx((alone.difference, alone.low, alone.high))


def test_every_value_has_its_user():
    with pytest.raises(ValueError, match="every value must have its user"):
        paired_bootstrap([1.0, 0.0], [0.0, 0.0], users=["u"])


def test_wilcoxon_of_a_worked_example():
    # Wilcoxon's table: n = 6 without ties, all positive: W- = 0, two-sided p = 2 / 2^6.
    assert wilcoxon_p([1.0, 2, 3, 4, 5, 6], [0.0] * 6) == pytest.approx(2 / 64)
    # Signed ranks -1, +2, -3, +4, +5: W- = 4; of 32 sign patterns 7 have W <= 4.
    assert wilcoxon_p([0.0, 2, 0, 4, 5], [1.0, 0, 3, 0, 0]) == pytest.approx(2 * 7 / 32)


def test_wilcoxon_takes_a_user_once():
    rng = np.random.default_rng(4)
    a, b = rng.random((2, 30))
    users = [str(n) for n in range(30)]
    assert wilcoxon_p(np.tile(a, 3), np.tile(b, 3), users=users * 3) == pytest.approx(wilcoxon_p(a, b))
    assert wilcoxon_p(np.tile(a, 3), np.tile(b, 3)) < wilcoxon_p(a, b)
    assert wilcoxon_p(a, a) == 1


def test_on_hits_wilcoxon_is_the_sign_test():
    from scipy.stats import binomtest
    a, b = np.array([1.0] * 60 + [0.0] * 40 + [1.0] * 300), np.array([0.0] * 60 + [1.0] * 40 + [1.0] * 300)
    assert wilcoxon_p(a, b) == pytest.approx(binomtest(60, 100).pvalue)
    assert wilcoxon_p(a[:60] * 0.5, b[:60]) == pytest.approx(2 / 2**60)


def test_with_ties_wilcoxon_rejects_no_more_than_its_level():
    rng = np.random.default_rng(0)
    gains = rng.choice([0.0, 0.63, 1.0], size=(400, 2, 40))
    assert np.mean([wilcoxon_p(first, second) < 0.05 for first, second in gains]) < 0.05 + 2 * (0.05 * 0.95 / 400)**0.5


def test_holm_of_a_worked_example():
    # 4 tests: .01 * 4, .013 * 3, .03 * 2, .04 * 1, never falling.
    assert holm([0.04, 0.01, 0.03, 0.013]) == pytest.approx([0.06, 0.04, 0.06, 0.04])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_lies_between_raw_and_bonferroni(values):
    corrected = holm(values)
    assert all(p - 1e-12 <= c <= min(1, p * len(values)) + 1e-12 for p, c in zip(values, corrected, strict=True))
    order = np.argsort(values, kind="stable")
    assert (np.diff(np.array(corrected)[order]) >= 0).all()
