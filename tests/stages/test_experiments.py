"""Lists of experiments: read strictly, resolved before anything runs, pooled over seeds, failures in one line."""

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
from r2rec_jax.evaluation.ranking import MISS
from r2rec_jax.evaluation.ranks import RankRecord
from r2rec_jax.evaluation.significance import holm, paired_bootstrap
from r2rec_jax.files import write_json
from r2rec_jax.stages.cli import BadInput
from r2rec_jax.stages.experiments import gathering
from r2rec_jax.stages.experiments.curves import POINTS, grpo_curves
from r2rec_jax.stages.experiments.plan import baseline_tasks, needed_stages, read_list, trials_of
from r2rec_jax.stages.experiments.pooled import (
    Pool,
    breakdowns,
    compared,
    compared_searches,
    compared_variants,
    diagnostics,
)
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
    assert [(e.checkpoint, e.method, e.chains) for e in main.exams] == [
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
    ({"set": {"evaluate.users": 9}}, r"experiment main: evaluate.users must be in 1..8"),
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


def test_a_list_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    for path in (tmp_path / "list.yaml", tmp_path / "nowhere.yaml"):
        with pytest.raises(BadInput, match="the list must be a YAML file"):
            read_list(path)


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
    moved = tasks(**{"data.path": str(tmp_path / "elsewhere"), "data.threads": 3, "note": "Told anew."})
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


def records(skill: float, seed: int, users: int = 30) -> list[RankRecord]:
    rng = np.random.default_rng(seed)
    ranks = np.where(rng.random(users) < skill, 1.0, np.where(rng.random(users) < 0.3, MISS, 7.0))
    return [RankRecord("s", f"q{n}", f"u{n}", f"i{n}", n % 20, rank, rank != MISS, f"{seed}-{n}", n)
            for n, rank in enumerate(ranks.tolist())]


def pool_of(**skills: float) -> Pool:
    pool = Pool()
    for seed in (0, 1):
        for name, skill in skills.items():
            system, _, chains = name.partition("__")
            pool.add("main", "main", system.replace("_", "+"), chains or "own", "test", seed, records(skill, seed))
    return pool


def test_tests_pool_the_seeds_and_resample_users() -> None:
    found = compared(pool_of(pretrained=0.2, sft=0.5, sft_grpo=0.9))
    assert [(t["system"], t["minus"], t["metric"]) for t in found][::4] == [
        ("sft+grpo", "sft", "hr@1"), ("sft", "pretrained", "hr@1"), ("sft+grpo", "pretrained", "hr@1")]
    test = found[0]
    hits = [[float(r.rank == 1) for seed in (0, 1) for r in records(skill, seed)] for skill in (0.9, 0.5)]
    expected = paired_bootstrap(*hits, users=[r.user_id for seed in (0, 1) for r in records(0.9, seed)])
    assert test["difference"] == pytest.approx(expected.difference) and test["users"] == 30 and test["pairs"] == 60
    assert test["p"] < 0.05 and test["mean"] - test["mean_minus"] == pytest.approx(test["difference"])
    assert test["by_seed"] == [pytest.approx(np.mean(hits[0][n:n + 30]) - np.mean(hits[1][n:n + 30])) for n in (0, 30)]
    family = [t for t in found if t["metric"] == "hr@1"]
    assert [t["p_holm"] for t in family] == holm([t["p"] for t in family])


def test_a_model_trained_further_is_tested_against_itself_as_it_came() -> None:
    systems = {"base": 0.1, "pretrained": 0.4, "sft": 0.5, "sft_grpo": 0.9, "base-likelihood": 0.3,
               "pretrained-likelihood": 0.6}
    for order in (systems, dict(reversed(systems.items()))):
        pairs = [(t["system"], t["minus"]) for t in compared(pool_of(**order)) if t["metric"] == "hr@1"]
        assert pairs == [
            ("sft+grpo", "sft"), ("sft", "pretrained"), ("sft+grpo", "pretrained"),
            ("sft+grpo", "pretrained-likelihood"), ("pretrained", "base"), ("sft+grpo", "base"),
            ("pretrained-likelihood", "base-likelihood"), ("sft+grpo", "base-likelihood")]


def test_a_variant_is_held_against_the_same_part_of_the_main_table() -> None:
    pool = pool_of(base=0.1, sft=0.5)
    for system, skill in (("pretrained", 0.3), ("sft", 0.8)):
        for seed in (0, 1):
            pool.add(None, "adapted", system, "own", "test", seed, records(skill, seed))
    pairs = [(t["system"], t["minus"], t["experiments"]) for t in compared_variants(pool) if t["metric"] == "hr@1"]
    assert pairs == [("sft", "pretrained", ["adapted", "adapted"]), ("sft", "sft", ["adapted", "main"]),
                     ("pretrained", "base", ["adapted", "main"])]


def test_a_line_before_the_target_costs_the_first_place_there_alone() -> None:
    pool = pool_of(sft=0.5)
    for seed in (0, 1):
        own = records(0.9, seed)
        pool.add("main", "main", "sft+grpo", "own", "test", seed, own, {r.query_id: 0.0 for r in own})
    found = {t["metric"]: t for t in compared(pool)}
    assert found["hr@1"]["mean"] > 0.5 and found["first@1"]["mean"] == 0
    assert found["first@1"]["mean_minus"] == found["hr@1"]["mean_minus"], "a ranking without lines has its first place"


def test_several_answers_to_a_question_count_as_their_mean() -> None:
    once, pool = pool_of(sft=0.5, sft_grpo=0.7), pool_of(sft=0.5)
    for seed in (0, 1):
        own = records(0.7, seed)
        missed = [replace(r, answer=1, rank=MISS, valid=False) for r in own]
        pool.add("main", "main", "sft+grpo", "own", "test", seed, [*own, *missed])
    found, single = ({t["metric"]: t for t in compared(p)} for p in (pool, once))
    for metric in ("hr@1", "ndcg@3", "first@1"):
        assert found[metric]["mean"] == pytest.approx(single[metric]["mean"] / 2)
        assert (found[metric]["users"], found[metric]["pairs"]) == (30, 60)


def test_other_candidates_are_refused() -> None:
    pool = pool_of(sft=0.5)
    pool.add("main", "main", "sft+grpo", "own", "test", 0, records(0.9, seed=4))
    with pytest.raises(ValueError, match=r"sft\+grpo of main and sft of main differ for query q0 of seed 0"):
        compared(pool)


def test_the_first_headline_gives_a_system_and_searches_give_none() -> None:
    pool = pool_of(sft=0.5)
    pool.add(None, "more data", "sft", "own", "test", 0, records(0.9, 0))
    pool.add("later", "later", "sft", "own", "test", 0, records(0.9, 0))
    pool.add("later", "later", "base", "own", "validation", 0, records(0.9, 0))
    assert {name: entry.experiment for name, entry in pool.main().items()} == {"sft": "main"}
    (row,) = breakdowns(pool)
    assert sum(bucket["users"] for bucket in row["by_popularity"]) == sum(e["users"] for e in row["by_position"]) == 60


def test_an_experiment_outside_the_main_table_is_tested_within_itself_or_against_main() -> None:
    pool = pool_of(sft=0.5, popularity=0.2)
    for seed in (0, 1):
        for system, skill in (("sft", 0.1), ("sft+grpo", 0.9)):
            pool.add(None, "drawn", system, "own", "test", seed, records(skill, seed))
    found = compared_variants(pool)
    assert [(t["system"], t["minus"], t["experiments"]) for t in found][::4] == [
        ("sft+grpo", "sft", ["drawn", "drawn"]), ("sft", "sft", ["drawn", "main"]),
        ("sft+grpo", "popularity", ["drawn", "main"])]
    assert found[0]["mean_minus"] == np.mean([r.rank == 1 for seed in (0, 1) for r in records(0.1, seed)])
    assert compared_variants(pool_of(sft=0.5, popularity=0.2)) == []
    pool.add(None, "more", "sft", "own", "test", 0, records(0.45, 0))
    both = [t for t in compared_variants(pool) if t["metric"] == "hr@1"]
    assert {t["experiments"][0] for t in both} == {"drawn", "more"}
    assert [t["p_holm"] for t in both] == list(holm([t["p"] for t in both])), "over the whole table"
    found = compared_variants(pool)
    pool.add(None, "other negatives", "sft", "own", "test", 0, records(0.9, seed=4))
    assert compared_variants(pool) == found, "nothing is subtracted where the candidates differ"


def _with_sft_of_its_own() -> Pool:
    pool = Pool(continued={"longer"})  # the headline has another SFT than the list
    pool.add("main", "main", "sft", "own", "test", 0, records(0.5, 0))
    pool.add(None, "longer", "sft+grpo", "own", "test", 0, records(0.9, 0))
    return pool


def test_grpo_with_other_settings_is_held_against_the_sft_that_it_started_from() -> None:
    pool = Pool(continued={"main", "longer"})
    for seed in (0, 1):
        for system, skill in (("sft", 0.5), ("base-likelihood", 0.3), ("base", 0.2)):
            pool.add("main", "main", system, "own", "test", seed, records(skill, seed))
        for experiment in ("longer", "other sft"):
            pool.add(None, experiment, "sft+grpo", "own", "test", seed, records(0.9, seed))
    found = [(t["experiments"], t["minus"]) for t in compared_variants(pool)[::4]]
    assert found == [(["longer", "main"], "sft"), (["longer", "main"], "base"), (["longer", "main"], "base-likelihood")]
    assert "longer" not in {t["experiments"][0] for t in compared_variants(_with_sft_of_its_own())}
    first = compared_variants(pool)[0]
    assert first["mean_minus"] == np.mean([r.rank == 1 for seed in (0, 1) for r in records(0.5, seed)])


@pytest.mark.parametrize(("changes", "shared"), [
    ({"grpo.steps": 9, "rewards.true_weight": 1.0}, True), ({}, True), ({"sft.epochs": 2, "grpo.steps": 9}, False),
    ({"evaluate.answers": 4}, False)])
def test_what_changes_grpo_alone(changes: dict, shared: bool) -> None:
    assert Experiment("longer", set=changes).changes_grpo_alone is shared


def test_searches_are_held_against_the_first_of_them() -> None:
    pool = pool_of(sft=0.9)
    for name, skill in (("as it is", 0.5), ("higher rate", 0.9)):
        pool.add(None, name, "sft", "own", "validation", 0, records(skill, 0))
    found = compared_searches(pool)
    assert [(t["experiments"], t["seeds"]) for t in found] == [(["higher rate", "as it is"], [0])] * 4
    assert found[0]["difference"] > 0 and len(compared(pool)) == 0, "and stay out of all else"


def test_an_experiment_may_name_what_it_is_held_against() -> None:
    pool = pool_of(sft=0.5)
    named = Pool({"tokens": "adapted", "rate": "as it is"})
    for seed in (0, 1):
        named.add("main", "main", "sft", "own", "test", seed, records(0.5, seed))
        for experiment, skill in (("adapted", 0.6), ("tokens", 0.9)):
            named.add(None, experiment, "sft", "own", "test", seed, records(skill, seed))
    found = compared_variants(named)[::4]
    assert [t["experiments"] for t in found] == [["adapted", "main"], ["tokens", "adapted"]]
    expected = [np.mean([r.rank == 1 for seed in (0, 1) for r in records(skill, seed)]) for skill in (0.9, 0.6)]
    assert [found[1]["mean"], found[1]["mean_minus"]] == expected
    named.add(None, "rate", "sft", "own", "validation", 0, records(0.9, 0))
    assert compared_searches(named) == [], "what it is held against is not there yet, and nothing stands in for it"
    named.add(None, "as it is", "sft", "own", "validation", 0, records(0.5, 0))
    assert [t["experiments"] for t in compared_searches(named)][::4] == [["rate", "as it is"]]
    assert compared_variants(pool) == []


def test_chains_are_compared_with_the_systems_own() -> None:
    found = diagnostics(pool_of(sft=0.8, sft__swapped=0.2, sft__none=0.8))
    assert [entry["chains"] for entry in found] == ["own", "swapped", "none"]
    assert [len(entry["tests"]) for entry in found] == [0, 4, 4]
    worse, same = found[1]["tests"][0], found[2]["tests"][0]
    assert worse["difference"] < -0.3 and worse["p"] < 0.05 and (same["difference"], same["p"]) == (0, 1)


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
