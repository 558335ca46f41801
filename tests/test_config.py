"""Seeds out of range, and settings of different sections that do not go together, are refused on construction."""

from __future__ import annotations

import math

import pytest

from r2rec_jax.config import (
    BackboneConfig,
    DataConfig,
    EvaluateConfig,
    GrpoConfig,
    PromptConfig,
    SftConfig,
    TinyConfig,
    TrainConfig,
    dotted,
)


def test_thoughts_are_shown_with_chains_or_not_at_all() -> None:
    with pytest.raises(ValueError, match=r"^prompts\.thoughts must be completion or none when prompts\.chains is false "
                                         r".*; got 'prompt'$"):
        TrainConfig(prompts=PromptConfig(chains=False, thoughts="prompt"))
    for thoughts in ("completion", "none"):
        TrainConfig(prompts=PromptConfig(chains=False, thoughts=thoughts))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_no_generator_takes_is_refused_at_once(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"^train_seed must be in 0\.\.2\*\*32 - 1; got {seed}$"):
        TrainConfig(train_seed=seed)
    with pytest.raises(ValueError, match=rf"^data\.split_seed must be in 0\.\.2\*\*32 - 1; got {seed}$"):
        DataConfig(split_seed=seed)
    assert TrainConfig(train_seed=seed % 2**32, data=DataConfig(split_seed=seed % 2**32)).train_seed >= 0


def test_validation_queries_must_be_drawn_to_be_evaluated() -> None:
    none = DataConfig(validation_users=0)
    with pytest.raises(ValueError, match=r"^data\.validation_users must be >= 1 when evaluate\.split is 'validation'; "
                                         r"got 0$"):
        TrainConfig(data=none, evaluate=EvaluateConfig(split="validation"))
    TrainConfig(data=none)


@pytest.mark.parametrize(("split", "count"), [("test", "eval_users"), ("validation", "validation_users"),
                                              ("sft", "sft_queries"), ("rl", "rl_queries")])
def test_no_more_are_evaluated_than_there_are(split, count: str) -> None:
    data = DataConfig(eval_users=40, validation_users=30, sft_queries=20, rl_queries=10)
    there = getattr(data, count)
    with pytest.raises(ValueError, match=rf"^evaluate\.users must be <= data\.{count}, {there}; got {there + 1}$"):
        TrainConfig(data=data, evaluate=EvaluateConfig(users=there + 1)).check_users(split)
    for users in (there, None):
        TrainConfig(data=data, evaluate=EvaluateConfig(users=users)).check_users(split)


@pytest.mark.parametrize("systems", [[], ["sft", "sft"]])
def test_systems_are_distinct_and_there(systems) -> None:
    with pytest.raises(ValueError, match=r"^evaluate\.systems must be distinct and at least one; got \["):
        EvaluateConfig(systems=systems)


def test_completions_leave_room_for_a_prompt() -> None:
    tiny = BackboneConfig("tiny", tiny=TinyConfig(max_positions=1200))
    for changes in ({"grpo": GrpoConfig(max_new_tokens=1200)}, {"evaluate": EvaluateConfig(max_new_tokens=1200)}):
        (stage,) = changes
        reason = rf"^{stage}\.max_new_tokens must be < 1200, the backbone's positions .*; got 1200$"
        with pytest.raises(ValueError, match=reason):
            TrainConfig(backbone=tiny, **changes).check_positions()
        with pytest.raises(ValueError, match=reason):
            TrainConfig(**changes).check_positions(1200)
        TrainConfig(**changes).check_positions(1201)
        TrainConfig(**changes).check_positions()  # which are not known yet
    TrainConfig(backbone=tiny, evaluate=EvaluateConfig(max_new_tokens=1200, method="likelihood")).check_positions()


@pytest.mark.parametrize("changes", [{"sft": SftConfig(max_grad_norm=math.inf)}, {"grpo": GrpoConfig(lr=math.inf)}])
def test_settings_are_finite(changes) -> None:
    (section,) = changes
    with pytest.raises(ValueError, match=rf"^{section}\.(max_grad_norm|lr) must be a finite number .*; got inf$"):
        TrainConfig(**changes)


def test_dotted_names_reach_every_leaf() -> None:
    assert dotted({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}
