"""Configurations and lists under configs/ parse, and what comments promise of memory is what ``--plan`` says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from r2rec_jax.config import TrainConfig, as_plain
from r2rec_jax.models.shapes import DEEPSEEK_8B, KNOWN
from r2rec_jax.stages.cli import add_train_config, make_parser, parse_train_config
from r2rec_jax.stages.experiments.plan import read_list, trials_of
from r2rec_jax.stages.memory.plan import GIB, make_plan

FOLDER = Path(__file__).resolve().parents[2] / "configs"
ALL = sorted(FOLDER.glob("*.yaml"))
EIGHT_B = sorted(FOLDER.glob("*_8b.yaml"))
LISTS = sorted(path for path in (FOLDER / "evidence").glob("*.yaml") if not path.stem.endswith(".base"))


def parse(path: Path, *more: str) -> TrainConfig:
    parser = make_parser("r2rec_jax.train", "")
    add_train_config(parser)
    return parse_train_config(parser, ["--config", str(path), *more])[0]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_a_configuration_parses_and_opens_with_its_command(path: Path) -> None:
    assert parse(path).run_dir.startswith("runs/")
    first = path.read_text().splitlines()[0]
    assert first.startswith("#")
    if path.stem == "quickstart":
        assert "make quickstart" in first
    else:
        assert "python -m r2rec_jax.train --config " in first and f"--config configs/{path.name}" in first


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_a_list_resolves_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting of every experiment; one that changes nothing is the recipe itself."""
    monkeypatch.chdir(FOLDER.parent)
    asked = read_list(path)
    assert asked.name == path.stem
    trials = trials_of(asked)
    assert {trial.name for trial in trials} == {experiment.name for experiment in asked.experiments}
    for trial in trials:
        assert trial.experiment.set or trial.experiment.headline or trial.experiment.split == "validation"


def test_the_8b_configurations_differ_in_their_data_alone() -> None:
    """Each is complete, so that one file shows a whole run; this keeps the recipe in them one recipe."""
    assert [path.stem for path in EIGHT_B] == ["amazon_books_8b", "amazon_electronics_8b", "movielens_1m_8b"]
    recipes = [{k: v for k, v in as_plain(parse(path)).items() if k not in ("run_dir", "note", "data")}
               for path in EIGHT_B]
    assert recipes[0] == recipes[1] == recipes[2]
    counts = [(c.data.eval_users, c.data.validation_users, c.data.sft_queries, c.data.rl_queries, c.data.negatives)
              for c in map(parse, EIGHT_B)]
    assert counts[0] == counts[1] == counts[2] == (1000, 200, 500, 500, "uniform")


@pytest.mark.parametrize("path", EIGHT_B, ids=lambda path: path.stem)
def test_the_memory_in_the_comments_is_the_plans(path: Path) -> None:
    text = path.read_text()
    assert re.search(r"8 of them: +the same with  --evaluate.batch_size 512\n", text)
    wide = parse(path, "--evaluate.batch_size=512")
    for label, config, devices in (("one GPU", parse(path), 1), ("8 GPUs", wide, 8)):
        line = re.search(
            rf"#   {label} +SFT (\d+\.\d), rollout (\d+\.\d), GRPO update (\d+\.\d), evaluation (\d+\.\d)", text)
        assert line is not None
        plan = make_plan(config, KNOWN[DEEPSEEK_8B], devices, on_cpu=False)
        assert [phase.peak / GIB for phase in plan.phases] == pytest.approx(list(map(float, line.groups())), rel=0.03)
        assert plan.fits("a100-80g") and plan.fits("h100")
    small = parse(path, "--backbone.quantize=int8", "--evaluate.batch_size=16")
    found = re.search(r"#   40 GB .*--backbone.quantize int8 --evaluate.batch_size 16: peak (\d+\.\d)", text)
    plan = make_plan(small, KNOWN[DEEPSEEK_8B], 1, on_cpu=False)
    assert found is not None and plan.peak / GIB == pytest.approx(float(found[1]), rel=0.03) and plan.fits("a100-40g")
