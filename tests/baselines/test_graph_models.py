"""Propagation, pairs and the three graph models against dense NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.baselines.classical import config_class, make_model
from r2rec_jax.baselines.classical.pairs import Missing, Pairs, pair_batches, pair_loss, pair_norms
from r2rec_jax.baselines.classical.propagation import build_graph, neighbour_lists, neighbour_sums, propagate
from r2rec_jax.baselines.events import Events, contexts_from, events_from
from r2rec_jax.baselines.loop import train
from r2rec_jax.config import DataConfig
from r2rec_jax.data.movielens import load_movielens
from r2rec_jax.data.splits import draw_queries, training_edges
from r2rec_jax.evaluation.ranking import ndcg, rank_from_scores
from tests.baselines.conftest import make_contexts, make_events

GRAPH_MODELS = ("lightgcn", "ngcf", "graphsage")
USERS, ITEMS, D = 11, 7, 5


def _random_events(seed: int, n_users: int = USERS, n_items: int = ITEMS, density: float = 0.4) -> Events:
    """User 2 and item 3 have no event; of the others' events about a third are no likes."""
    rng = np.random.default_rng(seed)
    held = rng.random((n_users, n_items)) < density
    held[2], held[:, 3] = False, False
    histories = [rng.permutation(np.flatnonzero(row)).tolist() for row in held]
    return make_events(histories, n_items, [[item for item in history if (item + user) % 3 == 0]
                                            for user, history in enumerate(histories)])


def _adjacency(events: Events) -> np.ndarray:
    """A [N, N], users first."""
    n = events.n_users + events.n_items
    dense = np.zeros((n, n))
    dense[events.user_idx, events.n_users + events.items] = 1
    return dense + dense.T


def _normalised(events: Events, norm: str) -> np.ndarray:
    dense = _adjacency(events)
    degree = np.maximum(dense.sum(1), 1)
    if norm == "mean":
        return dense / degree[:, None]
    return dense / np.sqrt(degree)[:, None] / np.sqrt(degree)[None, :]


def _model(name: str, training: Events, **changes: Any) -> Any:
    settings_ = {"dim": D, "init_std": 0.5, "batch_size": 16} | changes
    return make_model(name, config_class(name)(**settings_), training)


def _arrays(params: Any) -> dict[str, np.ndarray]:
    """Float64 copies of the parameters by name."""
    return {str(path[0].key): np.asarray(leaf, np.float64)
            for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}


def _dense_rows(name: str, p: dict[str, Any], events: Events) -> Any:
    """Final rows of all nodes by the papers' matrix forms; NumPy or jax.numpy, as the parameters are."""
    rows = jnp.concatenate([p["users"], p["items"]])
    layers = [rows]
    depth = {"lightgcn": 3, "ngcf": 3, "graphsage": 2}[name]
    adjacency = _normalised(events, "mean" if name == "graphsage" else "symmetric")
    for layer in range(depth):
        got = adjacency @ rows
        if name == "lightgcn":
            rows = got
        elif name == "ngcf":
            identity = np.eye(len(adjacency))
            rows = ((adjacency + identity) @ rows @ p["sums"][layer] + got * rows @ p["products"][layer]
                    + p["bias"][layer])
            rows = jnp.where(rows > 0, rows, 0.2 * rows)
        else:
            both = jnp.concatenate([p["own"][layer], p["neighbours"][layer]])
            rows = jnp.concatenate([rows, got], axis=-1) @ both + p["bias"][layer]
            rows = jnp.maximum(rows, 0) if layer < depth - 1 else rows
        layers.append(rows)
    if name == "lightgcn":
        return sum(layers) / 4
    if name == "ngcf":
        norms = [jnp.sqrt((x**2).sum(-1, keepdims=True)) for x in layers[1:]]
        return jnp.concatenate([layers[0], *(x / n for x, n in zip(layers[1:], norms, strict=True))], axis=-1)
    return layers[-1]


def test_neighbour_lists_of_the_docstring() -> None:
    levels = neighbour_lists(np.array([0, 3, 3]), np.array([4, 5, 6]), 7, width=2)
    assert [level.T.tolist() for level in levels] == [[[4, 5], [6, 7]], [[0, 1]], [[0], [1]]]
    with pytest.raises(ValueError, match=r"width must be >= 2 .*; got 1"):
        neighbour_lists(np.array([0]), np.array([], int), 7, width=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 30), st.integers(4, 30), st.floats(0, 1), st.integers(2, 5))
def test_lists_sum_to_the_dense_product(seed: int, n_users: int, n_items: int, density: float, width: int) -> None:
    events = _random_events(seed, n_users, n_items, density)
    graph, dense = build_graph(events, width), _adjacency(events)
    wanted = rows = np.random.default_rng(seed).normal(size=(len(dense), 3))
    for level in graph.levels:
        rows = np.concatenate([rows, np.zeros((1, 3))])[level].sum(axis=0)
    np.testing.assert_allclose(rows, dense @ wanted, atol=1e-9)
    np.testing.assert_array_equal(graph.degree, dense.sum(1))


@pytest.mark.parametrize("width", [2, 16])
def test_sums_and_their_gradient_are_those_of_the_dense_matrix(width: int) -> None:
    events = _random_events(0, 40, 30, 0.8)
    graph, dense = jax.tree.map(jnp.asarray, build_graph(events, width)), _adjacency(events)
    rows, cotangent = np.random.default_rng(1).normal(size=(2, 70, 3)).astype(np.float32)
    sums, pull = jax.vjp(jax.jit(lambda x: neighbour_sums(graph, x)), rows)
    np.testing.assert_allclose(sums, dense @ rows, atol=1e-4)
    np.testing.assert_allclose(pull(cotangent)[0], dense.T @ cotangent, atol=1e-4)


@pytest.mark.parametrize("norm", ["symmetric", "mean"])
def test_propagation_and_its_gradient_against_the_dense_matrix(norm: Any) -> None:
    events = _random_events(0)
    graph, dense = jax.tree.map(jnp.asarray, build_graph(events)), _normalised(events, norm)
    rows, cotangent = np.random.default_rng(1).normal(size=(2, USERS + ITEMS, D)).astype(np.float32)
    received, pull = jax.vjp(jax.jit(lambda x: propagate(graph, x, norm)), rows)
    np.testing.assert_allclose(received, dense @ rows, atol=1e-5)
    np.testing.assert_allclose(pull(cotangent)[0], dense.T @ cotangent, atol=1e-5)
    assert not np.asarray(received)[[2, USERS + 3]].any(), "nodes without neighbours receive nothing"


@pytest.mark.parametrize("name", GRAPH_MODELS)
def test_scores_are_those_of_the_dense_form(name: str) -> None:
    events = _random_events(0)
    model = _model(name, events)
    params = model.init(key=jax.random.key(3))
    rows = np.asarray(_dense_rows(name, _arrays(params), events.liked_only()))
    known = np.flatnonzero(np.diff(events.liked_only().offsets)).tolist()
    assert 2 not in known and len(known) > 5
    scores = model.score(params, make_contexts(known, [[1, 2]] * len(known)))
    np.testing.assert_allclose(scores, rows[known] @ rows[USERS:].T, rtol=1e-4, atol=1e-5)
    assert scores.std(axis=0).max() > 0.01


@pytest.mark.parametrize("name", GRAPH_MODELS)
@pytest.mark.parametrize("loss", ["bpr", "sampled_softmax"])
def test_loss_and_gradient_are_those_of_the_dense_form(name: str, loss: Any) -> None:
    events = _random_events(0)
    changes = {"message_dropout": 0.0} if name == "ngcf" else {}
    model = _model(name, events, loss=loss, negatives=3, l2=0.1, **changes)
    params = model.init(key=jax.random.key(3))
    batch = next(model.batches(seed=0, epoch=0))

    def dense(p: Any) -> Any:
        arrays = {key: p[key][...] for key in p}
        rows = _dense_rows(name, arrays, events.liked_only())
        user, liked = rows[batch.user], rows[USERS + batch.positive]
        own, others = (user * liked).sum(-1), rows[USERS + batch.negative]
        norms = (arrays["users"][batch.user] ** 2).sum(-1) + (arrays["items"][batch.positive] ** 2).sum(-1)
        if loss == "bpr":
            values = jnp.log1p(jnp.exp((user[:, None] * others).sum(-1) - own[:, None])).mean(-1)
            norms += (arrays["items"][batch.negative] ** 2).sum(-1).mean(-1)
        else:
            terms = jnp.exp(user @ others.T) * (batch.negative[None] != batch.positive[:, None])
            values = jnp.log(jnp.exp(own) + terms.sum(-1)) - own
            norms += (arrays["items"][batch.negative] ** 2).sum(-1).mean()
        weights = sum((arrays[key] ** 2).sum() for key in arrays if key not in ("users", "items"))
        mean = ((values + 0.05 * norms) * batch.weight).sum() / batch.weight.sum()
        return mean + 0.05 * weights

    value, gradient = jax.jit(jax.value_and_grad(
        lambda p, g: model.loss(p, batch, constants=g, key=jax.random.key(0))))(params, model.constants)
    expected, wanted = jax.value_and_grad(dense)(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    found, wanted = _arrays(gradient), _arrays(wanted)
    for key in wanted:
        np.testing.assert_allclose(found[key], wanted[key], rtol=1e-3, atol=1e-5, err_msg=key)
        assert np.abs(found[key]).max() > 1e-3


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1))
def test_negatives_are_exactly_the_items_without_an_edge_each_as_likely(seed: int, density: float) -> None:
    class Grid:
        """Stands for a generator: every cell of an even grid once."""

        def random(self, shape: tuple[int, int]) -> np.ndarray:
            return np.broadcast_to((np.arange(shape[1]) + 0.5) / shape[1], shape)

    events = _random_events(seed, density=density)
    missing = Missing(events)
    for user in range(USERS):
        held = set(events.items[events.user_idx == user].tolist())
        others = sorted(set(range(ITEMS)) - held)
        assert missing.count[user] == len(others)
        if others:
            drawn = missing.draw(np.array([user]), Grid(), 2 * len(others))  # type: ignore[arg-type]
            assert drawn[0].tolist() == [item for item in others for _ in range(2)]


def test_batches_hold_every_liked_pair_once_and_no_negative_with_an_edge() -> None:
    full = list(range(ITEMS))
    events = make_events([[0, 1, 2], [4, 5], full, []], ITEMS, [[2], [], [], []])
    likes, missing = events.liked_only(), Missing(events)
    batches = list(pair_batches(likes, missing, batch_size=3, negatives=4, loss="bpr", seed=0, epoch=0))
    seen = [(u, i) for b in batches for u, i, w in zip(b.user, b.positive, b.weight, strict=True) if w]
    assert sorted(seen) == [(0, 0), (0, 1), (1, 4), (1, 5)], "user 2 has no item without an edge"
    assert [len(b.user) for b in batches] == [2, 2], "batches are as even as they can be"
    for batch in batches:
        for user, negatives in zip(batch.user, batch.negative, strict=True):
            assert not set(negatives.tolist()) & set(events.items[events.user_idx == user].tolist())
    shared = list(pair_batches(likes, missing, batch_size=8, negatives=ITEMS, loss="sampled_softmax", seed=0, epoch=0))
    assert sum(b.weight.sum() for b in shared) == len(likes)
    assert [len(b.user) for b in shared] == [6, 6] and shared[1].weight.sum() == 5
    assert all(b.negative.tolist() == full for b in shared)


@pytest.mark.parametrize("loss", ["bpr", "sampled_softmax"])
def test_padding_has_no_part_in_a_loss(loss: Any) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.normal(size=(USERS, D)), rng.normal(size=(ITEMS, D))
    negative = np.array([[4, 5], [6, 0], [1, 2]]) if loss == "bpr" else np.array([4, 5])
    short = Pairs(np.array([0, 1]), np.array([2, 3]), negative[:2] if loss == "bpr" else negative, np.ones(2))
    padded = Pairs(np.array([0, 1, 7]), np.array([2, 3, 6]), negative, np.array([1.0, 1.0, 0.0]))
    assert float(pair_loss(users, items, padded, loss)) == pytest.approx(float(pair_loss(users, items, short, loss)))
    assert float(pair_norms(users, items, padded)) == pytest.approx(float(pair_norms(users, items, short)))


def test_a_pair_whose_negatives_are_its_own_positive_costs_nothing() -> None:
    batch = Pairs(np.array([0]), np.array([1]), np.array([1, 1]), np.ones(1))
    value, gradient = jax.value_and_grad(pair_loss)(jnp.ones((1, D)), jnp.ones((2, D)), batch, "sampled_softmax")
    assert float(value) == 0 and np.isfinite(gradient).all()


def test_a_stranger_is_embedded_from_the_shown_history() -> None:
    events = _random_events(0)
    model = _model("lightgcn", events)
    params = model.init(key=jax.random.key(3))
    p, likes = _arrays(params), events.liked_only()
    rows, layers = np.concatenate([p["users"], p["items"]]), []
    for _ in range(3):
        layers.append(rows)
        rows = _normalised(likes, "symmetric") @ rows
    rows = sum(layers, rows) / 4
    degree = _adjacency(likes).sum(1)
    known = degree[:USERS] > 0
    start = p["users"][known].mean(0)
    history = [0, 5]
    received = [sum(layer[USERS + item] / np.sqrt(2 * max(degree[USERS + item], 1)) for item in history)
                for layer in layers]
    stranger = (start + sum(received)) / 4
    scores = model.score(params, make_contexts([2, USERS + 4, 0, USERS + 9], [history, history, history, []]))
    np.testing.assert_allclose(scores[0], rows[USERS:] @ stranger, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6)
    np.testing.assert_allclose(scores[2], rows[USERS:] @ rows[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores[3], rows[USERS:] @ start / 4, rtol=1e-4, atol=1e-5)


def test_only_likes_are_edges_unless_all_events_are_asked_for() -> None:
    events = _random_events(0)
    for name, wanted in (("liked", events.liked_only()), ("all", events)):
        model = _model("lightgcn", events, events=name)
        np.testing.assert_array_equal(model.constants.degree, _adjacency(wanted).sum(1))
        pairs = sum(int(batch.weight.sum()) for batch in model.batches(seed=0, epoch=0))
        assert pairs == len(wanted)
    params = model.init(key=jax.random.key(0))
    disliked = replace(make_contexts([USERS], [[0, 1]]), liked=np.zeros(2, bool))
    empty = make_contexts([USERS], [[]])
    assert not np.allclose(model.score(params, disliked), model.score(params, empty))
    liked_only = _model("lightgcn", events)
    np.testing.assert_array_equal(liked_only.score(params, disliked), liked_only.score(params, empty))


@pytest.mark.parametrize("kind", ["message_dropout", "node_dropout"])
def test_dropout_is_of_training_only_and_keeps_the_mean(kind: str) -> None:
    events = _random_events(0)
    model = _model("ngcf", events, **({"message_dropout": 0.0, "layers": 1, "normalize": False} | {kind: 0.25}))
    params = model.init(key=jax.random.key(0))
    plain = _model("ngcf", events, message_dropout=0.0, layers=1, normalize=False)
    contexts = make_contexts([0, 1], [[1], [2]])
    np.testing.assert_array_equal(model.score(params, contexts), plain.score(params, contexts))
    network = model.merge(params)
    without = np.asarray(network.layers(model.constants)[1])
    dropped = np.asarray(jax.vmap(lambda key: network.layers(model.constants, key)[1])(
        jax.random.split(jax.random.key(1), 400)))
    assert dropped.std(axis=0).max() > 0.05
    if kind == "message_dropout":
        np.testing.assert_allclose(dropped.mean(axis=0), without, atol=0.15 * np.abs(without).max())
        assert (dropped == 0).mean() == pytest.approx(0.25, abs=0.01)
    else:
        np.testing.assert_allclose(dropped[:, 2], np.broadcast_to(without[2], dropped[:, 2].shape), rtol=1e-6,
                                   err_msg="who has no neighbours has no messages to lose")


@pytest.mark.parametrize("name", GRAPH_MODELS)
def test_no_array_of_a_step_is_users_by_items(name: str) -> None:
    n_users, n_items = 211, 101
    model = _model(name, _random_events(0, n_users, n_items, 0.2))
    params, batch = model.init(key=jax.random.key(0)), next(model.batches(seed=0, epoch=0))
    text = jax.jit(jax.grad(lambda p, g: model.loss(p, batch, constants=g, key=jax.random.key(0)))).lower(
        params, model.constants).as_text()
    n = n_users + n_items
    assert f"{n}x{D}x" in text
    for shape in (f"{n_users}x{n_items}", f"{n_items}x{n_users}", f"{n}x{n}", f"{n_users}x{n}", f"{n_items}x{n}"):
        assert f"{shape}x" not in text


def test_the_graph_is_an_argument_of_the_step_not_a_constant() -> None:
    model = _model("lightgcn", _random_events(0))
    params, batch = model.init(key=jax.random.key(0)), next(model.batches(seed=0, epoch=0))

    value = jax.jit(lambda p, g: model.loss(p, batch, constants=g, key=jax.random.key(0)))
    other = jax.tree.map(jnp.asarray, build_graph(_random_events(5).liked_only()))
    assert float(value(params, model.constants)) != pytest.approx(float(value(params, other)))


def test_settings_out_of_range_are_refused() -> None:
    for name, changes, message in (
        ("lightgcn", {"layers": 0}, r"lightgcn.layers must be >= 1; got 0"),
        ("ngcf", {"node_dropout": 1.0}, r"ngcf.node_dropout must be in \[0, 1\); got 1.0"),
        ("graphsage", {"lr": 0.0}, r"graphsage.lr must be > 0; got 0.0"),
        ("lightgcn", {"l2": -1.0}, r"lightgcn.l2 must be >= 0; got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            config_class(name)(**changes)


@pytest.mark.slow
def test_lightgcn_leaves_popularity_behind_on_100k(ml100k_dir: Path) -> None:
    """20 short epochs: NDCG@3 of the validation queries is .45 by popularity and about .61 here."""
    config = DataConfig(name="ml-100k", eval_users=934, validation_users=934, sft_queries=1, rl_queries=1)
    dataset = load_movielens("ml-100k", ml100k_dir, 0)
    queries = draw_queries(dataset, config).by_split["validation"]
    events = events_from(dataset, training_edges(dataset, config), config.positive_above)
    contexts = contexts_from(dataset, queries, config.positive_above)
    candidates = np.array([query.candidates for query in queries])
    places = np.array([query.candidates.index(query.target) for query in queries])

    def ndcg3(model: Any, params: Any) -> float:
        scores = np.take_along_axis(model.score(params, contexts), candidates, axis=1)
        return ndcg(rank_from_scores(scores, places), 3)

    floor = make_model("popularity", None, events)
    model = make_model("lightgcn", config_class("lightgcn")(epochs=20), events)
    learned = train(model, seed=0, validate=lambda params: ndcg3(model, params))
    assert ndcg3(model, learned.params) > ndcg3(floor, floor.init(key=jax.random.key(0))) + 0.1
