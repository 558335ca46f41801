"""Stopping a stage: within a step, in a save, on numbers that are not finite, and on a failing reward."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from r2rec_jax import stopping
from r2rec_jax.checkpoints import TreeCheckpoints
from r2rec_jax.config import SftConfig
from r2rec_jax.stopping import Interrupted
from r2rec_jax.training import sft
from r2rec_jax.training.metrics import JsonLines, MetricsWriter
from r2rec_jax.training.session import steps_of
from r2rec_jax.training.sft import train_sft
from r2rec_jax.training.updates import Updates

pytestmark = pytest.mark.usefixtures("heard_signals")

CONFIG = SftConfig(epochs=3, batch_size=4, micro_batch=2, lr=1e-2, warmup=0.0, checkpoint_every=1)
STEPS = 6


@pytest.fixture
def run(tiny, make_examples, tmp_path, checkpoints):
    """Runs six steps of SFT in a folder, or what is left of them; gives the result and the rows."""
    model, lora = tiny
    examples = make_examples(8, seed=8)

    def go(name: str, **changes: Any) -> tuple[Any, list[dict[str, Any]]]:
        own = checkpoints("sft", name)
        try:
            trained = train_sft(model, lora, examples, dataclasses.replace(CONFIG, **changes), seed=1, checkpoints=own,
                                metrics=MetricsWriter(tmp_path / name, "sft", tensorboard=False))
        finally:
            own.close()
        return trained, [json.loads(row) for row in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    return go


@pytest.fixture
def latest(tmp_path):
    def step(name: str) -> int:
        return max(int(p.name) for p in (tmp_path / name).iterdir() if p.name.isdigit())

    return step


def in_update(monkeypatch, step: int, *signals: int) -> None:
    """Send signals in the middle of an update, its state donated."""
    original, calls = Updates.run, []

    def wrapped(self, state, frozen, passes):
        after = original(self, state, frozen, passes)
        calls.append(1)
        if len(calls) == step:
            for number in signals:
                os.kill(os.getpid(), number)
        return after

    monkeypatch.setattr(Updates, "run", wrapped)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_saves_the_step_it_was_in_and_goes_on_to_the_same_result(
        run, latest, monkeypatch, trees_equal, without_seconds, capfd, number):
    """Two signals of the kind that may come twice; the checkpoint of every third step alone would lose the step."""
    whole, rows = run("whole", checkpoint_every=3)
    with monkeypatch.context() as patch, stopping.listening():
        in_update(patch, 2, *[number] * (2 if number == signal.SIGTERM else 1))
        with pytest.raises(Interrupted):
            run("parts", checkpoint_every=3)
    assert latest("parts") == 2 and "sft: interrupted; saved after step 2 of 6" in capfd.readouterr().err
    parts, again = run("parts", checkpoint_every=3)
    assert trees_equal(whole.params, parts.params) and without_seconds(rows) == without_seconds(again)
    assert [len(row["examples"]) for row in again] == [4] * STEPS


def test_a_second_ctrl_c_in_an_update_leaves_the_last_checkpoint(run, latest, monkeypatch, capfd):
    with monkeypatch.context() as patch, stopping.listening():
        in_update(patch, 3, signal.SIGINT, signal.SIGINT)
        with pytest.raises(Interrupted):
            run("twice")
    assert latest("twice") == 2 and "interrupted within an update; the last checkpoint stays" in capfd.readouterr().err


def test_a_second_ctrl_c_in_a_save_does_not_save_again(run, latest, monkeypatch, capfd):
    original = TreeCheckpoints.save_trees

    def cut_off(self, step, *args):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        original(self, step, *args)

    with monkeypatch.context() as patch, stopping.listening():
        patch.setattr(TreeCheckpoints, "save_trees", cut_off)
        with pytest.raises(Interrupted):
            run("cut")
    assert latest("cut") == 2 and "interrupted within a save; the last checkpoint stays" in capfd.readouterr().err


def test_a_stop_in_the_last_step_ends_the_stage_and_the_next_start_finds_it_done(run, latest, monkeypatch):
    with monkeypatch.context() as patch, stopping.listening():
        in_update(patch, STEPS, signal.SIGTERM)
        with pytest.raises(Interrupted):
            run("last")
    assert latest("last") == STEPS
    monkeypatch.setattr(Updates, "run", None)
    assert run("last")[0].steps == STEPS


@pytest.mark.slow
def test_three_updates_that_are_not_finite_keep_the_last_good_checkpoint(
        run, latest, monkeypatch, trees_equal, without_seconds):
    """A checkpoint every step, two kept: the skipped steps must not push the good ones out. The next start stops at the
    same step for the same reason, and goes on where that reason is gone."""
    whole, rows = run("whole")
    original, calls = sft.sft_passes, []

    def broken(batches):
        calls.append(1)
        passes = original(batches)
        return [(batch, np.float32(np.nan)) for batch, _ in passes] if len(calls) > 3 else passes

    reasons = []
    with monkeypatch.context() as patch:
        patch.setattr(sft, "sft_passes", broken)
        for before in (0, 3):
            calls[:] = [1] * before
            with pytest.raises(RuntimeError, match=r"3 updates in a row, the last at step 6 with examples ex") as error:
                run("bad")
            reasons.append(str(error.value))
            assert latest("bad") == 3
    assert reasons[0] == reasons[1]
    parts, again = run("bad")
    assert trees_equal(whole.params, parts.params) and without_seconds(rows) == without_seconds(again)
    assert parts.skipped == 0


def test_one_update_that_is_not_finite_is_skipped_and_counted(run, monkeypatch):
    original, calls = sft.sft_passes, []

    def broken(batches):
        calls.append(1)
        return [(batch, np.float32(np.inf) if len(calls) in (2, 4) else scale) for batch, scale in original(batches)]

    monkeypatch.setattr(sft, "sft_passes", broken)
    trained, rows = run("some")
    assert trained.skipped == 2 and [row["skipped"] for row in rows] == [0, 1, 1, 2, 2, 2]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(trained.params))


def test_a_damaged_row_is_named(tmp_path: Path, capsys):
    log = JsonLines(tmp_path / "log.jsonl")
    log.path.write_text('{"step": 1}\n{"step" 2}\n{"step": 3}\n{"st')
    log.keep(lambda row: row["step"] < 9)
    assert log.path.read_text() == '{"step": 1}\n{"step": 3}\n'
    assert capsys.readouterr().err == f"{log.path}: line 2 is damaged and left out\n"


def test_more_steps_than_the_epochs_have_are_said(capfd):
    assert steps_of("grpo", 63, 200) == 63
    assert "grpo.steps asks for 200 steps, and grpo.epochs end after 63; raise grpo.epochs" in capfd.readouterr().err
    assert (steps_of("sft", 63, 63), steps_of("sft", 63, None), steps_of("sft", 63, 5)) == (63, 63, 5)
    assert not capfd.readouterr().err
