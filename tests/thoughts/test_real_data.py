"""Prompts, thoughts and targets over real MovieLens-100K queries: valid, readable back, and true of the data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from r2rec_jax.config import DataConfig, PromptConfig, TrainConfig
from r2rec_jax.prompts.answer import parse_completion
from r2rec_jax.prompts.ranking import render_ranking
from r2rec_jax.prompts.thought import render_thought, teacher_prompt
from r2rec_jax.prompts.verbalize import genre_texts, item_labels, item_text, title_text
from r2rec_jax.prompts.views import ChainView, QueryView
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.rendering import make_view
from r2rec_jax.thoughts.target import write_ranking_target
from r2rec_jax.thoughts.template import TemplateTeacher
from r2rec_jax.thoughts.validate import problems


@pytest.fixture(scope="module")
def prepared(ml100k_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    data = DataConfig(path=str(ml100k_dir), eval_users=60, validation_users=10, sft_queries=100, rl_queries=10)
    return prepare(TrainConfig(data=data), tmp_path_factory.mktemp("text") / "prepare")


def test_real_queries(prepared: Prepared) -> None:
    teacher = TemplateTeacher("movies")
    for query in prepared.queries["sft"]:
        view = make_view(prepared, query, PromptConfig())
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


def question(chain: ChainView, domain: str) -> str:
    return render_thought(chain, domain)


def without(titles: Sequence[str], text: str) -> str:
    for title in titles:
        text = text.replace(title, "#")
    return text


@pytest.mark.parametrize("detail", ["hops", "brief"])
def test_without_facts_a_target_says_nothing_that_its_prompt_does_not_show(prepared: Prepared, detail: str) -> None:
    config = PromptConfig(facts=False, detail=detail)  # type: ignore[arg-type]
    teacher, said = TemplateTeacher("movies"), 0
    genres = {genre for item in prepared.dataset.items for genre in item.genres} - {"unknown"}
    named = re.compile("|".join(rf"\b{re.escape(genre)}\b" for genre in genres))
    for query in prepared.queries["sft"]:
        view = make_view(prepared, query, config)
        thoughts = teacher.write_many(view.chains, ["0"] * len(view.chains))
        scores = [float(prepared.item_scores[i]) for i in query.candidates]
        target = write_ranking_target(view, thoughts, query.candidates.index(query.target), scores, config,
                                      query.query_id)
        titles = sorted({title_text(prepared.dataset.items[i]) for i in range(len(prepared.dataset.items))}, key=len)
        prompt = render_ranking(view, config).text
        shown = [title for title in titles if title in prompt][::-1]
        for asked in (prompt, *(ask(chain, "movies") for chain in view.chains for ask in (question, teacher_prompt))):
            assert not named.search(without(shown, asked)), asked
        for statement in target.statements:
            bare = without(shown, statement)
            assert not named.search(bare), statement
            years = set(re.findall(r"\b(?:19|20)\d\d\b", bare))
            assert all(year in prompt for year in years if f"{year}s" not in bare), statement
            said += len(years)
    assert said > 100, "years are still spoken of"


def test_with_labels_as_names_a_thought_calls_an_item_what_its_prompt_does(prepared: Prepared) -> None:
    config = PromptConfig(facts=False, names="label", detail="brief", liked=10)
    teacher, told = TemplateTeacher("movies"), 0
    for query in prepared.queries["sft"]:
        view = make_view(prepared, query, config)
        thoughts = teacher.write_many(view.chains, ["0"] * len(view.chains))
        statements = write_ranking_target(view, thoughts, query.candidates.index(query.target),
                                          [0.0] * len(query.candidates), config, query.query_id).statements
        plain = {title_text(item) for item in prepared.dataset.items} - {""}
        labels = {item_text(prepared.dataset.items[i], facts=False)
                  for i in (*query.candidates, *(i for i, _ in prepared.liked(query, 10)))}
        labels |= {title_text(item) for chain in view.chains for item in (chain.item0, chain.item1)}
        for statement in statements:
            bare = without(sorted(labels, key=len, reverse=True), statement)
            told += bare != statement
            assert not re.search(r"\b(?:19|20)\d\d", bare), statement
            assert not any(f" {title} " in bare for title in plain if len(title) > 6), statement
    assert told > 100
