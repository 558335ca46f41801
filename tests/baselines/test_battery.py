"""What every recommender must do, whatever it is: one battery over the registry, with tiny settings."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

from r2rec_jax.baselines.classical import NAMES, config_class, make_model
from r2rec_jax.baselines.events import Contexts
from r2rec_jax.baselines.loop import train
from r2rec_jax.baselines.model import Recommender
from r2rec_jax.baselines.storage import load_model, save_model
from r2rec_jax.checkpoints import flatten
from r2rec_jax.evaluation.ranking import mrr, rank_in_catalogue
from tests.baselines.conftest import Planted, make_contexts, make_events

_SEQUENTIAL = {"width": 16, "dropout": 0.1, "batch_size": 16, "lr": 1e-2, "weight_decay": 0.0, "epochs": 30,
               "patience": 30}
_GRAPH = {"dim": 16, "layers": 2, "batch_size": 128, "lr": 3e-2, "epochs": 30, "patience": 30}
TINY: dict[str, dict[str, Any]] = {
    "popularity": {},
    "item-knn": {"neighbours": 2, "shrinkage": 0.0},
    "ease": {"l2": 5.0},
    "sasrec": _SEQUENTIAL | {"max_events": 8, "layers": 1, "feed_forward": 16},
    "gru4rec": _SEQUENTIAL | {"max_events": 8, "hidden": 16},
    "caser": _SEQUENTIAL | {"max_events": 3, "horizontal": 4, "vertical": 2, "batch_size": 128},
    "lightgcn": _GRAPH,
    "ngcf": _GRAPH | {"layers": 1, "loss": "sampled_softmax", "negatives": 24},
    "graphsage": _GRAPH | {"layers": 1, "loss": "sampled_softmax", "negatives": 24},
}
LEARNED = [name for name in NAMES if name not in ("popularity", "item-knn", "ease")]


def _tiny(name: str, planted: Planted, **changes: Any) -> Recommender:
    return make_model(name, config_class(name)(**(TINY[name] | changes)), planted.events)


def _mean_rank(scores: np.ndarray, planted: Planted) -> float:
    contexts = planted.contexts
    return mrr(rank_in_catalogue(scores, planted.targets, contexts.offsets, contexts.items))


@pytest.fixture(scope="module")
def trained(planted: Planted) -> Any:
    """``trained(name)``: (model, parameters), each trained once; stopped by the planted targets of other users."""

    @cache
    def make(name: str) -> tuple[Recommender, Any]:
        model = _tiny(name, planted)
        return model, train(model, seed=0, validate=lambda params: _mean_rank(
            model.score(params, planted.contexts), planted)).params

    return make


def test_the_battery_knows_every_model() -> None:
    assert tuple(TINY) == NAMES
    with pytest.raises(ValueError, match=r"a model must be one of popularity, .* got 'svd'"):
        make_model("svd", None, make_events([[0]], 1))


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_recommender_and_scores_the_whole_catalogue(name: str, planted: Planted, trained: Any) -> None:
    model, params = trained(name)
    assert isinstance(model, Recommender) and model.name == name and model.events is planted.events
    scores = model.score(params, planted.contexts)
    assert scores.shape == (len(planted.targets), planted.events.n_items)
    assert scores.dtype == np.float32 and np.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_strangers_and_empty_histories_have_finite_scores(name: str, planted: Planted, trained: Any) -> None:
    model, params = trained(name)
    n_users, n_items = planted.events.n_users, planted.events.n_items
    odd = make_contexts([0, n_users, n_users + 7, n_users + 7, 2],
                        [[], [], [3, 4], [n_items, 3, n_items + 9, 4], [n_items + 5]])
    scores = model.score(params, odd)
    assert scores.shape == (5, n_items) and np.isfinite(scores).all()
    np.testing.assert_allclose(scores[3], scores[2], rtol=1e-4, atol=1e-5,
                               err_msg="items that training never saw must be passed over")


@pytest.mark.parametrize("name", NAMES)
def test_users_and_items_without_a_training_edge_are_fine(name: str) -> None:
    events = make_events([[0, 1, 2], [], [1, 2, 3], [2, 3, 0], []], 6)
    model = make_model(name, config_class(name)(**TINY[name]), events)
    scores = model.score(model.init(key=jax.random.key(0)), make_contexts([1, 0], [[], [0, 1, 2]]))
    assert scores.shape == (2, 6) and np.isfinite(scores).all()
    for batch in model.batches(seed=0, epoch=0):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(batch))


@pytest.mark.parametrize("name", NAMES)
def test_a_score_does_not_depend_on_its_company_and_changes_nothing(name: str, planted: Planted, trained: Any) -> None:
    model, params = trained(name)
    before = {path: np.array(value) for path, value in flatten(params).items()}
    contexts = planted.contexts
    together = model.score(params, contexts)
    alone = np.concatenate([model.score(params, contexts.part(q, q + 1)) for q in (0, 5, len(contexts) - 1)])
    np.testing.assert_allclose(alone, together[[0, 5, -1]], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.score(params, contexts), together)
    for path, value in flatten(params).items():
        np.testing.assert_array_equal(np.asarray(value), before[path], err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_gives_the_same_scores(name: str, planted: Planted, trained: Any, tmp_path: Any) -> None:
    model, params = trained(name)
    save_model(tmp_path / "params.safetensors", model, params)
    again, loaded = load_model(tmp_path / "params.safetensors", planted.events)
    assert again.name == name and again.config == model.config
    np.testing.assert_array_equal(again.score(loaded, planted.contexts), model.score(params, planted.contexts))
    with pytest.raises(ValueError, match=r"was made for 72 users and 24 items; got events of 1 users and 2 items"):
        load_model(tmp_path / "params.safetensors", make_events([[0, 1]], 2))


@pytest.mark.parametrize("name", LEARNED)
def test_the_seed_decides(name: str, planted: Planted) -> None:
    def scores(seed: int) -> np.ndarray:
        model = _tiny(name, planted, epochs=2)
        return model.score(train(model, seed=seed, validate=lambda _: 0.0).params, planted.contexts)

    first = scores(0)
    np.testing.assert_array_equal(scores(0), first)
    assert not np.allclose(scores(1), first)


@pytest.mark.parametrize("name", LEARNED)
def test_batches_are_a_function_of_seed_and_epoch_of_few_shapes(name: str, planted: Planted) -> None:
    model = _tiny(name, planted)

    def leaves(seed: int, epoch: int) -> list[np.ndarray]:
        batches = [jax.tree.leaves(batch) for batch in model.batches(seed=seed, epoch=epoch)]
        assert batches
        return [leaf for batch in batches for leaf in batch]

    first = leaves(0, 0)
    same = [leaf.shape == other.shape and np.array_equal(leaf, other)
            for leaf, other in zip(leaves(0, 0), first, strict=True)]
    assert all(same)
    for other in (leaves(0, 1), leaves(1, 0)):
        assert len(other) != len(first) or not all(map(np.array_equal, other, first))
    shapes = {tuple((leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(batch))
              for epoch in range(4) for batch in model.batches(seed=0, epoch=epoch)}
    assert len(shapes) <= 2


@pytest.mark.parametrize("name", [name for name in NAMES if name != "popularity"])
def test_it_learns_a_known_co_occurrence_and_beats_popularity(name: str, planted: Planted, trained: Any) -> None:
    """The target is the other item of the pair that the user has just begun."""
    model, params = trained(name)
    value = _mean_rank(model.score(params, planted.contexts), planted)
    baseline, solution = trained("popularity")
    assert _mean_rank(baseline.score(solution, planted.contexts), planted) < 0.4
    assert value > 0.9


def test_contexts_show_the_latest_events_on_the_right() -> None:
    contexts = replace(make_contexts([0, 1, 2], [[7, 3], [], [1, 2, 3, 4, 5]]),
                       liked=np.array([1, 0, 1, 0, 1, 0, 0], bool))
    items, liked, mask = contexts.latest(4)
    assert items.tolist() == [[0, 0, 7, 3], [0, 0, 0, 0], [2, 3, 4, 5]] and items.dtype == np.int32
    assert mask.tolist() == [[False, False, True, True], [False] * 4, [True] * 4]
    assert liked.tolist() == [[True, True, True, False], [True] * 4, [False, True, False, False]]
    empty = Contexts(np.zeros(1, np.int32), np.zeros(2, np.int64), np.zeros(0, np.int32), np.zeros(0, bool))
    assert [part.tolist() for part in empty.latest(3)[1:]] == [[[True] * 3], [[False] * 3]]
    assert contexts.liked_only().items.tolist() == [7, 1, 3]
