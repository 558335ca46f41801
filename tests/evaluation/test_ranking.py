from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.evaluation.ranking import (
    MISS,
    hit_ratio,
    mrr,
    ndcg,
    ndcg3_range,
    rank_from_scores,
    rank_of_target,
)

RANKS = st.lists(st.one_of(st.integers(1, 25).map(float), st.just(MISS)), min_size=1, max_size=60)


def test_rank_is_the_place_of_the_first_mention():
    assert rank_of_target([4, 0, 9], target=4, n_candidates=20) == 1
    assert rank_of_target([4, 0, 9], target=9, n_candidates=20) == 3


def test_unlisted_candidates_share_the_last_rank():
    # 17 candidates are not listed; the target, one of them, gets 20, not 4 or the middle of 4..20.
    assert rank_of_target([4, 0, 9], target=1, n_candidates=20) == 20
    assert rank_of_target([0], target=1, n_candidates=2) == 2


def test_no_valid_number_misses_at_every_cut_off():
    rank = rank_of_target([], target=1, n_candidates=20)
    assert rank == MISS
    assert hit_ratio([rank], 20) == 0
    assert ndcg([rank], 20) == 0
    assert mrr([rank]) == 0


@pytest.mark.parametrize(("ranking", "target"), [([20], 0), ([-1], 0), ([3, 3], 3), ([1], 20), ([1], -1)])
def test_positions_outside_or_repeated_are_refused(ranking, target):
    with pytest.raises(ValueError, match="position"):
        rank_of_target(ranking, target, n_candidates=20)


def test_hand_worked_example():
    # Five users: first, second, third, twelfth, invalid.
    ranks = [1, 2, 3, 12, MISS]
    assert hit_ratio(ranks, 1) == pytest.approx(1 / 5)
    assert hit_ratio(ranks, 3) == pytest.approx(3 / 5)
    assert hit_ratio(ranks, 20) == pytest.approx(4 / 5)
    assert ndcg(ranks, 1) == pytest.approx(1 / 5)
    assert ndcg(ranks, 3) == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / 5)
    assert mrr(ranks) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 12) / 5)


def test_ties_count_against_the_model():
    scores = np.array([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [-np.inf, -np.inf, 0.0]])
    assert rank_from_scores(scores, [0, 0, 1, 0]).tolist() == [1, 3, 2, 3]


def test_rank_from_scores_of_one_list():
    assert rank_from_scores([0.5, 0.7], 0) == 2


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="1 NaN"):
        rank_from_scores([[0.0, float("nan")]], [0])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        rank_from_scores([[0.0, 1.0]], [2])
    with pytest.raises(ValueError, match="one position for each"):
        rank_from_scores([[0.0, 1.0]], [0, 1])


@pytest.mark.parametrize(("ranks", "k"), [([], 1), ([0.0], 1), ([float("nan")], 1), ([1.0], 0)])
def test_metrics_refuse_what_has_no_meaning(ranks, k):
    with pytest.raises(ValueError, match="must"):
        hit_ratio(ranks, k)


@given(RANKS)
def test_ndcg3_lies_between_the_bounds_that_the_hit_ratios_give(ranks):
    low, high = ndcg3_range(hit_ratio(ranks, 1), hit_ratio(ranks, 3))
    assert low - 1e-12 <= ndcg(ranks, 3) <= high + 1e-12


def test_the_bounds_are_reached():
    assert ndcg([1, 3], 3) == pytest.approx(ndcg3_range(0.5, 1.0)[0])
    assert ndcg([1, 2], 3) == pytest.approx(ndcg3_range(0.5, 1.0)[1])
    assert ndcg3_range(0.2, 0.7)[1] == pytest.approx(0.2 + 0.631 * 0.5, abs=1e-4)
    with pytest.raises(ValueError, match="HR@1 <= HR@3"):
        ndcg3_range(0.5, 0.4)


@given(RANKS, st.integers(1, 24))
def test_metrics_lie_in_the_unit_interval_and_never_fall_with_k(ranks, k):
    for metric in (hit_ratio, ndcg):
        here, further = metric(ranks, k), metric(ranks, k + 1)
        assert 0 <= here <= further <= 1
        assert metric(ranks, 1) == hit_ratio(ranks, 1)
    assert hit_ratio(ranks, 1) <= mrr(ranks) <= 1
    assert ndcg(ranks, k) <= hit_ratio(ranks, k)


@given(st.integers(2, 12).flatmap(lambda n: st.tuples(
    st.lists(st.integers(-3, 3), min_size=n, max_size=n), st.integers(0, n - 1))))
def test_rank_from_scores_is_the_worst_place_a_sort_could_give(case):
    scores, target = case
    order = sorted(range(len(scores)), key=lambda j: (-scores[j], j == target))
    assert rank_from_scores(scores, target) == order.index(target) + 1


@given(st.integers(2, 12).flatmap(lambda n: st.tuples(
    st.permutations(range(n)), st.integers(1, n), st.integers(0, n - 1))))
def test_listing_less_never_helps(case):
    order, listed, target = case
    full = rank_of_target(order, target, len(order))
    assert rank_of_target(order[:listed], target, len(order)) >= full
