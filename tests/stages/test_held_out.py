"""Which queries GRPO's curves show beside its own prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from r2rec_jax.config import GrpoConfig
from r2rec_jax.stages.workspace import Workspace


def held_out(config: GrpoConfig, validation: list[str]) -> list[Any]:
    work = Workspace(cast("Any", SimpleNamespace(config=SimpleNamespace(grpo=config))))
    work.prepared = cast("Any", SimpleNamespace(queries={"validation": validation, "rl": ["r"], "test": ["t"]}))
    return work.held_out


def test_they_are_the_first_validation_queries() -> None:
    assert held_out(GrpoConfig(eval_every=5, eval_prompts=2), ["a", "b", "c"]) == ["a", "b"]
    assert held_out(GrpoConfig(eval_every=5), ["a", "b", "c"]) == ["a", "b", "c"], "as many as there are"
    assert held_out(GrpoConfig(), ["a"]) == [] == held_out(GrpoConfig(), [])


def test_data_without_any_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^grpo\.eval_every needs validation queries; the data has none; raise"):
        held_out(GrpoConfig(eval_every=1), [])


@pytest.mark.parametrize(("name", "value"), [("eval_every", -1), ("eval_prompts", 0)])
def test_numbers_that_mean_nothing_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"grpo\.{name} must be >= {value + 1}; got {value}"):
        GrpoConfig(**{name: value})
