"""Ranking targets: true of the prompt, the answer named last, an order that carries no label."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.config import AnswerConfig, PromptConfig
from r2rec_jax.data.interactions import Item, User
from r2rec_jax.prompts.answer import parse_completion
from r2rec_jax.prompts.ranking import render_ranking
from r2rec_jax.prompts.views import ChainView, QueryView
from r2rec_jax.thoughts.target import RankingTarget, write_ranking_target
from r2rec_jax.thoughts.teacher import Thought
from r2rec_jax.thoughts.template import TemplateTeacher

GENRES = ("Action", "Comedy", "Crime", "Drama", "War")
ITEMS = tuple(Item(str(k), f"Title {'abcdefghijklmnopqrstuvwxyz'[k]}", 1930 + 3 * k, GENRES[k % 3:k % 3 + 1 + k % 2])
              for k in range(26))
USER = User("7", ())
CHAINS = tuple(ChainView(USER, ITEMS[k], User(f"12{k}", (("age", "24"),)), ITEMS[k + 1], 5, 4, 2 + k, 4)
               for k in range(3))
VIEW = QueryView("movies", USER, tuple((ITEMS[k], 4.0 + k % 2) for k in (3, 4, 5, 6, 7)), CHAINS, ITEMS[10:20])
SCORES = [float(k) for k in range(10)]
CONFIG = PromptConfig()
TEACHER = TemplateTeacher("movies")


def target(view: QueryView = VIEW, position: int = 6, scores: list[float] = SCORES, config: PromptConfig = CONFIG,
           key: str = "k", kept: int | None = None) -> RankingTarget:
    thoughts = TEACHER.write_many(view.chains, ["k"] * len(view.chains))
    return write_ranking_target(view, thoughts, position, scores, config, key, kept)


@given(st.integers(0, 9), st.lists(st.integers(0, 3).map(float), min_size=10, max_size=10),
       st.sampled_from(["hops", "brief"]), st.sampled_from(["numbers", "titles"]), st.integers(1, 20), st.booleans(),
       st.integers(0, 3) | st.none(), st.text(max_size=4))
def test_the_completion_reads_back(position: int, scores: list[float], detail: str, form: str, top: int, opened: bool,
                                   kept: int | None, key: str) -> None:
    config = PromptConfig(detail=detail, answer=AnswerConfig(form=form, top=top))  # type: ignore[arg-type]
    written = target(position=position, scores=scores, config=config, key=key, kept=kept)
    labels = render_ranking(VIEW, config, kept).candidates
    text = written.completion(VIEW, config, opened_think=opened)
    parsed = parse_completion(text, form=form, titles=labels, opened_think=opened)  # type: ignore[arg-type]
    assert parsed.ranking == written.order and parsed.ranking[0] == position and len(parsed.ranking) == min(top, 10)
    assert parsed.statements == len(written.statements) and parsed.outside == parsed.duplicates == 0
    others = [scores[p] for p in written.order[1:]]
    assert others == sorted(others, reverse=True)
    name = VIEW.candidates[position].title
    assert [name in statement for statement in written.statements] == [False] * (len(written.statements) - 1) + [True]
    assert (f"(candidate {position + 1})" in written.statements[-1]) == (form == "numbers")


def test_the_order_of_the_others_carries_no_label() -> None:
    flat = [0.0] * 10
    orders = {p: target(position=p, scores=flat).order for p in range(10)}
    base = [item for item in orders[0] if item not in (0, 9)]
    assert base == [item for item in orders[9] if item not in (0, 9)], "ties fall the same way whatever the target"
    assert len({target(scores=flat, key=str(k)).order for k in range(5)}) == 5


def test_detail_and_switches() -> None:
    hops, brief = target(), target(config=replace(CONFIG, detail="brief"))
    thoughts = [thought for thought in TEACHER.write_many(CHAINS, ["k"] * 3) if thought]
    assert all(statement in hops.statements for thought in thoughts for statement in thought.statements)
    assert all(thought.one_line in brief.statements for thought in thoughts)
    assert len(brief.statements) == len(hops.statements) - 9
    last = target(kept=1)
    assert thoughts[2].statements[0] in last.statements and thoughts[0].statements[0] not in last.statements
    for config in (replace(CONFIG, chains=False), replace(CONFIG, thoughts="prompt")):
        assert not any("ser 12" in statement for statement in target(config=config).statements)
    direct = target(config=replace(CONFIG, thoughts="none"))
    assert direct.statements == ()
    assert direct.completion(VIEW, CONFIG, opened_think=False).startswith("<answer>7, ")


def test_fixed_wording_leaves_the_facts_and_the_order() -> None:
    fixed = replace(CONFIG, wording="fixed")
    keys = [str(k) for k in range(20)]
    assert len({target(key=key).statements for key in keys}) > 10
    assert len({target(key=key, config=fixed).statements for key in keys}) == 1
    flat = [0.0] * 10
    assert len({target(scores=flat, key=key, config=fixed).order for key in keys}) > 10, "ties still fall by the key"
    assert all(target(scores=flat, key=key, config=fixed).order == target(scores=flat, key=key).order for key in keys)
    opening = target(config=fixed).statements[0]
    assert opening.startswith("Of 5 recent likes, ") and opening in {target(key=key).statements[0] for key in keys}


def test_statements_are_true_of_the_likes() -> None:
    for key in map(str, range(20)):
        text = "\n".join(target(key=key).statements)
        for number, genre in re.findall(r"(\d+) are (\w+)", text):
            assert int(number) == sum(genre in item.genres for item, _ in VIEW.liked)
        span = re.search(r"from (\d{4}) to (\d{4})", text)
        assert span is None or span.groups() == ("1939", "1951")
        best = next(line for line in target(key=key).statements if re.search("best|highest", line))
        assert "5 (very liked)" in best and "Title d and Title f" not in best
        assert [item.title in best for item in (ITEMS[4], ITEMS[6])] == [False, False] or "Title d" in best


def test_an_item_of_the_answers_name_is_kept_out_of_the_reasoning() -> None:
    twin = replace(VIEW.candidates[6], item_id="twin")
    view = replace(VIEW, liked=((twin, 5.0), *VIEW.liked), chains=(replace(CHAINS[0], item1=twin), *CHAINS[1:]))
    for detail in ("hops", "brief"):
        written = target(view=view, config=replace(CONFIG, detail=detail))  # type: ignore[arg-type]
        assert [twin.title in statement for statement in written.statements].index(True) == len(written.statements) - 1


def test_missing_thoughts_and_bare_items() -> None:
    written = write_ranking_target(VIEW, [None] * 3, 0, SCORES, CONFIG, "k")
    assert written.statements and not any("ser 12" in statement for statement in written.statements)
    bare = [Item(str(k), f"x{k}", None, ()) for k in range(4)]
    poor = QueryView("generic", None, (), (), tuple(bare))
    assert write_ranking_target(poor, [], 2, [0.0] * 4, CONFIG, "k").statements[0].startswith(("Among", "Of all"))


def test_bad_input() -> None:
    thoughts: list[Thought | None] = [None] * 3
    with pytest.raises(ValueError, match=r"target_position must be in 0\.\.9; got 10"):
        write_ranking_target(VIEW, thoughts, 10, SCORES, CONFIG, "k")
    with pytest.raises(ValueError, match="a score for each of 10 candidates"):
        write_ranking_target(VIEW, thoughts, 1, SCORES[1:], CONFIG, "k")
    with pytest.raises(ValueError, match="a thought for each of 3 chains; got 10 and 2"):
        write_ranking_target(VIEW, thoughts[1:], 1, SCORES, CONFIG, "k")
