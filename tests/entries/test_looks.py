"""What ``evaluate`` asks, by its flags and the run's own settings; nothing is trained or answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from r2rec_jax.config import EvaluateConfig
from r2rec_jax.evaluate import main as evaluate
from r2rec_jax.reporting import terminal
from r2rec_jax.stages import evaluation
from r2rec_jax.train import main as train
from tests.entries.calls import arguments, refused


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared run that evaluates 5 of 8 test queries among popular items."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(arguments(data, folder, "--stages=prepare", "--evaluate.users=5",
                           "--evaluate.negatives=popularity")) == 0
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EvaluateConfig, int, str]]:
    """Settings, number of queries and result file of every evaluation that is asked for."""
    found = []

    def note(work: Any, config: EvaluateConfig, checkpoints: list[str], file: Path) -> dict[str, Any]:
        found.append((config, len(evaluation.evaluation_queries(work, config)), file.name))
        return {"rows": [], "what": "asked"}

    monkeypatch.setattr(evaluation, "evaluate_run", note)
    monkeypatch.setattr(terminal, "print_breakdowns", lambda rows: None)
    return found


def look(run: Path, *flags: str) -> None:
    assert evaluate(["--run", str(run), "--checkpoint=sft", *flags]) == 0


def test_null_is_a_value_and_not_given_is_the_runs_own(run: Path, asked: list) -> None:
    for flags in ((), ("--users=null",), ("--negatives=null",), ("--users=null", "--negatives=null")):
        look(run, *flags)
    assert [(config.users, config.negatives, count) for config, count, _ in asked] == [
        (5, "popularity", 5), (None, "popularity", 8), (5, None, 5), (None, None, 8)]
    assert [file for *_, file in asked] == [
        "results-test-popularity-sft.json", "results-test-popularity-users-all-sft.json", "results-test-sft.json",
        "results-test-users-all-sft.json"]


def test_users_of_the_run_count_queries_of_its_own_split(run: Path, asked: list) -> None:
    """Five test queries; of validation there are but two."""
    for flags in (["test"], ["validation"], ["sft"], ["sft", "--users=3"], ["rl", "--users=null"]):
        look(run, f"--split={flags[0]}", *flags[1:])
    assert [(config.split, count, file) for config, count, file in asked] == [
        ("test", 5, "results-test-popularity-sft.json"),
        ("validation", 2, "results-validation-popularity-users-all-sft.json"),
        ("sft", 8, "results-sft-users-all-sft.json"), ("sft", 3, "results-sft-users-3-sft.json"),
        ("rl", 4, "results-rl-users-all-sft.json")]


def test_training_queries_have_no_negatives_of_the_run(run: Path, asked: list,
                                                       capsys: pytest.CaptureFixture) -> None:
    look(run, "--split=sft", "--users=2")
    look(run, "--split=validation", "--users=2")
    assert [config.negatives for config, *_ in asked] == [None, "popularity"]
    assert "evaluate.negatives must be null for training queries" in refused(
        capsys, ["--run", str(run), "--checkpoint=sft", "--split=rl", "--negatives=popularity"], evaluate)


def test_what_cannot_be_null_is_refused(run: Path, capsys: pytest.CaptureFixture) -> None:
    for flag in ("split", "temperature", "answers"):
        assert f'"{flag}"' in refused(capsys, ["--run", str(run), "--checkpoint=sft", f"--{flag}=null"], evaluate)
