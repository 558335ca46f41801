"""Popularity, item-KNN and EASE against dense arithmetic."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from r2rec_jax.baselines.classical import item_knn
from r2rec_jax.baselines.classical.ease import EASE
from r2rec_jax.baselines.classical.item_knn import ItemKNN
from r2rec_jax.baselines.classical.popularity import Popularity
from r2rec_jax.baselines.classical.sparse import top_per_row
from r2rec_jax.config.baselines import EASEConfig, ItemKNNConfig, PopularityConfig
from tests.baselines.conftest import make_contexts, make_events

KEY = jax.random.key(0)


def _random(seed: int = 0, users: int = 30, items: int = 11) -> tuple[Any, np.ndarray]:
    """Events (a third of them no likes) and their dense matrix of likes."""
    rng = np.random.default_rng(seed)
    histories = [rng.permutation(items)[: rng.integers(0, 7)].tolist() for _ in range(users)]
    disliked = [history[::3] for history in histories]
    dense = np.zeros((users, items))
    for user, history in enumerate(histories):
        dense[user, [item for item in history if item not in disliked[user]]] = 1
    return make_events(histories, items, disliked), dense


def test_popularity_counts_edges() -> None:
    events, dense = _random()
    liked = Popularity(PopularityConfig(), events)
    scores = liked.score(liked.init(key=KEY), make_contexts([0, 1], [[1], []]))
    np.testing.assert_array_equal(scores, np.stack([dense.sum(0)] * 2))
    every = Popularity(PopularityConfig(events="all"), events)
    assert every.init(key=KEY)["edges"].sum() == len(events) > dense.sum()


def test_ease_solves_its_own_problem() -> None:
    """Column j of B is the ridge regression of item j on all the others: the constrained problem, solved directly."""
    events, x = _random()
    l2 = 3.0
    model = EASE(EASEConfig(l2=l2), events)
    weights = model.init(key=KEY)["weights"]
    for j in range(events.n_items):
        others = [i for i in range(events.n_items) if i != j]
        ridge = np.linalg.solve(x[:, others].T @ x[:, others] + l2 * np.eye(len(others)), x[:, others].T @ x[:, j])
        np.testing.assert_allclose(weights[others, j], ridge, rtol=1e-4, atol=1e-6)
        assert weights[j, j] == 0
    scores = model.score({"weights": weights}, make_contexts([0, 0], [[4, 2], [9]]))
    np.testing.assert_allclose(scores, np.stack([weights[4] + weights[2], weights[9]]), rtol=1e-6)


def test_ease_refuses_a_catalogue_that_it_cannot_hold() -> None:
    with pytest.raises(ValueError, match=r"items must be <= ease.max_items; got 11 items and 10"):
        EASE(EASEConfig(max_items=10), _random()[0])


@pytest.mark.parametrize("shrinkage", [0.0, 2.5])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("neighbours", [None, 3])
def test_item_knn_is_the_dense_formula(shrinkage: float, normalize: bool, neighbours: int | None,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    events, x = _random(1)
    model = ItemKNN(ItemKNNConfig(neighbours=neighbours, shrinkage=shrinkage, normalize=normalize), events)
    size = np.sqrt(x.sum(0))
    similarity = x.T @ x / np.maximum(np.outer(size, size) + shrinkage, 1e-9)
    np.fill_diagonal(similarity, 0)
    if neighbours is not None:
        for row in similarity:
            row[np.argsort(-row, kind="stable")[neighbours:]] = 0
    if normalize:
        similarity /= np.maximum(similarity.sum(1, keepdims=True), 1e-9)
    history = np.zeros((2, events.n_items))
    history[0, [3, 5, 1]] = 1
    params = model.init(key=KEY)
    scores = model.score(params, make_contexts([0, 1], [[3, 5, 1], []]))
    np.testing.assert_allclose(scores, history @ similarity.T, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(item_knn, "PAIRS_AT_ONCE", 20)
    blocks = model.init(key=KEY)
    assert all(np.array_equal(blocks[name], params[name]) for name in params), "blocks of items change nothing"


def test_item_knn_of_a_large_sparse_catalogue_needs_no_dense_matrix() -> None:
    """A user-item matrix of 10^10 entries, and as many item pairs."""
    rng = np.random.default_rng(0)
    n_items, histories = 100_000, [rng.integers(0, 100_000, 5).tolist() for _ in range(2_000)]
    model = ItemKNN(ItemKNNConfig(neighbours=4), make_events(histories, n_items))
    params = model.init(key=KEY)
    first = make_contexts([0], [histories[0][:1]])
    assert set(np.argsort(-model.score(params, first)[0])[:2].tolist()) & set(histories[0][1:])


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 10))
def test_the_largest_of_every_row(seed: int, rows: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    dense = rng.integers(0, 4, (rows, 6)).astype(np.float32)
    columns, values = top_per_row(csr_array(dense), k)
    for row in range(rows):
        expected = [column for column in np.argsort(-dense[row], kind="stable") if dense[row, column] > 0][:k]
        assert columns[row, :len(expected)].tolist() == expected and not values[row, len(expected):].any()
        assert values[row, :len(expected)].tolist() == dense[row, expected].tolist()
