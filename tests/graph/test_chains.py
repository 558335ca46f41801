"""Chains: the law of Eq. 1 against a brute-force enumeration, and what must never happen."""

from __future__ import annotations

import time
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from r2rec_jax.config import DataConfig
from r2rec_jax.data.interactions import Dataset, Item, User, build_dataset
from r2rec_jax.data.movielens import load_movielens
from r2rec_jax.data.splits import draw_queries, find_positives, training_edges
from r2rec_jax.graph import chains as chains_module
from r2rec_jax.graph.bipartite import build
from r2rec_jax.graph.chains import sample_chains

WAYS = {"reject": (500, 0), "enumerate": (0, 1 << 22), "mixed": (1, 0), "count": (0, 1)}


def make_dataset(events: list[tuple[int, int, int, int]], n_users: int = 8, n_items: int = 8) -> Dataset:
    rows = np.array(events, dtype=np.int64).reshape(-1, 4)
    return build_dataset(
        name="toy", domain="movies", users=[User(str(u), ()) for u in range(n_users)],
        items=[Item(str(i), f"Title {i}", 2000, ()) for i in range(n_items)],
        user_rows=rows[:, 0], item_rows=rows[:, 1], rating=rows[:, 2], timestamp=rows[:, 3], split_seed=0,
    )


def draw_dataset(seed: int, n_users: int = 8, n_items: int = 8, share: float = 0.5) -> Dataset:
    rng = np.random.default_rng(seed)
    return make_dataset([(u, i, int(rng.integers(1, 6)), int(rng.integers(0, 30)))
                         for u in range(n_users) for i in range(n_items) if rng.random() < share], n_users, n_items)


def list_chains(dataset: Dataset, mask: np.ndarray, user: int, place: int, before: bool) -> dict[tuple, float]:
    """Every possible chain (item0, neighbour, item1) with its probability, by plain loops."""
    events = dataset.interactions
    visible = {item for item, _ in dataset.history(user, place)}
    start = int(events.offsets[user])
    cutoff = events.timestamp[start + place] if before else None
    shared = {}
    for other in range(len(dataset.users)):
        edges = [int(events.item_idx[row]) for row in range(events.offsets[other], events.offsets[other + 1])
                 if mask[row] and (cutoff is None or events.timestamp[row] < cutoff)]
        common = sorted(visible & set(edges))
        if other != user and len(common) >= 2:
            shared[other] = common
    law = {}
    for other, common in shared.items():
        for first, second in permutations(common, 2):
            law[first, other, second] = 1 / len(shared) / (len(common) * (len(common) - 1))
    return law


@pytest.fixture(params=sorted(WAYS))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Forces one of the ways to draw: both must follow the same law."""
    attempts, expanded = WAYS[request.param]
    monkeypatch.setattr(chains_module, "ATTEMPTS", attempts)
    listed = request.param in ("enumerate", "count")
    monkeypatch.setattr(chains_module, "_listing_is_cheaper", lambda graph, reach: np.full(len(reach), listed))
    if expanded:
        monkeypatch.setattr(chains_module, "_EXPANDED", expanded)
    return request.param


@pytest.mark.parametrize("before", [False, True])
def test_law_equals_enumeration(way: str, before: bool) -> None:
    dataset = draw_dataset(35, 7, 7, 0.6)
    mask = np.random.default_rng(0).random(len(dataset.interactions)) < 0.9
    graph = build(dataset, mask)
    degrees = np.diff(dataset.interactions.offsets)
    user = int(degrees.argmax())
    place = int(degrees[user]) - 1
    law = list_chains(dataset, mask, user, place, before)
    assert len(law) > 20 and len({round(p, 9) for p in law.values()}) > 1
    found: Counter = Counter()
    draws = 4000
    for seed in range(draws // 200):
        (got,) = sample_chains(graph, dataset, [user], [place], chains=200, seed=seed, before_target=before)
        found.update((c.item0, c.neighbour, c.item1) for c in got)
    assert set(found) <= set(law)
    keys = sorted(law)
    test = chisquare([found[k] for k in keys], [law[k] * draws for k in keys])
    assert test.pvalue > 1e-3, (way, test)


def test_pair_of_an_accepted_neighbour_is_independent_of_its_proposals() -> None:
    """Many queries, one draw each: the law holds across queries too, not only across draws of one query."""
    events = [(u, i, 4, 1) for u in range(400) for i in range(3)] + [(u, 3, 5, 9) for u in range(400)]
    dataset = make_dataset(events, n_users=400, n_items=4)
    graph = build(dataset, np.ones(len(events), bool))
    got = sample_chains(graph, dataset, np.arange(400), np.full(400, 3), chains=10, seed=1)
    pairs = Counter((c.item0, c.item1) for chains in got for c in chains)
    assert set(pairs) == set(permutations(range(3), 2))
    assert chisquare(list(pairs.values())).pvalue > 1e-3


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.15, 0.4, 0.8]), before=st.booleans())
def test_every_edge_exists_and_no_target_appears(seed: int, share: float, before: bool) -> None:
    dataset = draw_dataset(seed, 10, 12, share)
    events = dataset.interactions
    config = DataConfig(min_positives=3, min_history=1)
    mask = training_edges(dataset, config)
    graph = build(dataset, mask)
    positives = find_positives(dataset, config)
    users = np.flatnonzero(positives.eligible)
    if not len(users):
        return
    rows = positives.from_the_end(users, 1)
    got = sample_chains(graph, dataset, users, events.place[rows], chains=4, seed=seed, before_target=before)
    edges = {(int(events.user_idx[r]), int(events.item_idx[r])): (float(events.rating[r]), int(events.timestamp[r]))
             for r in np.flatnonzero(mask)}
    for user, row, drawn in zip(users.tolist(), rows.tolist(), got, strict=True):
        target, place = int(events.item_idx[row]), int(events.place[row])
        visible = dict(dataset.history(user, place))
        assert target not in visible
        law = list_chains(dataset, mask, user, place, before)
        assert len(drawn) == (4 if law else 0)
        for chain in drawn:
            assert chain.user_idx == user != chain.neighbour and chain.item0 != chain.item1
            assert target not in (chain.item0, chain.item1)
            assert (chain.rating_u0, chain.rating_u1) == (visible[chain.item0], visible[chain.item1])
            for item, rating in ((chain.item0, chain.rating_n0), (chain.item1, chain.rating_n1)):
                assert edges[chain.neighbour, item][0] == rating
                assert not before or edges[chain.neighbour, item][1] < events.timestamp[row]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), subset=st.lists(st.integers(0, 11), min_size=1, max_size=12))
def test_result_does_not_depend_on_the_others_asked(seed: int, subset: list[int]) -> None:
    dataset = draw_dataset(seed, 12, 10, 0.6)
    graph = build(dataset, np.ones(len(dataset.interactions), bool))
    users = np.arange(len(dataset.users))
    places = np.diff(dataset.interactions.offsets) - 1
    subset = [u for u in subset if u < len(users)]
    everyone = sample_chains(graph, dataset, users, places, chains=3, seed=seed)
    some = sample_chains(graph, dataset, users[subset], places[subset], chains=3, seed=seed)
    assert some == [everyone[u] for u in subset]
    fewer = sample_chains(graph, dataset, users, places, chains=2, seed=seed)
    assert fewer == [drawn[:2] for drawn in everyone]


def test_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = draw_dataset(5, 30, 20, 0.3)
    graph = build(dataset, np.ones(len(dataset.interactions), bool))
    users, places = np.arange(30), np.diff(dataset.interactions.offsets) - 1
    whole = sample_chains(graph, dataset, users, places, chains=5, seed=0, before_target=True)
    monkeypatch.setattr(chains_module, "_BITMAP_BYTES", 3 * graph.n_items)
    monkeypatch.setattr(chains_module, "_EXPANDED", 7)
    assert sample_chains(graph, dataset, users, places, chains=5, seed=0, before_target=True) == whole


def test_user_without_neighbour_gets_none_and_seeds_matter() -> None:
    dataset = make_dataset([(0, 0, 5, 1), (0, 1, 5, 2), (0, 2, 5, 3), (1, 0, 4, 1), (1, 3, 4, 2), (2, 3, 4, 2)])
    graph = build(dataset, np.ones(len(dataset.interactions), bool))
    assert sample_chains(graph, dataset, [0, 1], [2, 1], chains=5, seed=0) == [(), ()]
    assert sample_chains(graph, dataset, [0], [2], chains=0, seed=0) == [()]
    assert sample_chains(graph, dataset, [], [], chains=5, seed=0) == []
    rich = draw_dataset(1, 20, 20, 0.6)
    graph = build(rich, np.ones(len(rich.interactions), bool))
    first, second = (sample_chains(graph, rich, [4], [8], chains=5, seed=seed) for seed in (0, 1))
    assert first != second


def test_queries_of_one_user_have_draws_of_their_own() -> None:
    """Item 5, visible to the later query alone, is nobody else's: both have the same chains to draw from."""
    events = [(u, i, 4, 1 + i) for u in range(4) for i in range(5)] + [(0, 5, 4, 6), (0, 6, 4, 7)]
    dataset, mask = make_dataset(events, n_users=4), np.ones(len(events), bool)
    assert list_chains(dataset, mask, 0, 5, False) == list_chains(dataset, mask, 0, 6, False)
    first, second = sample_chains(build(dataset, mask), dataset, [0, 0], [5, 6], chains=5, seed=0)
    assert len(first) == len(second) == 5 and first != second


def test_own_events_need_not_be_edges_but_the_neighbours_must() -> None:
    """At test time the validation item is visible history of the user, and invisible in everybody else's graph."""
    dataset = make_dataset([(0, 0, 5, 1), (0, 1, 5, 2), (0, 2, 5, 3), (1, 0, 4, 1), (1, 1, 3, 2)])
    mask = np.array([True, False, False, True, True])
    graph = build(dataset, mask)
    (got,) = sample_chains(graph, dataset, [0], [2], chains=3, seed=0)
    assert len(got) == 3 and {c.neighbour for c in got} == {1}
    mask[4] = False
    assert sample_chains(build(dataset, mask), dataset, [0], [2], chains=3, seed=0) == [()]


def test_bipartite_directions_agree() -> None:
    dataset = draw_dataset(7, 9, 11, 0.4)
    mask = np.random.default_rng(0).random(len(dataset.interactions)) < 0.7
    graph = build(dataset, mask)
    forward = {(u, int(i)) for u in range(graph.n_users) for i in graph.items_of(u)}
    backward = {(int(u), i) for i in range(graph.n_items) for u in graph.users_of(i)}
    events = dataset.interactions
    assert forward == backward == set(zip(events.user_idx[mask].tolist(), events.item_idx[mask].tolist(), strict=True))
    owners = np.repeat(np.arange(graph.n_users), graph.user_degrees)
    assert (owners[graph.item_edges] == graph.item_users).all()
    for user in range(graph.n_users):
        assert (np.diff(graph.items_of(user)) > 0).all()


@pytest.mark.slow
def test_movielens_1m_in_three_seconds(ml1m_dir) -> None:
    """The bar: five chains for each of 6,000 users, graph included, at most 3 s on one core."""
    config = DataConfig(name="ml-1m")
    dataset = load_movielens("ml-1m", ml1m_dir, 0)
    mask, positives = training_edges(dataset, config), find_positives(dataset, config)
    users = np.flatnonzero(positives.eligible)[:6000]
    places = dataset.interactions.place[positives.from_the_end(users, 1)]
    started = time.process_time()
    graph = build(dataset, mask)
    got = sample_chains(graph, dataset, users, places, chains=5, seed=0)
    assert time.process_time() - started < 3.0
    assert [len(chains) for chains in got] == [5] * 6000
    queries = draw_queries(dataset, config)
    for query in queries.by_split["test"][:50]:
        assert query.target not in dict(dataset.history(query.user_idx, query.place))
