"""The global-time split: hand-worked cuts, the laws of the protocol, and that nothing from behind a cut leaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.config import DataConfig
from r2rec_jax.data.interactions import Dataset, Item, User, build_dataset
from r2rec_jax.data.movielens import load_movielens
from r2rec_jax.data.splits import draw_queries, training_edges
from r2rec_jax.data.targets import cut_times, find_targets
from r2rec_jax.graph.bipartite import build
from r2rec_jax.graph.chains import sample_chains


def make_dataset(rows: np.ndarray, n_users: int, n_items: int, seed: int = 0) -> Dataset:
    return build_dataset(name="toy", domain="movies", users=[User(f"u{u}", ()) for u in range(n_users)],
                         items=[Item(f"i{i}", "T", None, ()) for i in range(n_items)], user_rows=rows[:, 0],
                         item_rows=rows[:, 1], rating=rows[:, 2], timestamp=rows[:, 3], split_seed=seed)


def draw_dataset(seed: int, n_users: int = 60, n_items: int = 60, last: int = 200) -> Dataset:
    """Users who are active for a while each, so that only some have likes behind a cut."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        start = rng.integers(0, last)
        for item in rng.permutation(n_items)[: rng.integers(5, 40)]:
            rows.append((user, item, rng.integers(1, 6), start + rng.integers(0, last // 3)))
    return make_dataset(np.array(rows), n_users, n_items, seed)


def config(**changes) -> DataConfig:
    return DataConfig(**{"split": "global-time", "eval_users": 3, "validation_users": 3, "sft_queries": 8,
                         "rl_queries": 8, "min_history": 2, "candidates": 8} | changes)


def test_cuts_and_targets_by_hand() -> None:
    """Ten events at times 0..9: eight are training edges, 8 is the validation cut and 9 the test cut."""
    ratings = {0: [5, 1, 5, 5, 1, 5, 5, 5, 5, 5]}
    rows = np.array([(0, time, rating, time) for time, rating in enumerate(ratings[0])])
    dataset = make_dataset(rows, 1, 10)
    assert cut_times(dataset, config()) == (8, 9)
    targets = find_targets(dataset, config())
    np.testing.assert_array_equal(targets.training, [True] * 8 + [False] * 2)
    assert targets.validation.tolist() == [8] and targets.test.tolist() == [9]
    assert targets.teachable.tolist() == [3, 5, 6, 7]  # likes with two likes before them
    assert find_targets(dataset, config(min_history=6)).validation.tolist() == [8]  # six likes lie before time 8
    seven = find_targets(dataset, config(min_history=7))
    assert seven.validation.tolist() == [] and seven.test.tolist() == [9]


def test_ties_never_straddle_a_cut() -> None:
    rows = np.array([(u, i, 5, time) for u in range(2) for i, time in enumerate([0, 0, 1, 1, 1, 1, 1, 2, 2, 3])])
    dataset = make_dataset(rows, 2, 10)
    first, second = cut_times(dataset, config(validation_from=0.5, test_from=0.75))
    assert (first, second) == (1, 2)  # five of twenty events at time 1 would fit before the cut; none is taken
    assert training_edges(dataset, config(validation_from=0.5, test_from=0.75)).sum() == 4


@pytest.mark.parametrize("times", [[5] * 10, [0] * 9 + [1], [0, 1] + [2] * 8])
def test_events_that_cannot_be_cut_are_refused(times: list[int]) -> None:
    rows = np.array([(0, i, 5, time) for i, time in enumerate(times)])
    with pytest.raises(ValueError, match=r"data\.validation_from and data\.test_from must cut the events of toy"):
        find_targets(make_dataset(rows, 1, 10), config())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_laws_of_the_split(seed: int) -> None:
    dataset = draw_dataset(seed)
    events = dataset.interactions
    first, second = cut_times(dataset, config())
    mask = training_edges(dataset, config())
    np.testing.assert_array_equal(mask, events.timestamp < first)
    queries = draw_queries(dataset, config(split_seed=seed))
    assert queries.counts["validation_cut"] == first and queries.counts["test_cut"] == second
    bounds = {"test": (second, np.inf), "validation": (first, second), "sft": (-1, first), "rl": (-1, first)}
    trained, sealed = set(), set()
    for query in queries.all():
        row = int(events.offsets[query.user_idx]) + query.place
        low, high = bounds[query.split]
        own = np.arange(len(events))[events.rows(query.user_idx)]
        likes = own[events.rating[own] > 3]
        assert low <= events.timestamp[row] < high and events.item_idx[row] == query.target and row in likes
        assert (likes < row).sum() >= 2
        history = events.rows(query.user_idx, query.place)
        assert query.target not in events.item_idx[history]
        assert (events.timestamp[history] <= events.timestamp[row]).all()
        if query.split in ("test", "validation"):
            assert likes[events.timestamp[likes] >= low][0] == row  # the first like behind the cut
            assert not mask[row] and events.timestamp[mask].max() < events.timestamp[row]
            sealed.add((query.user_idx, query.target))
        else:
            assert mask[row]
            trained.add((query.user_idx, query.target))
    assert len(trained) == 16 and not trained & sealed
    for split in ("test", "validation"):
        users = [query.user_idx for query in queries.by_split[split]]
        assert len(set(users)) == len(users) == 3


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), split=st.sampled_from(["test", "validation"]))
def test_the_future_changes_nothing_that_a_query_sees(seed: int, split: str) -> None:
    """Other ratings at and after the targets, for everybody: same training edges, histories and chains.

    The ratings behind the first cut become others, but for the queried users' own events before and at their target.
    """
    dataset = draw_dataset(seed)
    events = dataset.interactions
    first, _ = cut_times(dataset, config())
    before = draw_queries(dataset, config()).by_split[split]
    kept = events.timestamp < first
    for query in before:
        kept[events.rows(query.user_idx, query.place + 1)] = True
    rating = np.where(kept, events.rating, 6 - events.rating).astype(np.float32)
    other = replace(dataset, interactions=replace(events, rating=rating))
    assert training_edges(other, config()).tolist() == training_edges(dataset, config()).tolist()
    seen = []
    for data in (dataset, other):
        graph = build(data, training_edges(data, config()))
        chains = sample_chains(graph, data, [q.user_idx for q in before], [q.place for q in before], chains=5, seed=1)
        seen.append((chains, [data.history(q.user_idx, q.place) for q in before]))
    assert seen[0] == seen[1]
    rows = np.array([events.offsets[query.user_idx] + query.place for query in before])
    targets = find_targets(other, config())
    assert set(rows.tolist()) <= set((targets.test if split == "test" else targets.validation).tolist())


def test_evaluation_users_train_last_and_are_counted() -> None:
    dataset = draw_dataset(1)
    targets = find_targets(dataset, config())
    few = draw_queries(dataset, config())
    evaluated = {query.user_idx for split in ("test", "validation") for query in few.by_split[split]}
    assert not evaluated & {query.user_idx for split in ("sft", "rl") for query in few.by_split[split]}
    half = len(targets.teachable) // 2
    everything = draw_queries(dataset, config(sft_queries=half, rl_queries=len(targets.teachable) - half))
    users = dataset.interactions.user_idx[targets.teachable]
    expected = int(np.isin(users, list(evaluated)).sum())
    counts = everything.counts
    assert counts["sft_queries_of_evaluation_users"] + counts["rl_queries_of_evaluation_users"] == expected > 0
    with pytest.raises(ValueError, match=r"must be <= \d+, .* and lie before the first cut; got 9000 \+ 8"):
        draw_queries(dataset, config(sft_queries=9000))


def test_too_few_users_behind_a_cut_are_refused() -> None:
    dataset = draw_dataset(2)
    have = find_targets(dataset, config())
    with pytest.raises(ValueError, match=rf"data\.eval_users must be <= {len(have.test)}, .* cut has 2 likes"):
        draw_queries(dataset, config(eval_users=500))
    many = len(have.validation) + 1
    if many <= len(have.test):
        with pytest.raises(ValueError, match=rf"data\.validation_users must be <= {len(have.validation)}"):
            draw_queries(dataset, config(eval_users=many, validation_users=many))


@pytest.mark.parametrize(("changes", "reason"), [
    ({"validation_from": 0.0}, r"data\.validation_from must be in \(0, 1\)"),
    ({"validation_from": 0.9, "test_from": 0.9}, r"data\.test_from must be in \(data\.validation_from, 1\)"),
    ({"test_from": 1.0}, r"data\.test_from must be"),
])
def test_bad_cuts_are_refused(changes: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        config(**changes)


def test_real_100k(ml100k_dir: Path) -> None:
    settings_ = DataConfig(split="global-time", eval_users=70, validation_users=60)
    dataset = load_movielens("ml-100k", ml100k_dir, 0)
    queries = draw_queries(dataset, settings_)
    assert 79_000 < training_edges(dataset, settings_).sum() <= 80_000
    assert queries.counts["eligible_users"] == 76 and queries.counts["eligible_validation_users"] == 69
    cut = queries.counts["validation_cut"]
    assert all(dataset.interactions.timestamp[dataset.interactions.offsets[q.user_idx] + q.place] < cut
               for split in ("sft", "rl") for q in queries.by_split[split])
