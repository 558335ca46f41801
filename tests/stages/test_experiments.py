"""Lists of experiments: read strictly, resolved before anything runs, failures in one line, curves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml

from r2rec_jax.config import TrainConfig
from r2rec_jax.config.experiments import Experiment
from r2rec_jax.files import write_json
from r2rec_jax.stages.cli import BadInput
from r2rec_jax.stages.experiments import gathering
from r2rec_jax.stages.experiments.curves import POINTS, grpo_curves
from r2rec_jax.stages.experiments.plan import baseline_tasks, needed_stages, read_list, trials_of
from r2rec_jax.stages.experiments.running import failure_reason, run_tasks
from r2rec_jax.stages.experiments.worker import alone
from tests.stages.smoke import write_list


def changed(path: Path, number: int, **changes) -> Path:
    plain = yaml.safe_load(path.read_text())
    plain["experiments"][number] |= changes
    path.write_text(yaml.safe_dump(plain))
    return path


def test_trials_are_experiments_with_seeds(tmp_path: Path) -> None:
    asked = read_list(write_list(tmp_path, seeds=[3, 5]))
    trials = trials_of(asked)
    assert [(t.name, t.seed) for t in trials] == [
        (name, seed) for name in ("main", "no-sft", "search") for seed in (3, 5)]
    main, alone_ = trials[0], trials[2]
    assert (main.config.train_seed, main.config.data.split_seed) == (3, 3)
    assert main.config.lora.rank == 2 and main.config.evaluate.users == 8
    assert main.folder == tmp_path / "runs" / "main" / "seed-3"
    assert [(e["checkpoint"], e["method"], e["chains"]) for e in main.order["exams"]] == [
        *((name, "generate", "own") for name in ("base", "sft", "grpo")),
        *((name, "likelihood", "own") for name in ("base", "sft", "grpo")),
        ("grpo", "generate", "swapped"), ("grpo", "generate", "none")]
    assert alone_.config.grpo.start == "base" and alone_.order["stages"] == ["prepare", "thoughts", "pretrain", "grpo"]
    assert alone_.order["reuse"] == [str(tmp_path / "runs" / "main" / "seed-3" / "run")]
    assert [t.seed for t in trials_of(asked, [7])] == [7, 7, 7]
    some = read_list(changed(write_list(tmp_path / "c", seeds=[3, 5]), 2, seeds=[3]))
    assert [t.seed for t in trials_of(some, [3, 5])] == [3, 5, 3, 5, 3]
    assert [t.seed for t in trials_of(some, [7])] == [7, 7]
    fixed = trials_of(read_list(write_list(tmp_path / "b", seeds=[3, 5], split_seed=1)))
    assert [(t.config.train_seed, t.config.data.split_seed) for t in fixed[:2]] == [(3, 1), (5, 1)]
    assert len(baseline_tasks(asked, trials)) == 2 and len(baseline_tasks(asked, fixed)) == 1


def test_only_what_a_checkpoint_rests_on_is_trained() -> None:
    assert needed_stages(TrainConfig(), ["base"]) == ("prepare", "thoughts", "pretrain")
    assert needed_stages(TrainConfig(), ["grpo"]) == ("prepare", "thoughts", "pretrain", "sft", "grpo")


@pytest.mark.parametrize(("change", "reason"), [
    ({"set": {"grpo.learning_rate": 1}}, "experiment main: .*grpo.learning_rate"),
    ({"set": {"grpo.lr": -1}}, "experiment main: .*grpo.lr must be > 0"),
    ({"set": {"train_seed": 1}}, "train_seed must not be set"),
    ({"set": {"evaluate.users": 9}}, r"experiment main: evaluate\.users must be <= data\.eval_users, 8"),
    ({"set": {"evaluate.users": 3}, "headline": False, "split": "validation"},
     r"experiment main: evaluate\.users must be <= data\.validation_users, 2"),
    ({"set": {"data.validation_users": 0, "sft.eval_every": 0, "grpo.eval_every": 0}, "headline": False,
      "split": "validation"}, r"experiment main: data\.validation_users must be >= 1 to evaluate validation queries"),
    ({"set": {"evaluate.max_new_tokens": 4096}}, r"experiment main: evaluate\.max_new_tokens must be < 4096"),
    ({"systems": ["grpo"]}, "experiment main: systems must be among base, pretrained, sft, sft\\+grpo"),
    ({"systems": []}, "systems must be distinct and at least one"),
    ({"split": "validation"}, "test for a headline"),
    ({"against": "no-sft"}, "against must be null for a headline"),
    ({"headline": False, "against": "search"}, "against must be another one of the list with the same split"),
    ({"headline": False, "against": "main"}, "against must be another one of the list with the same split"),
    ({"reuse": ["other"]}, "reuse must be names of the list"),
    ({"name": "no-sft"}, "experiments must be distinct"),
    ({"name": "baselines"}, "not 'baselines'"),
    ({"set": {"data.negatives": "popularity"}},
     r"experiment no-sft: data\.negatives must be 'popularity' as in main; got 'uniform'"),
    ({"sets": {}}, "an experiment has name, .*; got sets"),
])
def test_a_wrong_list_is_refused_before_anything_runs(tmp_path: Path, change: dict, reason: str) -> None:
    path = changed(write_list(tmp_path), 0, **change)
    with pytest.raises(ValueError, match=reason):
        trials_of(read_list(path))


def test_seeds_out_of_range_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"experiment main: data\.split_seed must be in 0\.\.2\*\*32 - 1; got -1"):
        trials_of(replace(read_list(write_list(tmp_path)), seeds=(-1,)))


def test_a_list_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    for path in (tmp_path / "list.yaml", tmp_path / "nowhere.yaml"):
        with pytest.raises(BadInput, match="the list must be a YAML file"):
            read_list(path)


@pytest.mark.parametrize(("changes", "reason"), [
    ({"experiments": 5}, "Expected a .*Sequence.*Got value: 5"), ({"experiments": ["a"]}, "experiments"),
    ({"experiments": None}, "experiments must have a value; got none"),
    ({"seeds": None}, "seeds must have a value; got none"), ({"set": [1]}, "Expected a .*Mapping"),
    ({"experiments": [{"name": "a", "systems": None, "reuse": None}]}, "systems, reuse must have a value; got none"),
])
def test_a_list_of_another_shape_is_refused(tmp_path: Path, changes: dict, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        read_list(write_list(tmp_path, **changes))


def test_an_empty_set_sets_nothing(tmp_path: Path) -> None:
    asked = read_list(write_list(tmp_path, set=None, experiments=[{"name": "a", "set": None, "against": None}]))
    assert asked.set == {} == asked.experiments[0].set and asked.experiments[0].against is None


@pytest.mark.parametrize("names", [["popularity", "netflix"], ["ease", "ease"]])
def test_classical_models_of_a_list_are_known(tmp_path: Path, names: list[str]) -> None:
    path = write_list(tmp_path, baselines=names)
    with pytest.raises(ValueError, match=rf"smoke\.yaml: baselines must be distinct names among popularity, .*; got "
                                       rf"{', '.join(names)}$"):
        read_list(path)
    assert read_list(write_list(tmp_path / "none", baselines=[])).baselines == []


def test_what_is_done_or_failed_belongs_to_what_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_list(tmp_path)
    main, no_sft, search = trials_of(read_list(path))
    write_json(main.folder / "done.json", {"key": main.key, "left": [], "seconds": 1})
    write_json(no_sft.folder / "failed.json", {"key": no_sft.key, "reason": "x"})
    assert main.outcome() and no_sft.failure() == "x" and search.outcome() is None
    run_tasks([main, no_sft], lambda: pytest.fail("nothing is to be run"))
    assert "failed before and is left out" in capsys.readouterr().err
    changed(path, 0, diagnostics=[])
    again = trials_of(read_list(path))
    assert again[0].outcome() is None and again[1].failure() == "x"


def test_where_data_lie_and_what_a_note_says_is_not_what_was_asked(tmp_path: Path) -> None:
    path = write_list(tmp_path)
    asked = read_list(path)

    def tasks(**settings: Any) -> list[Any]:
        again = trials_of(replace(asked, set={**asked.set, **settings}))
        return [again[0], baseline_tasks(asked, again)[0]]

    for task in tasks():
        write_json(task.folder / "done.json", {"key": task.key, "left": [], "seconds": 1})
    moved = tasks(**{"data.path": str(tmp_path / "elsewhere"), "data.threads": 3, "note": "Told anew.",
                     "grpo.eval_every": 7, "grpo.eval_prompts": 5, "sft.eval_every": 9})
    assert all(task.outcome() for task in moved)
    assert not any(task.outcome() for task in tasks(**{"data.candidates": 10}))


@pytest.mark.parametrize("kind", ["trial", "baselines"])
def test_what_an_earlier_version_has_done_is_done(tmp_path: Path, kind: str) -> None:
    """It lacked a setting, whose default is what it did."""
    asked = read_list(write_list(tmp_path))
    trials = trials_of(asked)
    task = trials[1] if kind == "trial" else baseline_tasks(asked, trials)[0]
    order = json.loads(json.dumps(task.order))
    older = order["config"]["rewards"] if kind == "trial" else order["data"]
    name, other = ("rank_places", "written") if kind == "trial" else ("split", "global-time")
    del older[name]
    task.folder.mkdir(parents=True)
    write_json(task.folder / "task.json", {"key": "theirs", "order": order})
    write_json(task.folder / "done.json", {"key": "theirs", "seconds": 1})
    assert task.outcome() is not None
    write_json(task.folder / "done.json", {"key": "of something else", "seconds": 1})
    assert task.outcome() is None
    write_json(task.folder / "done.json", {"key": "theirs", "seconds": 1})
    older[name] = other
    write_json(task.folder / "task.json", {"key": "theirs", "order": order})
    assert task.outcome() is None, "it did something else"
    older["of a later version"] = 1
    write_json(task.folder / "task.json", {"key": "theirs", "order": order})
    assert task.outcome() is None


def test_reasons_are_one_line(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("old\nerror: old\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("step 1\nerror: no room\nerror: the loss is not finite\n\n")
    assert failure_reason(1, log, start) == "the loss is not finite"
    assert failure_reason(-signal.SIGKILL, log) == "ended by SIGKILL (out of memory?)"
    log.write_text("Fatal: stack\n  frame 1\n")
    assert failure_reason(1, log) == "frame 1"
    log.write_text("")
    assert failure_reason(3, log) == "exit code 3"


def test_a_process_left_behind_is_waited_for(tmp_path: Path) -> None:
    hold = ("import sys, time; from pathlib import Path; from r2rec_jax.files import held\n"
            "with held(Path(sys.argv[1]) / 'lock', 'x', 'y'): print('held', flush=True); time.sleep(1.5)")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", hold, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="in use by process"), alone(tmp_path, patience_s=0):
            pass
        with alone(tmp_path, patience_s=60):
            assert other.wait(10) == 0


def test_a_process_whose_parent_is_gone_already_ends() -> None:
    command = ("import time; from r2rec_jax.stages.experiments.worker import end_with\n"
               "end_with(999_999_999); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", command], env=os.environ | {
            "PYTHONPATH": str(Path(__file__).resolve().parents[2])}) as orphan:
        assert orphan.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize(("changes", "shared"), [
    ({"grpo.steps": 9, "rewards.true_weight": 1.0}, True), ({}, True), ({"sft.epochs": 2, "grpo.steps": 9}, False),
    ({"evaluate.answers": 4}, False)])
def test_what_changes_grpo_alone(changes: dict, shared: bool) -> None:
    assert Experiment("longer", set=changes).changes_grpo_alone is shared


@pytest.mark.parametrize("count", [1, 99, 100, 125, 250, 1001])
def test_points_of_a_curve_are_means_of_equal_stretches(tmp_path: Path, count: int) -> None:
    rows = [{"stage": "grpo", "step": step, "reward_rank": float(step)} for step in range(1, count + 1)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SimpleNamespace(run_dir=str(tmp_path), grpo=SimpleNamespace(start="sft"))
    (curve,) = grpo_curves(cast("Any", SimpleNamespace(config=config, name="x", seed=0)))
    ends = [0, *curve["steps"]]
    sizes = np.diff(ends)
    assert ends[-1] == count and len(sizes) <= POINTS and len(set(sizes[:-1].tolist())) <= 1 and sizes[-1] <= sizes[0]
    expected = [(first + 1 + last) / 2 for first, last in pairwise(ends)]
    assert curve["reward_rank"] == pytest.approx(expected)


def test_looks_at_held_out_prompts_are_points_of_their_own(tmp_path: Path) -> None:
    steps = [{"stage": "grpo", "step": step, "reward": float(step)} for step in range(1, 5)]
    looks: list[dict[str, Any]] = [{"stage": "grpo", "step": step, "eval_reward": step / 8, "eval_hit": 0.5,
                                    "eval_prompts": 3, "eval_words": 2.0} for step in (0, 2, 4)]
    config = SimpleNamespace(run_dir=str(tmp_path), grpo=SimpleNamespace(start="sft"))

    def curve(*rows: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (found,) = grpo_curves(cast("Any", SimpleNamespace(config=config, name="x", seed=0)))
        assert found["steps"] == [1, 2, 3, 4] and found["reward"] == [1, 2, 3, 4]
        return found

    whole = curve(looks[0], *steps[:2], looks[1], *steps[2:], looks[2])
    assert whole["held_out"] == {"prompts": 3, "steps": [0, 2, 4], "reward": [0, 0.25, 0.5], "hit": [0.5] * 3}
    for part in (looks[1:], looks[:2], [looks[0], looks[2] | {"eval_prompts": 4}], []):
        assert "held_out" not in curve(*steps, *part), "not from the first step to the last on the same prompts"


def test_signal_and_noise_of_the_gradients_are_means_of_the_steps_that_know_them(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"stage": "grpo", "step": step, "reward": 0.0} for step in range(1, 5)]
    rows[0] |= {"grad_signal": 27.0, "grad_noise": 12.0, "grad_groups": 3}
    rows[2] |= {"grad_signal": -25.0, "grad_noise": 30.0, "grad_groups": 5}
    config = SimpleNamespace(run_dir=str(tmp_path), grpo=SimpleNamespace(start="sft"))
    means = {"signal": 1.0, "signal_error": 2.0, "noise": 5.0, "groups": 4.0, "steps": 2}
    for count, expected in ((4, means), (2, None)):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        (found,) = grpo_curves(cast("Any", SimpleNamespace(config=config, name="x", seed=0)))
        assert found.get("gradient") == expected


def test_a_training_that_another_experiment_took_over_has_one_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "grpo_curves", lambda trial: [
        {"experiment": trial.name, "seed": trial.seed, "steps": [1, 2], "reward": trial.rewards}])

    def trial(name: str, seed: int, rewards: list[float], split: str = "test", done: bool = True) -> Any:
        return SimpleNamespace(name=name, seed=seed, rewards=rewards, experiment=SimpleNamespace(split=split),
                               order={"stages": ["sft", "grpo"]}, outcome=lambda: {} if done else None)

    found = gathering._curves([trial("all", 0, [0.1, 0.2]), trial("all", 1, [0.1, 0.2]), trial("four", 0, [0.1, 0.2]),
                               trial("longer", 0, [0.1, 0.3]), trial("search", 0, [0.5, 0.5], split="validation"),
                               trial("not yet", 0, [0.6, 0.6], done=False)])
    assert [(curve["experiment"], curve["seed"]) for curve in found] == [("all", 0), ("all", 1), ("longer", 0)]


def test_what_a_step_does_not_tell_is_interpolated(tmp_path: Path) -> None:
    rows = [{"stage": "grpo", "step": 1, "entropy": 1.0}, {"stage": "grpo", "step": 2},
            {"stage": "grpo", "step": 3, "entropy": 3.0}, {"stage": "grpo", "step": 4}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SimpleNamespace(run_dir=str(tmp_path), grpo=SimpleNamespace(start="sft"))
    (curve,) = grpo_curves(cast("Any", SimpleNamespace(config=config, name="x", seed=0)))
    assert curve["entropy"] == [1, 2, 3, 3] and "kl" not in curve
