"""Which queries SFT and GRPO look at beside those they are trained on, and what the looks decide."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from r2rec_jax.config import GrpoConfig, SftConfig, TrainConfig
from r2rec_jax.stages.keys import stage_key
from r2rec_jax.stages.run import RunFolder
from r2rec_jax.stages.workspace import Workspace

STAGES = pytest.mark.parametrize(("stage", "section"), [("sft", SftConfig), ("grpo", GrpoConfig)])


def held_out(config: SftConfig | GrpoConfig, validation: list[str]) -> list[Any]:
    stage = "sft" if isinstance(config, SftConfig) else "grpo"
    work = Workspace(cast("Any", SimpleNamespace(config=SimpleNamespace(**{stage: config}))))
    work.prepared = cast("Any", SimpleNamespace(queries={"validation": validation, "rl": ["r"], "test": ["t"]}))
    return work.held_out(stage)


@STAGES
def test_they_are_the_first_validation_queries(stage: str, section: Any) -> None:
    assert held_out(section(eval_every=5, eval_prompts=2), ["a", "b", "c"]) == ["a", "b"]
    assert held_out(section(eval_every=5), ["a", "b", "c"]) == ["a", "b", "c"], "as many as there are"
    assert held_out(section(), ["a"]) == [] == held_out(section(), [])


@STAGES
def test_data_without_any_is_refused(stage: str, section: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{stage}\.eval_every needs validation queries; the data has none; raise"):
        held_out(section(eval_every=1), [])


@STAGES
@pytest.mark.parametrize(("name", "value"), [("eval_every", -1), ("eval_prompts", 0)])
def test_numbers_that_mean_nothing_are_refused(stage: str, section: Any, name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{stage}\.{name} must be >= {value + 1}; got {value}"):
        section(**{name: value})


@STAGES
def test_the_best_look_needs_looks(stage: str, section: Any) -> None:
    with pytest.raises(ValueError, match=rf"{stage}\.eval_every must be >= 1 for {stage}\.keep: best; got 0"):
        section(keep="best")


@STAGES
def test_looks_are_of_no_outcome_unless_they_decide_what_is_kept(stage: str, section: Any) -> None:
    def key(**settings: Any) -> str:
        return stage_key(TrainConfig(run_dir="x", **{stage: section(**settings)}), stage)

    assert key() == key(eval_every=3) == key(eval_every=4, eval_prompts=7, keep="last")
    best: dict[str, Any] = {"keep": "best", "eval_every": 3}
    assert len({key(), key(**best), key(**best, eval_prompts=7), key(keep="best", eval_every=4)}) == 4


@STAGES
def test_a_run_that_is_to_keep_the_best_instead_is_refused_by_that_setting_alone(
        stage: str, section: Any, tmp_path: Path) -> None:
    def start(**settings: Any) -> None:
        config = TrainConfig(run_dir=str(tmp_path / "run"), **{stage: section(eval_every=3, **settings)})
        with RunFolder.open(config, provenance={}) as run:
            run.claim(stage)
            run.folder(stage).mkdir(parents=True, exist_ok=True)

    start()
    with pytest.raises(ValueError, match=rf"other settings: {stage}\.keep \(was 'last', now 'best'\); choose another"):
        start(keep="best")
