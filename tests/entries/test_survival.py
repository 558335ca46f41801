"""Runs that are killed, stopped, refused and led astray from the command line (``make chaos`` kills more of them)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from r2rec_jax.evaluation.predictions import PredictionLog, read_predictions
from r2rec_jax.stages.run import RunFolder
from r2rec_jax.thoughts.store import ThoughtStore
from r2rec_jax.train import main as train
from tests.chaos.__main__ import check_stops
from tests.chaos.folder import left_over, metric_rows, steps_of
from tests.chaos.harness import Harness, trial
from tests.chaos.moments import Moment
from tests.synthetic import write_ml100k


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """With a run of every stage."""
    own = Harness(tmp_path_factory.mktemp("survival"))
    write_ml100k(own.work / "data")
    assert train(own.arguments()) == 0
    own.keep_finished()
    return own


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    return shown.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "moments"), [
    ("sft", [Moment("checkpoint write", 0.3), Moment("random", 0.3, signal.SIGTERM)]),
    ("grpo", [Moment("checkpoint clean-up", 0.0), Moment("metrics append", 0.0), Moment("export write", 0.0)])])
def test_a_run_killed_at_bad_moments_is_the_run_that_never_was(harness, stage, moments):
    lives = trial(harness, stage, moments, kills_a_run=len(moments), stage_s=3.0)
    stops = sum(moment.number == signal.SIGTERM for moment in moments)
    assert len(check_stops(lives, moments)) == stops
    assert sum(life.code == -signal.SIGKILL for life in lives) == len(moments) - stops
    assert any(life.left for life in lives), "at least one kill left something half done"


def stop_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """SIGTERM as soon as a method has been called once."""
    original = getattr(owner, name)

    def wrapped(self: Any, *args: Any) -> None:
        original(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(owner, name, wrapped)


@pytest.mark.slow
def test_a_stopped_evaluation_keeps_its_answers_and_goes_on(harness, monkeypatch, capsys):
    harness.begin("evaluate")
    argv = [*harness.arguments(), "--stages=evaluate", "--evaluate.batch_size=1"]
    file = harness.run / "evaluate" / "predictions-test-pretrained.jsonl"
    with monkeypatch.context() as patch:
        stop_after(patch, PredictionLog, "append")
        assert train(argv) == 0
    assert last_line(capsys) == "stopped by SIGTERM; run the same command again to go on"
    first = read_predictions(file)
    assert len(first) == 1
    assert train(argv) == 0
    assert read_predictions(file)[0] == first[0] and len(read_predictions(file)) == 3


def test_stopped_thoughts_are_kept(harness, monkeypatch, capsys):
    harness.begin("thoughts")
    argv = [*harness.arguments(), "--stages=thoughts"]
    with monkeypatch.context() as patch:
        stop_after(patch, ThoughtStore, "put_many")
        assert train(argv) == 0
    assert last_line(capsys) == "stopped by SIGTERM; run the same command again to go on"
    kept = (harness.run / "thoughts" / "thoughts.jsonl").read_bytes()
    assert kept and train(argv) == 0
    for name in ("thoughts.jsonl", "sft.jsonl", "held_out.jsonl"):
        assert (harness.run / "thoughts" / name).read_bytes() == (harness.finished / "thoughts" / name).read_bytes()
    assert (harness.run / "thoughts" / "thoughts.jsonl").read_bytes().startswith(kept)


def test_examples_to_look_at_are_of_validation_queries_and_written_when_they_are_asked_for(harness, capsys):
    """By the thoughts stage, or by SFT where looks are asked for later; the adapter of the best look is handed on."""
    harness.begin("sft")
    kept = harness.run / "thoughts" / "held_out.jsonl"
    before = kept.read_bytes()
    asked = {json.loads(line)["example_id"] for line in before.splitlines()}
    trained_on = {json.loads(line)["example_id"] for line in (kept.parent / "sft.jsonl").read_bytes().splitlines()}
    assert len(asked) == 4 and not asked & trained_on, "two rankings and two thoughts"
    kept.unlink()
    assert train([*harness.arguments(), "--stages=sft"]) == 0
    assert kept.read_bytes() == before
    rows, adapter = metric_rows(harness.run, "sft"), Path("sft", "adapter", "adapter_model.safetensors")
    assert rows == metric_rows(harness.finished, "sft") and {row.get("eval_examples") for row in rows} == {4, None}
    assert (harness.run / adapter).read_bytes() == (harness.finished / adapter).read_bytes()
    assert "the best look at held-out data was after step" in capsys.readouterr().err


@pytest.fixture
def rewards(tmp_path, monkeypatch) -> ModuleType:
    """A module of one reward function, which raises on the second completion of its ``fail_at``-th step."""
    (tmp_path / "odd_rewards.py").write_text(
        "fail_at = bad = None\n"
        "calls = 0\n"
        "def length(prompts, completions, **columns):\n"
        "    global bad, calls\n"
        "    calls += len(completions) > 1\n"
        "    if fail_at == calls and bad is None:\n"
        "        bad = completions[1]\n"
        "    if bad in completions:\n"
        "        raise KeyError('no such\\nitem')\n"
        "    return [0.01 * len(text) for text in completions]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "odd_rewards", raising=False)
    import odd_rewards  # type: ignore

    return odd_rewards


@pytest.mark.slow
def test_a_reward_that_raises_loses_no_step(harness, rewards, capsys):
    """It names the completion, in one line; with the function mended the run goes on at that very step."""
    argv = [*harness.arguments(), "--stages=grpo", "--rewards.functions", '[{"function": "odd_rewards:length"}]',
            "--grpo.checkpoint_every=10", "--grpo.eval_every=0", "--grpo.keep=last"]
    harness.begin("grpo")
    assert train(argv) == 0
    rows, adapter = metric_rows(harness.run, "grpo"), harness.run / "grpo" / "adapter" / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    harness.begin("grpo")
    rewards.calls, rewards.fail_at = 0, 3
    assert train(argv) == 1
    line = last_line(capsys)
    assert line.startswith("error: the reward function failed on completion 1 of example '")
    assert "KeyError: 'no such" in line
    assert steps_of(harness.run / "grpo" / "checkpoints") == [2] and len(metric_rows(harness.run, "grpo")) == 2
    rewards.bad, rewards.fail_at = None, None
    assert train(argv) == 0
    assert "grpo: going on after step 2 of" in capsys.readouterr().err
    assert metric_rows(harness.run, "grpo") == rows and adapter.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_that_diverges_stops_with_step_and_examples(harness, capsys, stage):
    """The first update is one too far; what follows is not finite. The checkpoint before that stays."""
    harness.begin(stage)
    argv = [*harness.arguments(), f"--stages={stage}", f"--{stage}.lr=1e38", f"--{stage}.warmup=0",
            f"--{stage}.checkpoint_every=1", "--grpo.reference=base"]  # a gradient whatever the rewards are
    reasons = []
    for _ in range(2):
        assert train(argv) == 1
        reasons.append(last_line(capsys))
        assert steps_of(harness.run / stage / "checkpoints") == [1]
    assert reasons[0] == reasons[1]
    assert f"error: {stage} stopped: loss or gradient was not finite in 3 updates in a row, the last at step 4 " \
           "with examples " in reasons[0]
    assert not (harness.run / stage / "adapter").exists()


def test_a_second_process_is_refused_before_it_touches_anything(harness, capsys):
    harness.begin("grpo")
    before = {p: p.read_bytes() for p in harness.run.rglob("*") if p.is_file() and p.name != "lock"}
    with RunFolder.existing(harness.run).locked():
        assert train([*harness.arguments(), "--overwrite", "--sft.lr=0.5"]) == 2
        assert f"in use by process {os.getpid()} on " in last_line(capsys)
    assert {p: p.read_bytes() for p in harness.run.rglob("*") if p.is_file() and p.name != "lock"} == before


def test_what_killed_processes_left_is_deleted_and_named(harness, capsys):
    harness.begin("export")
    run = harness.run
    for half in (run / "sft" / ".adapter.tmp", run / "export" / ".peft.tmp", run / ".prepare.gone"):
        shutil.copytree(run / "sft" / "adapter", half)
    (run / ".stages.json.tmp").write_text("{")
    (run / "export" / ".peft.lock").write_text("1 on another host")
    assert train([*harness.arguments(), "--stages=export"]) == 0
    said = capsys.readouterr().err
    assert all(f"an earlier write was interrupted; deleting {name}\n" in said
               for name in (".adapter.tmp", ".peft.tmp", ".prepare.gone", ".stages.json.tmp"))
    assert not left_over(run, "sft") and not Path(run / ".prepare.gone").exists()
    harness.check_products("grpo")


def test_a_run_killed_before_its_first_file_can_start_again(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").write_text("7 on a host")
    (tmp_path / "run" / ".run.json.tmp").write_text('{"conf')
    from r2rec_jax.config import TrainConfig

    with RunFolder.open(TrainConfig(run_dir=str(tmp_path / "run")), provenance={}) as run:
        assert json.loads((run.path / "run.json").read_text())["config"]
