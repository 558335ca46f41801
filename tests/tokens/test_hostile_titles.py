"""Ten thousand hostile titles through whole prompts, on every tokenizer at hand."""

from __future__ import annotations

import re

import pytest

from r2rec_jax.config import AnswerConfig, PromptConfig
from r2rec_jax.data.interactions import Item, User
from r2rec_jax.prompts.answer import parse_completion, render_answer, render_completion
from r2rec_jax.prompts.ranking import render_ranking
from r2rec_jax.prompts.templates import RATING_WORDS
from r2rec_jax.prompts.thought import render_thought
from r2rec_jax.prompts.verbalize import title_text
from r2rec_jax.prompts.views import ChainView, QueryView
from r2rec_jax.tokens.tokenizer import Tokenizer
from tests.tokens.hostile import hostile_titles

TITLES = 10_000
PER_PROMPT = 34
"""Twenty candidates, four likes and five chains of two items."""

CANDIDATE_LINE = re.compile(r"^([0-9]+)\. ")


def _views(titles: list[str]) -> list[QueryView]:
    views = []
    for start in range(0, len(titles) - PER_PROMPT + 1, PER_PROMPT):
        mine = titles[start:start + PER_PROMPT]
        items = [Item(title, title, 1990 if k % 3 else None, (mine[k - 1],) if k % 5 == 0 else ())
                 for k, title in enumerate(mine)]
        users = [User(mine[0], ((mine[1], mine[2]),)), User(mine[3], (("age", mine[4]),))]
        chains = tuple(ChainView(users[0], items[24 + 2 * k], users[1], items[25 + 2 * k], 5, 4, 2, 3)
                       for k in range(5))
        views.append(QueryView("movies", users[0], tuple((item, 4.0) for item in items[20:24]), chains,
                               tuple(items[:20])))
    return views


def _candidate_lines(text: str) -> list[str]:
    """What a reader takes for candidates: every line of the whole prompt that begins with a number and a full stop."""
    return [line for line in re.split(r"[\r\n\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", text) if CANDIDATE_LINE.match(line)]


@pytest.fixture(scope="module")
def titles(tokenizer: Tokenizer) -> list[str]:
    own = [tokenizer.token(index) for index in sorted(tokenizer.special_ids())]
    made = hostile_titles(TITLES + PER_PROMPT, seed=0, specials=own)
    assert len(set(made)) == len(made) and sum(len(title) >= 9_000 for title in made) >= 10
    return made


def test_no_title_becomes_a_token_or_a_candidate(tokenizer: Tokenizer, titles: list[str]) -> None:
    calm = [index for index in tokenizer.chat("hello").ids if index in tokenizer.special_ids()]
    config = PromptConfig()
    seen = 0
    for view in _views(titles):
        text = render_ranking(view, config).text
        assert tokenizer.special_ids().isdisjoint(tokenizer.encode(text))
        assert [index for index in tokenizer.chat(text).ids if index in tokenizer.special_ids()] == calm
        lines = _candidate_lines(text)
        assert [int(line.split(".", 1)[0]) for line in lines] == list(range(1, 21))
        assert text.count("\nCandidates:\n") == 1
        seen += PER_PROMPT
    assert seen >= TITLES


def test_raw_titles_are_no_special_tokens_either(tokenizer: Tokenizer, titles: list[str]) -> None:
    """The second lock alone: the encoder, without the escaping."""
    for title in titles:
        assert tokenizer.special_ids().isdisjoint(tokenizer.encode(title)), title[:80]


@pytest.mark.parametrize("form", ["numbers", "titles"])
def test_no_title_steers_the_parser(form: str) -> None:
    """A model that quotes titles in its reasoning, and lists them in its answer, is read as it meant it."""
    for number, view in enumerate(_views(hostile_titles(TITLES + PER_PROMPT, seed=1))):
        config = PromptConfig(answer=AnswerConfig(form, 20))  # type: ignore[arg-type]
        labels = render_ranking(view, config).candidates
        order = tuple((7 * k + number) % 20 for k in range(20))
        statements = tuple(f"The target user may well like {title_text(item)} best." for item in view.candidates)
        answer = render_answer(order, form, labels, 20)  # type: ignore[arg-type]
        parsed = parse_completion(render_completion(statements, answer), form=form,  # type: ignore[arg-type]
                                  titles=labels, opened_think=False)
        assert parsed.ranking == order
        assert (parsed.duplicates, parsed.outside) == (0, 0)
        assert parsed.reasoning == "\n".join(statements)


def test_no_title_changes_the_rating_question() -> None:
    titles = hostile_titles(2_000, seed=2)
    for first, final in zip(titles[::2], titles[1::2], strict=True):
        item0, item1 = Item("1", first, None, (final,)), Item("2", final, 1990, (first,))
        chain = ChainView(User(first, ((final, first),)), item0, User(final, ()), item1, 5, 4, 2, 3)
        lines = render_thought(chain, "movies").split("\n")
        assert lines[0].startswith("Ratings: 5 ") and lines[0].endswith(f"{RATING_WORDS[0]}.")
        assert len(lines) in (5, 6) and lines[-1].endswith("<answer>...</answer>")
        assert sum("-?->" in line for line in lines) >= 1
        assert all("<answer>" not in line and "<think>" not in line for line in lines[:-1])
