"""Chains where users share little: who has none, few or five, by whatever way they are drawn."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.data.interactions import Dataset, build_dataset
from r2rec_jax.data.tables import ItemTable, UserTable
from r2rec_jax.graph import chains as chains_module
from r2rec_jax.graph.bipartite import build
from r2rec_jax.graph.chains import sample_chains


def make_dataset(user: np.ndarray, item: np.ndarray) -> Dataset:
    users, items = (np.arange(int(column.max()) + 1).astype(str) for column in (user, item))
    return build_dataset(
        name="toy", domain="books", users=UserTable(users.tolist()), items=ItemTable(items.tolist(), items.tolist()),
        user_rows=user, item_rows=item, rating=1 + (user + item) % 5, timestamp=user % 7 + item, split_seed=0)


def count_chains(dataset: Dataset, user: int, before: bool) -> int:
    """How many different chains the user's last event has behind it, by plain loops."""
    events = dataset.interactions
    place = int(np.diff(events.offsets)[user]) - 1
    visible = {item for item, _ in dataset.history(user, place)}
    cutoff = int(events.timestamp[events.offsets[user] + place])
    found = 0
    for other in range(len(dataset.users)):
        rows = range(*events.rows(other).indices(len(events)))
        shared = sum(int(events.item_idx[row]) in visible and (not before or events.timestamp[row] < cutoff)
                     for row in rows)
        found += shared * (shared - 1) if other != user else 0
    return found


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), before=st.booleans())
def test_coverage_is_that_of_the_graph(seed: int, before: bool) -> None:
    """A query has chains exactly where one exists, and never more distinct ones than there are."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 40, 110), (rng.zipf(1.3, 110) - 1) % 30
    dataset = make_dataset(np.r_[user, 39], np.r_[item, 29])
    graph = build(dataset, np.ones(len(dataset.interactions), bool))
    users = np.arange(len(dataset.users))
    places = np.diff(dataset.interactions.offsets) - 1
    drawn = sample_chains(graph, dataset, users, places, chains=5, seed=seed, before_target=before)
    for u, found in zip(users.tolist(), drawn, strict=True):
        possible = count_chains(dataset, u, before)
        assert len(found) == (5 if possible else 0)
        assert len(set(found)) <= min(5, possible)


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.integers(0, 9), max_size=30))
def test_repeated_values(values: list[int]) -> None:
    found = chains_module._repeated(np.sort(np.array(values, dtype=np.int32)))
    assert found.tolist() == sorted({value for value in values if values.count(value) > 1})


@pytest.mark.parametrize("way", ["sort", "count"])
def test_an_item_that_half_a_million_users_rated(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody rated item 0, and three users item 1 besides: these are the neighbours, and finding them is quick."""
    crowd = 500_000
    user = np.r_[np.arange(crowd), 7, 70, 700, 7, np.arange(crowd)]
    item = np.r_[np.zeros(crowd, int), 1, 1, 1, 2, 3 + np.arange(crowd) % 50_000]
    dataset = make_dataset(user, item)
    graph = build(dataset, np.ones(len(dataset.interactions), bool))
    if way == "count":
        monkeypatch.setattr(chains_module, "_EXPANDED", 1000)
    index = dataset.user_indices(["7", "70", "700"])
    places = np.diff(dataset.interactions.offsets)[index]
    seven, few = index[:1].repeat(200), places[:1].repeat(200)
    started = time.process_time()
    drawn = sample_chains(graph, dataset, seven, np.arange(200) % 2 + few - 1, chains=5, seed=0)
    assert time.process_time() - started < 5.0
    names = {dataset.users[chain.neighbour].user_id for found in drawn for chain in found}
    assert {"70", "700"} <= names and all(len(found) == 5 for found in drawn)
    shared = {item for chain in drawn[0] for item in (chain.item0, chain.item1)}
    assert dataset.item_index("0") in shared


def test_listing_is_taken_where_proposals_are_in_vain() -> None:
    """Ten thousand users with two edges each: no draw is proposed below 2 U / ATTEMPTS edges, and MovieLens's dense
    graphs keep the rule that they had."""
    pairs = np.arange(10_000)
    graph = build(make_dataset(np.r_[pairs, pairs], np.r_[pairs % 997, 1000 + pairs % 991]), np.ones(20_000, bool))
    limit = 2 * graph.n_users // chains_module.ATTEMPTS
    cheap = chains_module._listing_is_cheaper(graph, np.array([0, 100, limit, limit + 1]))
    assert cheap.tolist() == [True, True, True, False]
