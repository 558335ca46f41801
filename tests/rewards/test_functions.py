"""Reward functions of a user's own: found by import path, called with the queries' columns, weighted and added."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from r2rec_jax.config import RewardConfig, RewardFunction
from r2rec_jax.rewards.functions import Columns, add_functions, call_function, load_functions
from r2rec_jax.train import main
from tests.synthetic import SMALL, write_ml100k

COLUMNS = Columns(["q1", "q2"], ["7", "8"], [["A", "B"], ["B", "C"]], ["B", "C"], [2, 2])

MODULE = '''
def names_target(prompts, completions, targets, **columns):
    return [1.0 if target in text else 0.0 for text, target in zip(completions, targets, strict=True)]

def shorter(prompts, completions, **columns):
    assert len(prompts) == len(columns["candidates"]) == len(columns["user_ids"]) == len(completions)
    assert all("Candidates:" in prompt for prompt in prompts)
    return [None if not text else -len(text) / 1000 for text in completions]

def short_list(completions, **columns):
    return [0.0]

def endless(completions, **columns):
    return [float("nan")] * len(completions)

def of_tokens(completion_ids, **columns):
    return [0.0] * len(completion_ids)

def of_texts_alone(completions):
    return [0.0] * len(completions)

async def later(completions, **columns):
    return [0.0] * len(completions)

constant = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "rewards_of_a_user"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_values_and_columns(module: str) -> None:
    path = f"{module}:names_target"
    function = load_functions([RewardFunction(path)])[path]
    np.testing.assert_array_equal(call_function(path, function, ["p", "p"], ["I take B", "none"], COLUMNS), [1, 0])


def test_weighted_and_added_none_adds_nothing() -> None:
    entries = [RewardFunction("m:f", 0.5), RewardFunction("m:g", 2.0)]
    values = {"m:f": np.array([3.0, np.nan]), "m:g": np.array([np.nan, -1.0])}
    parts = add_functions({"total": np.array([2.0, 1.0]), "rank": np.array([1.0, 0.0])}, entries, values)
    np.testing.assert_array_equal(parts["total"], [3.5, -1.0])
    np.testing.assert_array_equal(parts["rank"], [1, 0])
    np.testing.assert_array_equal(parts["reward_f"], [3.0, np.nan])
    assert {"reward_m:rank", "reward_m:f"} <= add_functions(
        {"total": np.zeros(1)}, [RewardFunction("m:rank"), RewardFunction("m:f")],
        {"m:rank": np.zeros(1), "m:f": np.zeros(1)}).keys(), "GRPO writes a reward_rank of its own"
    assert {"reward_m:f", "reward_n:f"} <= add_functions(
        {"total": np.zeros(1)}, [RewardFunction("m:f"), RewardFunction("n:f")],
        {"m:f": np.zeros(1), "n:f": np.zeros(1)}).keys()


@pytest.mark.parametrize(("name", "problem"), [
    ("of_tokens", "missing a required argument: 'completion_ids'"), ("of_texts_alone", "unexpected keyword"),
    ("later", "is a coroutine function")])
def test_what_cannot_be_called_is_refused_at_the_start(module: str, name: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_functions([RewardFunction(f"{module}:{name}")])


@pytest.mark.parametrize(("name", "problem"), [
    ("short_list", "one value a completion; got 1 for 2"), ("endless", "finite numbers or None; got nan")])
def test_wrong_values_are_named(module: str, name: str, problem: str) -> None:
    path = f"{module}:{name}"
    with pytest.raises(ValueError, match=problem):
        call_function(path, load_functions([RewardFunction(path)])[path], ["p", "p"], ["a", "b"], COLUMNS)


def test_wrong_paths_are_named(module: str) -> None:
    for path in ("no_such_module_here:f", f"{module}:absent"):
        with pytest.raises(ValueError, match=rf"importable.*{path}"):
            load_functions([RewardFunction(path)])
    with pytest.raises(ValueError, match=r"must name functions; .* is a int"):
        load_functions([RewardFunction(f"{module}:constant")])
    for path in ("no_colon", "a:b:c", ":f", "a b:f"):
        with pytest.raises(ValueError, match="import paths like"):
            RewardFunction(path)
    with pytest.raises(ValueError, match="distinct"):
        RewardConfig(functions=[RewardFunction("m:f"), RewardFunction("m:f", 2.0)])


@pytest.mark.parametrize(("text", "reason"), [
    ("weights = [undefined]", "NameError: name 'undefined' is not defined"),
    ("def f(completions:", r"SyntaxError: .*\(broken_rewards\.py, line 1\)"),
    ("raise RuntimeError('no\\n  table')", "RuntimeError: no table"), ("import sys; sys.exit(3)", "SystemExit: 3"),
    ("import no_such_module_here", "ModuleNotFoundError: No module named 'no_such_module_here'")])
def test_a_module_that_fails_on_import_is_named_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                               text: str, reason: str) -> None:
    (tmp_path / "broken_rewards.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "broken_rewards", raising=False)
    with pytest.raises(ValueError, match=rf"importable .*; 'broken_rewards:f' is not: {reason}$"):
        load_functions([RewardFunction("broken_rewards:f")])


@pytest.mark.slow
def test_a_run_trains_on_them(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_ml100k(tmp_path / "ml")
    functions = json.dumps([{"function": f"{module}:shorter", "weight": 0.25}, {"function": f"{module}:names_target"}])
    run = tmp_path / "run"
    flags = [*SMALL, f"--data.path={data}", f"--run_dir={run}", "--stages", "prepare,thoughts,pretrain,grpo",
             "--grpo.start=base", "--grpo.reference=base", "--rewards.true_weight=0.5"]
    assert main([*flags, "--rewards.functions", '[{"function": "no_such_module_here:f"}]']) == 2
    assert "no_such_module_here" in capsys.readouterr().err and not run.exists()
    assert main([*flags, "--rewards.functions", functions]) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "grpo"]
    assert steps and all(row["reward_shorter"] < 0 and 0 <= row["reward_names_target"] <= 1 for row in steps)
    for row in steps:
        expected = (row["reward_step"] + 2 * row["reward_rank"] + 0.25 * row["reward_shorter"]
                    + row["reward_names_target"] + 0.5 * row["reward_true"])
        assert row["reward"] == pytest.approx(expected, abs=1e-6)
