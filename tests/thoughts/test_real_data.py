"""Prompts, thoughts and targets over real MovieLens-100K queries: valid, readable back, and true of the data."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from r2rec_jax.config import DataConfig, PromptConfig, TrainConfig
from r2rec_jax.data.queries import Query
from r2rec_jax.prompts.answer import parse_completion
from r2rec_jax.prompts.ranking import render_ranking
from r2rec_jax.prompts.verbalize import genre_texts, item_labels, title_text
from r2rec_jax.prompts.views import QueryView, resolve_chain
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.thoughts.target import write_ranking_target
from r2rec_jax.thoughts.template import TemplateTeacher
from r2rec_jax.thoughts.validate import problems


@pytest.fixture(scope="module")
def prepared(ml100k_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    data = DataConfig(path=str(ml100k_dir), eval_users=60, validation_users=10, sft_queries=100, rl_queries=10)
    return prepare(TrainConfig(data=data), tmp_path_factory.mktemp("text") / "prepare")


def view_of(prepared: Prepared, query: Query) -> QueryView:
    data = prepared.dataset
    return QueryView(
        data.domain, data.users[query.user_idx], tuple((data.items[i], r) for i, r in prepared.liked(query, 5)),
        tuple(dict.fromkeys(resolve_chain(data, chain) for chain in prepared.chains_of(query))),
        tuple(data.items[i] for i in query.candidates))


def test_real_queries(prepared: Prepared) -> None:
    teacher = TemplateTeacher("movies")
    for query in prepared.queries["sft"]:
        view = view_of(prepared, query)
        thoughts = teacher.write_many(view.chains, ["0"] * len(view.chains))
        for chain, thought in zip(view.chains, thoughts, strict=True):
            assert thought is not None and problems(thought, chain) == ()
        position = query.candidates.index(query.target)
        name = item_labels(view.candidates)[position]
        for detail in ("hops", "brief"):
            config = PromptConfig(detail=detail)  # type: ignore[arg-type]
            prompt = render_ranking(view, config)
            scores = [float(prepared.item_scores[i]) for i in query.candidates]
            target = write_ranking_target(view, thoughts, position, scores, config, query.query_id)
            parsed = parse_completion(target.completion(view, config, opened_think=True), form="numbers",
                                      titles=prompt.candidates, opened_think=True)
            assert parsed.ranking == target.order and parsed.statements == len(target.statements)
            assert target.order[0] == position and len(target.order) == 20
            assert [name in statement for statement in target.statements].index(True) == len(target.statements) - 1
            check_reason(view, target.statements[-1], position)
            assert prompt.text.count(title_text(view.candidates[position])) >= 1
            assert len(prompt.text) < 4_000


def check_reason(view: QueryView, conclusion: str, position: int) -> None:
    """Genres that the conclusion claims are the item's own, and the item it is compared with is on display."""
    reason = conclusion.partition(f"(candidate {position + 1})")[2]
    genres = set(genre_texts(view.candidates[position]))
    claimed = re.search(r"(?:as it is|has the|sharing) (.+?)(?: they like| with |\.$)", reason)
    if claimed:
        assert set(re.split(", | and ", claimed[1])) <= genres
    compared = re.search(r"sharing .+? with (.+?)\.?$", reason)
    if compared:
        assert compared[1] in render_ranking(view, PromptConfig()).text
