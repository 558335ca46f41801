"""The share of true statements, over real prompts, by way of the exam that knows what each prompt shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from r2rec_jax.config import (
    AnswerConfig,
    DataConfig,
    GraphConfig,
    PromptConfig,
    RewardConfig,
    ThoughtsConfig,
    TrainConfig,
)
from r2rec_jax.config.output import EvaluateConfig
from r2rec_jax.rewards.steps import Band
from r2rec_jax.stages.evaluation import make_exam
from r2rec_jax.stages.learning import make_reward
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.stages.rendering import make_view, render_queries
from r2rec_jax.thoughts.target import write_ranking_target
from r2rec_jax.thoughts.template import TemplateTeacher
from r2rec_jax.tokens.bpe import train_tokenizer

PROMPTS = PromptConfig(detail="brief", facts=False, liked=10, answer=AnswerConfig(form="titles", top=3),
                       max_tokens=10**5)
Chains = Literal["own", "swapped", "none"]


@pytest.fixture
def work(ml100k_dir: Path, tmp_path: Path) -> Any:
    """As much of a run as an exam asks for."""
    config = TrainConfig(data=DataConfig(path=str(ml100k_dir), eval_users=30, validation_users=10, sft_queries=30,
                                         rl_queries=10), graph=GraphConfig(chains=3), prompts=PROMPTS)
    return SimpleNamespace(
        config=config, prepared=prepare(config, tmp_path / "prepare"),
        tokenizer=train_tokenizer(["Rank 20 candidate movies for the target user."], 400, tmp_path / "tokenizer"))


def answers_of(work: Any, kept: int = 3) -> list[Any]:
    """What the template writes of the test queries, the last ``kept`` chains shown."""
    teacher, found = TemplateTeacher("movies"), []
    for query in work.prepared.queries["test"]:
        view = make_view(work.prepared, query, PROMPTS)
        target = write_ranking_target(view, teacher.write_many(view.chains, ["k"] * len(view.chains)),
                                      query.candidates.index(query.target), [0.0] * 20, PROMPTS, query.query_id, kept)
        found.append(SimpleNamespace(output=target.completion(view, PROMPTS, opened_think=False)))
    return found


def truth(work: Any, answers: list[Any], chains: Chains = "own") -> float | None:
    return make_exam(work, EvaluateConfig(chains=chains)).truth(answers)


def test_what_the_prompt_shows_is_true(work: Any) -> None:
    answers = answers_of(work)
    assert truth(work, answers) == 1
    foreign = truth(work, [*answers[1:], answers[0]])
    assert foreign is not None and 0 < foreign < 0.3
    assert truth(work, [SimpleNamespace(output=answer.output.split("</think>")[1]) for answer in answers]) is None
    with pytest.raises(ValueError, match="zip"):
        truth(work, answers[1:])


def test_a_chain_is_spoken_of_where_it_is_shown_only(work: Any) -> None:
    answers, none = answers_of(work), answers_of(work, kept=0)
    assert truth(work, none, "none") == 1
    for chains in ("none", "swapped"):
        share = truth(work, answers, chains)
        assert share is not None and 0.2 < share < 0.8, "likes are the same, chains are not"
    lengths = [len(query.prompt_ids) for query in make_exam(work, EvaluateConfig()).queries]
    bare = [len(query.prompt_ids) for query in make_exam(work, EvaluateConfig(chains="none")).queries]
    work.config = replace(work.config, prompts=replace(PROMPTS, max_tokens=max(bare) + (min(lengths) - max(bare)) // 2))
    shortened = make_exam(work, EvaluateConfig())
    assert shortened.prompts["dropped_chains"] > 30
    share = shortened.truth(answers)
    assert share is not None and share < 0.9, "nor where it did not fit"


def test_other_teachers_have_other_words(work: Any) -> None:
    answers = answers_of(work)
    work.config = replace(work.config, thoughts=ThoughtsConfig(teacher="local"))
    assert truth(work, answers) is None


def test_the_reward_sees_what_the_prompt_shows(work: Any) -> None:
    """Chains that did not fit are not shown, so what is said of them earns nothing."""
    queries, texts = work.prepared.queries["test"], [answer.output for answer in answers_of(work)]
    ids = [query.query_id for query in queries]

    def parts(max_tokens: int, weight: float) -> dict[str, np.ndarray]:
        work.config = replace(work.config, prompts=replace(PROMPTS, max_tokens=max_tokens),
                              rewards=RewardConfig(true_weight=weight))
        rendered = render_queries(work.prepared, queries, work.config.prompts, work.tokenizer)
        return make_reward(work, rendered, Band(2, 6))(texts, ids)

    bare = max(len(query.prompt_ids) for query in make_exam(work, EvaluateConfig(chains="none")).queries)
    whole, shortened, unweighted = parts(10**5, 0.5), parts(bare + 40, 0.5), parts(10**5, 0)
    assert (whole["true"] == 1).all() and (unweighted["true"] == 1).all() and 0.2 < shortened["true"].mean() < 0.8
    assert whole["total"] == pytest.approx(whole["step"] + 2 * whole["rank"] + 0.5)
    assert unweighted["total"] == pytest.approx(whole["total"] - 0.5)
    work.config = replace(work.config, thoughts=ThoughtsConfig(teacher="local"))
    rendered = render_queries(work.prepared, queries, PROMPTS, work.tokenizer)
    assert np.isnan(make_reward(work, rendered, Band(2, 6))(texts, ids)["true"]).all(), "whose words are unknown"


def test_words_that_are_not_the_template_s_have_no_such_reward() -> None:
    with pytest.raises(ValueError, match=r"rewards\.true_weight must be 0 unless thoughts\.teacher is 'template'"):
        TrainConfig(thoughts=ThoughtsConfig(teacher="local"), rewards=RewardConfig(true_weight=1.0))
    for weight in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"rewards\.true_weight must be >= 0"):
            RewardConfig(true_weight=weight)
