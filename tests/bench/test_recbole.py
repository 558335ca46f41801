"""The comparison with RecBole: the same questions in its form, its process's protocol, and what a result row says."""

from __future__ import annotations

import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.baselines.classical import config_class, make_model
from r2rec_jax.baselines.classical.sequences import Stream, Windows, lay_rows
from r2rec_jax.baselines.events import Events
from r2rec_jax.bench import recbole as bench
from r2rec_jax.bench.recbole_batches import padded_windows, prefixes, works_of

LENGTH, N_ITEMS = 6, 9


def _events(lengths: tuple[int, ...] = (5, 3, 7, 2)) -> Events:
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(N_ITEMS)[:count] for count in lengths]).astype(np.int32)
    return Events(len(lengths), N_ITEMS, np.concatenate([[0], np.cumsum(lengths)]), items, np.ones(len(items), bool))


@given(st.lists(st.lists(st.tuples(st.integers(0, N_ITEMS), st.integers(-1, N_ITEMS - 1)), min_size=1,
                         max_size=LENGTH), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_padded_windows_ask_the_same_questions_of_the_same_histories(histories: list[list[tuple[int, int]]]) -> None:
    items = np.array([item for history in histories for item, _ in history], np.int32)
    targets = np.array([target for history in histories for _, target in history], np.int32)
    lengths = np.array([len(history) for history in histories])
    stream = Stream(items, np.ones(len(items), bool), targets, np.concatenate([[0], np.cumsum(lengths)]))
    ((rows, _),) = lay_rows(stream, Windows(stream.offsets[:-1], lengths), LENGTH, len(histories))
    padded = padded_windows(rows, LENGTH)

    def asked(history: list[tuple[int, int]]) -> list[tuple[tuple[int, ...], int]]:
        return [(tuple(item + 1 for item, _ in history[:place + 1]), target + 1)
                for place, (_, target) in enumerate(history) if target >= 0]

    wanted = sorted(question for history in histories for question in asked(history))
    one_each = prefixes(padded, 1000)
    got = sorted((tuple(row[:length].tolist()), int(target)) for row, length, target in zip(
        one_each["item_id_list"], one_each["item_length"], one_each["item_id"], strict=True))
    assert got == wanted
    assert all((row[length:] == 0).all() for row, length in zip(one_each["item_id_list"], one_each["item_length"],
                                                                strict=True))
    assert sorted(tuple(row[row > 0].tolist()) for row in padded["item_id_list"]) == sorted(
        tuple(item + 1 for item, _ in history) for history in histories)
    few = prefixes(padded, 2)
    assert len(few["item_id"]) == min(2, len(wanted))


@pytest.mark.parametrize("name", bench.MODELS)
def test_a_work_is_the_batch_of_our_model(name: str) -> None:
    model = make_model(name, None, _events())
    batch = next(iter(model.batches(seed=0, epoch=0)))
    works = works_of(model, batch)
    assert len(works) == (2 if name in ("sasrec", "gru4rec") else 1)
    for work in works:
        ids = work.arrays["item_id"]
        assert len(ids) == work.targets == 17  # every like of the four users is asked for once
        assert ids.max() < work.n_items and ids.min() >= (0 if name == "graphsage" else 1)
        if "user_id" in work.arrays:
            pairs = sorted(zip(work.arrays["user_id"].tolist(), ids.tolist(), strict=True))
            shift = 0 if name == "graphsage" else 1
            own = model.events
            assert pairs == sorted((user + shift, item + shift)
                                   for user, item in zip(own.user_idx.tolist(), own.items.tolist(), strict=True))


@pytest.mark.slow
def test_graphsage_in_its_own_process_learns_and_rows_have_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "TURN_S", 0.01)
    model = make_model("graphsage", config_class("graphsage")(dim=4, l2=0.0), _events())
    batch = next(iter(model.batches(seed=0, epoch=0)))
    with bench.recbole(sys.executable, 1) as other:
        (row,) = bench.compare(model, batch, other, 2)
        steps = other.steps(works_of(model, batch)[0])
        assert steps(1)["loss"] > 1.2 * steps(60)["loss"]
    assert row["work"] == "graphsage update" and row["against"] == "plain torch" and row["repeats"] == 2
    assert row["ratio"] == pytest.approx(row["recbole"] / row["ours"]) and row["spread"] >= 0


def test_our_steps_are_the_updates_of_training() -> None:
    model = make_model("graphsage", config_class("graphsage")(dim=4, lr=0.05), _events())
    batch = next(iter(model.batches(seed=0, epoch=0)))
    steps = bench.our_steps(model, batch)
    first = steps(1)["loss"]
    expected = model.loss(model.init(key=jax.random.key(0)), batch, constants=model.constants, key=jax.random.key(1))
    assert first == pytest.approx(float(expected), rel=1e-5)
    assert steps(60)["loss"] < 0.9 * first


@pytest.mark.parametrize(("arguments", "reason"), [
    (["--recbole_python", "/nowhere/python"], "--recbole_python must be"),
    (["--recbole_python", sys.executable, "--models", "ease"], "--models must be"),
    (["--recbole_python", sys.executable, "--repeats", "0"], "--repeats must be"),
])
def test_a_mistake_is_one_line(arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch,
                               capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(bench, "limit_threads", lambda threads: None)
    monkeypatch.setattr(bench, "movielens_1m", lambda path: _events())
    assert bench.main([*arguments, "--data_path", "."]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {reason}") and told.count("\n") == 1


def test_a_process_that_is_not_recbole_is_told(capfd: pytest.CaptureFixture) -> None:
    model = make_model("lightgcn", None, _events())
    work = works_of(model, next(iter(model.batches(seed=0, epoch=0))))[0]
    with bench.recbole(sys.executable, 1) as other, pytest.raises(RuntimeError, match="RecBole's process failed"):
        other.steps(work)
    assert not (Path.cwd() / "log").exists()
