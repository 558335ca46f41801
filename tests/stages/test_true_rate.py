"""The share of true statements, over real prompts and answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from r2rec_jax.config import AnswerConfig, DataConfig, PromptConfig, TrainConfig
from r2rec_jax.stages.evaluation import true_rate
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.stages.rendering import make_view, render_queries
from r2rec_jax.thoughts.target import write_ranking_target
from r2rec_jax.thoughts.template import TemplateTeacher
from r2rec_jax.thoughts.truth import true_statements
from r2rec_jax.tokens.bpe import train_tokenizer


def test_targets_are_true_and_swapped_ones_hardly(ml100k_dir: Path, tmp_path: Path) -> None:
    data = DataConfig(path=str(ml100k_dir), eval_users=60, validation_users=10, sft_queries=30, rl_queries=10)
    prepared = prepare(TrainConfig(data=data), tmp_path / "prepare")
    config = PromptConfig(detail="brief", facts=False, liked=10, answer=AnswerConfig(form="titles", top=3))
    queries = prepared.queries["sft"]
    tokenizer = train_tokenizer(["Rank 20 candidate movies for the target user."], 400, tmp_path / "tokenizer")
    rendered = render_queries(prepared, queries, replace(config, max_tokens=10**5), tokenizer)
    known = [true_statements(r.view, config, len(r.chains)) for r in rendered]
    teacher = TemplateTeacher("movies")
    answers: list[Any] = []
    for query in queries:
        view = make_view(prepared, query, config)
        target = write_ranking_target(view, teacher.write_many(view.chains, ["k"] * len(view.chains)),
                                      query.candidates.index(query.target), [0.0] * 20, config, query.query_id)
        answers.append(SimpleNamespace(output=target.completion(view, config, opened_think=False)))
    assert true_rate(rendered, known, answers) == 1
    swapped = true_rate(rendered, known, [*answers[1:], answers[0]])
    assert swapped is not None and 0 < swapped < 0.3
    assert true_rate(rendered, known, [without_thought(answer) for answer in answers]) is None
    with pytest.raises(ValueError, match="zip"):
        true_rate(rendered, known, answers[1:])


def without_thought(answer: Any) -> Any:
    return SimpleNamespace(output=answer.output.split("</think>")[1])
