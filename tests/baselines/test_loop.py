"""The training loop: stops early, resumes exactly, never trains on what is held out, and survives bad numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from r2rec_jax.baselines.classical.popularity import Popularity
from r2rec_jax.baselines.events import contexts_from, events_from
from r2rec_jax.baselines.loop import _ahead, train
from r2rec_jax.config import DataConfig
from r2rec_jax.config.baselines import PopularityConfig
from r2rec_jax.data.movielens import load_movielens
from r2rec_jax.data.splits import draw_queries, training_edges
from tests.baselines.conftest import make_events
from tests.baselines.toy import Toy, ToyConfig, closeness
from tests.damage import damaged_copies

ROOT = Path(__file__).resolve().parents[2]


def _same(a: Any, b: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool(np.array_equal(x, y)), a, b)))


def _losses(trained: Any) -> list[tuple[int, float, float]]:
    return [(record.epoch, record.loss, record.validation) for record in trained.history]


def test_it_keeps_the_best_epoch_and_stops_when_patience_runs_out() -> None:
    values = iter([0.1, 0.5, 0.3, 0.5, 0.2, 0.9])
    seen: list[Any] = []

    def validate(params: Any) -> float:
        seen.append(jax.tree.map(np.array, params))
        return next(values)

    trained = train(Toy(), seed=0, validate=validate)
    assert [record.validation for record in trained.history] == [0.1, 0.5, 0.3, 0.5, 0.2]
    assert (trained.best_epoch, trained.validation, trained.steps) == (2, 0.5, 25)
    assert _same(trained.params, seen[1]) and not _same(trained.params, seen[4])
    assert trained.n_parameters == 4


def test_it_learns_and_compiles_once() -> None:
    model = Toy(ToyConfig(epochs=30, patience=30))
    trained = train(model, seed=0, validate=closeness)
    assert model.traces == 1
    assert trained.validation > -0.1
    losses = [record.loss for record in trained.history]
    assert losses[-1] < 0.05 * losses[0]


def test_seed_decides_everything() -> None:
    first, again, other = (train(Toy(), seed=seed, validate=closeness) for seed in (1, 1, 2))
    assert _same(first.params, again.params) and _losses(first) == _losses(again)
    assert not _same(first.params, other.params)


@pytest.mark.parametrize("every_s", [0.0, 3600.0])
def test_interrupted_and_resumed_it_equals_never_stopping(tmp_path: Path, every_s: float) -> None:
    whole = train(Toy(), seed=3, validate=closeness)

    def interrupt(epoch: int, number: int) -> None:
        if (epoch, number) == (3, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Toy(before_batch=interrupt), seed=3, validate=closeness, folder=tmp_path, checkpoint_every_s=every_s)
    epochs: list[int] = []
    resumed = train(Toy(before_batch=lambda epoch, number: epochs.append(epoch)), seed=3, validate=closeness,
                    folder=tmp_path, checkpoint_every_s=every_s)
    assert min(epochs) == (3 if every_s == 0 else 0)
    assert _same(resumed.params, whole.params) and _losses(resumed) == _losses(whole)
    assert (resumed.steps, resumed.best_epoch, resumed.validation) == (whole.steps, whole.best_epoch, whole.validation)


@pytest.mark.slow
def test_killed_and_resumed_it_equals_never_stopping(tmp_path: Path) -> None:
    script = ("from pathlib import Path; import sys; from r2rec_jax.baselines.loop import train; "
              "from tests.baselines.toy import Toy, closeness, die_at; "
              "train(Toy(before_batch=die_at(4, 3)), seed=5, validate=closeness, folder=Path(sys.argv[1]), "
              "checkpoint_every_s=0.0)")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"JAX_PLATFORMS": "cpu"}, timeout=120, check=False)
    assert done.returncode == 9, done.stderr
    resumed = train(Toy(), seed=5, validate=closeness, folder=tmp_path)
    whole = train(Toy(), seed=5, validate=closeness)
    assert _same(resumed.params, whole.params) and _losses(resumed) == _losses(whole)


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_an_epoch_and_no_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some of the files that a checkpoint consists of; ``tests/training/test_checkpoints.py`` takes every one."""
    whole = train(Toy(), seed=0, validate=closeness, folder=tmp_path / "whole", checkpoint_every_s=0.0)
    newest = max(int(path.name) for path in (tmp_path / "whole").iterdir() if path.name.isdigit())
    tried = 0
    for done, folder in islice(damaged_copies(tmp_path / "whole", str(newest), tmp_path), 0, None, 13):
        resumed = train(Toy(), seed=0, validate=closeness, folder=folder, checkpoint_every_s=0.0)
        assert _same(resumed.params, whole.params) and _losses(resumed) == _losses(whole), done
        said = capsys.readouterr().err
        assert f"toy: checkpoint of step {newest}: " in said and f"going on after epoch {newest - 1}" in said, done
        tried += 1
    assert tried > 5


def test_a_finished_run_is_read_back_without_a_step(tmp_path: Path) -> None:
    first = train(Toy(), seed=0, validate=closeness, folder=tmp_path)
    again = train(Toy(), seed=0, validate=lambda _: pytest.fail("nothing is left to validate"), folder=tmp_path)
    assert _same(first.params, again.params) and _losses(first) == _losses(again)


@pytest.mark.parametrize(("changes", "named"), [
    ({"seed": 1}, "another seed"), ({"identity": "x"}, "other data"), ({"model": Toy(ToyConfig(lr=0.2))},
                                                                        "other settings")])
def test_checkpoints_of_something_else_are_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    train(Toy(ToyConfig(epochs=1)), seed=0, validate=closeness, folder=tmp_path)
    arguments: dict[str, Any] = {"model": Toy(ToyConfig(epochs=1)), "seed": 0, "identity": ""} | changes
    with pytest.raises(ValueError, match=f"was made with {named}") as error:
        train(validate=closeness, folder=tmp_path, **arguments)
    assert "\n" not in str(error.value)


def test_updates_that_are_not_finite_change_nothing_and_are_counted() -> None:
    trained = train(Toy(weight=lambda epoch, number: np.nan if number in (1, 2, 4) else 1.0), seed=0,
                    validate=closeness)
    assert trained.skipped == 3 * len(trained.history) and trained.steps == 5 * len(trained.history)
    assert np.isfinite(trained.params["w"]).all() and all(np.isfinite(r.loss) for r in trained.history)


def test_three_in_a_row_stop_the_run_and_leave_the_checkpoint(tmp_path: Path) -> None:
    good = train(Toy(ToyConfig(epochs=6)), seed=0, validate=closeness)

    def weight(epoch: int, number: int) -> float:
        return np.nan if epoch == 2 and number >= 1 else 1.0

    with pytest.raises(RuntimeError, match=r"toy stopped: loss or gradient was not finite in 3 updates in a row of "
                                           r"epoch 3 \(seed 0\)"):
        train(Toy(weight=weight), seed=0, validate=closeness, folder=tmp_path, checkpoint_every_s=0.0)
    again = train(Toy(), seed=0, validate=closeness, folder=tmp_path)
    assert _losses(again) == _losses(good)


def test_a_validation_value_must_be_finite() -> None:
    with pytest.raises(RuntimeError, match="validation value of toy must be finite; got nan after epoch 1"):
        train(Toy(), seed=0, validate=lambda _: float("nan"))


def test_an_error_while_batches_are_made_comes_out_of_the_loop() -> None:
    def fail(epoch: int, number: int) -> None:
        if epoch == 1:
            raise ValueError("a batch must be; got none")

    with pytest.raises(ValueError, match="a batch must be"):
        train(Toy(before_batch=fail), seed=0, validate=closeness)


def _made(seen: list[int], count: int, fail_at: int | None = None) -> Iterator[int]:
    for number in range(count):
        if number == fail_at:
            raise ValueError("a batch must be; got none")
        seen.append(number)
        yield number


def _worker_rests(worker: str = "batches") -> bool:
    return not any(thread.name.startswith(worker) for thread in threading.enumerate())


@pytest.mark.parametrize("count", (0, 1, 3, 20))
def test_batches_made_ahead_keep_their_order(count: int) -> None:
    assert list(_ahead(_made([], count), 3)) == list(range(count))
    assert _worker_rests()


def test_no_more_than_so_many_batches_are_made_ahead() -> None:
    seen: list[int] = []
    batches = _ahead(_made(seen, 20), 3)
    for number in batches:
        deadline = time.monotonic() + 5
        while len(seen) < min(number + 4, 20) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.005)  # a fifth one would be made by now
        assert seen == list(range(min(number + 4, 20)))


def test_an_error_comes_after_the_batches_before_it() -> None:
    batches = _ahead(_made([], 20, fail_at=5), 3)
    assert list(islice(batches, 5)) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="a batch must be"):
        next(batches)
    assert _worker_rests()


def test_closing_early_waits_for_the_batch_at_work_alone() -> None:
    held, seen = threading.Event(), list[int]()

    def slow() -> Iterator[int]:
        for number in range(20):
            if number:
                held.wait(5)
            seen.append(number)
            yield number

    batches = _ahead(slow(), 3)
    assert next(batches) == 0
    threading.Timer(1.0, held.set).start()  # long after the next line has begun
    batches.close()
    assert seen == [0, 1] and _worker_rests()


def test_a_closed_form_model_is_solved_and_validated() -> None:
    model = Popularity(PopularityConfig(), make_events([[0, 1], [1]], 3))
    trained = train(model, seed=0, validate=lambda params: float(params["edges"].sum()))
    assert trained.validation == 3.0 and trained.history == () and trained.best_epoch == 0
    with pytest.raises(TypeError, match="has no loss"):
        model.loss(trained.params, None, constants={}, key=jax.random.key(0))


def test_no_held_out_event_is_learned_from_or_shown(ml100k_dir: Path) -> None:
    """Neither the validation or test target of an eligible user, nor anything after them; contexts end before them."""
    config = DataConfig(name="ml-100k", eval_users=934, validation_users=934)
    dataset = load_movielens("ml-100k", ml100k_dir, config.split_seed)
    queries = draw_queries(dataset, config).by_split
    events = events_from(dataset, training_edges(dataset, config), config.positive_above)
    n_items = events.n_items
    learned = set((events.user_idx.astype(np.int64) * n_items + events.items).tolist())
    held_out = [(q.user_idx, q.target) for split in ("test", "validation") for q in queries[split]]
    assert len(held_out) == 2 * 934
    assert not learned & {user * n_items + item for user, item in held_out}
    for split in ("test", "validation"):
        contexts = contexts_from(dataset, queries[split], config.positive_above)
        for row, query in enumerate(queries[split]):
            shown = contexts.items[contexts.offsets[row]:contexts.offsets[row + 1]].tolist()
            assert shown == [item for item, _ in dataset.history(query.user_idx, query.place)]
            assert query.target not in shown
    counts = np.bincount(events.user_idx, minlength=events.n_users)
    places = {q.user_idx: q.place for q in queries["validation"]}
    assert all(counts[user] == place for user, place in places.items()), "training stops where the target stands"
    liked = events.liked_only()
    assert len(liked) == int(events.liked.sum()) and liked.liked.all()
    assert np.array_equal(liked.user_idx, events.user_idx[events.liked])
