"""SFT: what is trained, that packing and accumulation change nothing, and that a resumed run is the run."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.config import SftConfig
from r2rec_jax.models.lora import copy_tree, init_lora
from r2rec_jax.tokens.examples import pack, pad
from r2rec_jax.training import sft
from r2rec_jax.training.metrics import MetricsWriter
from r2rec_jax.training.rows import pack_update, row_shapes
from r2rec_jax.training.sft import make_sft_loss, sft_passes, train_sft
from r2rec_jax.training.state import init_state, make_optimizer
from r2rec_jax.training.updates import Updates

CONFIG = SftConfig(epochs=3, batch_size=4, micro_batch=2, lr=1e-2, warmup=0.0, schedule="linear", checkpoint_every=3)


def one_update(model, lora, batches) -> tuple[float, Any]:
    """(loss, gradient of the update), read from the accumulator of a plain pass."""
    loss = make_sft_loss(model)
    total, grads = 0.0, None
    for inputs in sft_passes(batches):
        (value, _), g = jax.jit(jax.value_and_grad(loss, has_aux=True))(lora, model.base, *inputs)
        total += float(value)
        grads = g if grads is None else jax.tree.map(jnp.add, grads, g)
    return total, grads


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_packed_rows_give_the_loss_and_gradient_of_separate_rows(tiny, make_examples):
    model, lora = tiny
    examples = make_examples(6)
    separate = one_update(model, lora, [pad(examples, 24, 10)])
    packed = one_update(model, lora, pack_update(examples, row_shapes(examples, [48]), 1))
    assert separate[0] == pytest.approx(packed[0], rel=1e-5)
    assert_close(separate[1], packed[1], rtol=1e-4, atol=1e-6)


def test_accumulated_micro_batches_are_one_big_batch(tiny, make_examples):
    model, lora = tiny
    examples = make_examples(6, seed=1)
    shapes = row_shapes(examples, [24])
    big = one_update(model, lora, pack_update(examples, shapes, 6))
    small = one_update(model, lora, pack_update(examples, shapes, 1))
    assert len(pack_update(examples, shapes, 1)) > len(pack_update(examples, shapes, 6)) == 1
    assert big[0] == pytest.approx(small[0], rel=1e-5)
    assert_close(big[1], small[1], rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_mean_over_completion_tokens_by_hand(tiny, make_examples):
    model, lora = tiny
    examples = make_examples(2, seed=2)
    losses, score = [], jax.jit(model.score)
    for example in examples:
        batch = pad([example], 24, 10)
        losses += (-score(lora, model.base, batch)[0][0, : len(example.completion_ids)]).tolist()
    assert one_update(model, lora, [pad(examples, 24, 10)])[0] == pytest.approx(np.mean(losses), rel=1e-5)


def test_segments_do_not_see_each_other(tiny, make_examples):
    """Another neighbour in the row changes no bit of an example's scores, nor of its gradient."""
    model, lora = tiny
    first, second, third = make_examples(3, seed=3, prompt=(6, 7), completion=(4, 5))
    score = jax.jit(model.score)
    mine = slice(len(first.completion_ids), 2 * len(first.completion_ids))
    scores = []
    for neighbour in (second, dataclasses.replace(third)):
        batch = pack([neighbour, first], 1, 24, 12)
        assert batch.segments.max() == 2
        scores.append(np.asarray(score(lora, model.base, batch)[0])[0, mine])
    np.testing.assert_array_equal(*scores)


def test_the_end_token_is_trained(tiny, make_examples, trees_equal):
    """Its weight is 1, and training on one example raises its probability."""
    model, lora = tiny
    examples = make_examples(1, seed=4)
    batch = pad(examples, 24, 10, pad_id=2)  # the pad token is the end token
    last = len(examples[0].completion_ids) - 1
    assert batch.target_tokens[0, last] == 2 and batch.target_weights[0, last] == 1
    config = SftConfig(epochs=20, batch_size=1, micro_batch=1, lr=1e-2, warmup=0.0)
    trained = train_sft(model, lora, examples, config, seed=0, pad_id=2)
    assert trees_equal(trained.params, train_sft(model, lora, examples, config, seed=0, pad_id=0).params)
    before, after = (np.asarray(jax.jit(model.score)(x, model.base, batch)[0])[0, last] for x in (lora, trained.params))
    assert after > before + 0.5


@pytest.mark.slow
def test_eight_examples_are_learnt_by_heart(tiny, make_examples, trees_equal):
    model, _ = tiny
    lora = init_lora(tiny[1], jax.random.key(1))
    kept, base = copy_tree(lora), jax.device_get(model.base)
    examples = make_examples(8, seed=5)
    config = SftConfig(epochs=80, batch_size=8, micro_batch=4, lr=2e-2, warmup=0.05)
    trained = train_sft(model, lora, examples, config, seed=0)
    batch = pad(examples, 24, 10)
    logprobs = np.asarray(jax.jit(model.score)(trained.params, model.base, batch)[0])[batch.target_weights > 0]
    assert -logprobs.mean() < 0.1, f"loss {-logprobs.mean():.3f}"
    assert trees_equal(base, model.base), "the base must not change"
    assert trees_equal(kept, lora), "the caller's adapter must not change"
    assert not trees_equal(trained.params, lora)
    assert (trained.steps, trained.skipped) == (80, 0)


def test_it_stops_after_its_steps_at_the_end_of_its_schedule(tiny, make_examples, tmp_path, checkpoints):
    rows = run(tiny, make_examples(8, seed=5), tmp_path, checkpoints, "short", dataclasses.replace(
        CONFIG, steps=3, lr=1e-2, warmup=0.0, schedule="linear"))[2]
    assert [row["lr"] for row in rows] == pytest.approx([1e-2, 2e-2 / 3, 1e-2 / 3])
    longer = dataclasses.replace(CONFIG, steps=10**6)
    assert len(run(tiny, make_examples(8, seed=5), tmp_path, checkpoints, "whole", longer)[2]) == 6


def test_the_adapter_is_no_constant_of_the_compiled_step(tiny, make_examples):
    model, lora = tiny
    examples = make_examples(4, seed=6)
    shapes = row_shapes(examples)
    optimizer = make_optimizer(1e-2, "constant", 0, 10, 0, 1.0)
    updates = Updates(make_sft_loss(model), sft.SUMS, optimizer)
    losses = []
    for scale in (1.0, 3.0):
        other = jax.tree.map(lambda x, scale=scale: scale * x, lora)
        _, values = updates.run(init_state(other, optimizer), model.base,
                                sft_passes(pack_update(examples, shapes, 2)))
        losses.append(values["loss"])
    doubled = jax.tree.map(lambda x: 2 * x, model.base)
    _, values = updates.run(init_state(lora, optimizer), doubled, sft_passes(pack_update(examples, shapes, 2)))
    assert len({*losses, values["loss"]}) == 3
    assert [program.compilations for program in (updates.zeros, updates.gradient, updates.update)] == [1, 1, 1]


def test_a_second_update_of_the_same_shape_compiles_nothing(tiny, make_examples):
    model, lora = tiny
    told = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, seconds, **_: told.append(name) if name.endswith("backend_compile_duration") else None)
    examples = make_examples(4, seed=7)
    optimizer = make_optimizer(1e-2, "constant", 0, 10, 0, 1.0)
    updates = Updates(make_sft_loss(model), sft.SUMS, optimizer)
    state, counts = init_state(lora, optimizer), []
    for _ in range(3):
        told.clear()
        state, _ = updates.run(state, model.base, sft_passes(pack_update(examples, row_shapes(examples), 2)))
        counts.append(len(told))
    jax.monitoring.clear_event_listeners()
    assert counts[0] >= 3 and counts[1:] == [0, 0]


def run(tiny, examples, tmp_path, checkpoints, name, config=CONFIG, held_out=()):
    model, lora = tiny
    own = checkpoints("sft", name)
    trained = train_sft(model, lora, examples, config, seed=1, held_out=held_out, checkpoints=own,
                        metrics=MetricsWriter(tmp_path / name, "sft", tensorboard=False))
    state = own.restore(init_state(lora, make_optimizer(1e-2, "linear", 0, 6, 0, 1.0)))
    own.close()
    rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    return trained, state, rows


def test_held_out_examples_have_their_own_loss_and_change_nothing(tiny, make_examples, tmp_path, checkpoints,
                                                                  trees_equal, without_seconds):
    """The mean over their tokens, by hand in rows of their own; the best look's adapter is kept if asked for."""
    examples, held_out = make_examples(8, seed=8), make_examples(5, seed=9)
    config = dataclasses.replace(CONFIG, epochs=6, lr=0.05, schedule="constant")
    plain, _, rows = run(tiny, examples, tmp_path, checkpoints, "plain", config)
    whole, _, looked = run(tiny, examples, tmp_path, checkpoints, "whole", dataclasses.replace(config, eval_every=5),
                           held_out)
    assert trees_equal(plain.params, whole.params) and plain.kept == whole.kept == 12
    looks = [row for row in looked if "eval_loss" in row]
    assert [row["step"] for row in looks] == [0, 5, 10, 12] and all(row["eval_examples"] == 5 for row in looks)
    assert without_seconds([row for row in looked if "loss" in row]) == without_seconds(rows)
    model, lora = tiny
    for params, row in ((lora, looks[0]), (whole.params, looks[-1])):
        loss, sums = make_sft_loss(model)(params, model.base, *sft_passes([pad(held_out, 24, 10)])[0])
        assert row["eval_loss"] == pytest.approx(float(loss), rel=1e-5)
        assert row["eval_entropy"] == pytest.approx(float(sums["entropy_sum"] / sums["tokens"]), rel=1e-5)

    best = run(tiny, examples, tmp_path, checkpoints, "best", dataclasses.replace(config, eval_every=1, keep="best"),
               held_out)
    losses = [row["eval_loss"] for row in best[2] if "eval_loss" in row]
    assert best[0].kept == np.argmin(losses) < 12 and best[0].steps == 12, "random tokens: what is learned is by heart"
    there = dataclasses.replace(config, steps=max(1, best[0].kept))
    same = run(tiny, examples, tmp_path, checkpoints, "same", there)[0].params if best[0].kept else lora
    assert trees_equal(best[0].params, same)


def stop_at(monkeypatch, step, error=KeyboardInterrupt):
    """Raise inside the given step, after its gradient and before its update."""
    original, calls = Updates.run, []

    def wrapped(self, state, frozen, passes):
        calls.append(1)
        if len(calls) == step:
            raise error
        return original(self, state, frozen, passes)

    monkeypatch.setattr(Updates, "run", wrapped)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["killed", "interrupted"])
def test_a_resumed_run_is_the_run_that_never_stopped(tiny, make_examples, tmp_path, checkpoints, monkeypatch,
                                                     trees_equal, without_seconds, kind):
    """Killed in step 5: goes on from the checkpoint of step 3. Interrupted there: from step 4, saved on the way out."""
    examples = make_examples(8, seed=8)
    whole = run(tiny, examples, tmp_path, checkpoints, "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 5, KeyboardInterrupt if kind == "interrupted" else SystemExit)
        with pytest.raises(KeyboardInterrupt if kind == "interrupted" else SystemExit):
            run(tiny, examples, tmp_path, checkpoints, "parts")
    saved = checkpoints("sft", "parts")
    assert saved.latest_step == (4 if kind == "interrupted" else 3)
    saved.close()
    parts = run(tiny, examples, tmp_path, checkpoints, "parts")
    assert trees_equal(whole[0].params, parts[0].params)
    assert trees_equal(whole[1].state, parts[1].state)
    assert whole[1].loader_state == parts[1].loader_state
    assert without_seconds(whole[2]) == without_seconds(parts[2])
    assert [row["step"] for row in parts[2]] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_is_not_run_again(tiny, make_examples, tmp_path, checkpoints, monkeypatch, trees_equal):
    examples = make_examples(8, seed=8)
    first = run(tiny, examples, tmp_path, checkpoints, "once")
    monkeypatch.setattr(Updates, "run", None)
    again = run(tiny, examples, tmp_path, checkpoints, "once")
    assert trees_equal(first[0].params, again[0].params) and again[0].steps == 6


def test_three_updates_that_are_not_finite_stop_and_leave_no_checkpoint(tiny, make_examples, checkpoints):
    model, lora = tiny
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), lora)
    own = checkpoints()
    with pytest.raises(RuntimeError, match=r"sft stopped: .* step 3 with examples example-\d"):
        train_sft(model, broken, make_examples(8), CONFIG, seed=0, checkpoints=own)
    assert own.latest_step is None
    own.close()
