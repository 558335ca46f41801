"""The template teacher: true to its facts, hop by hop, silent about the answer until its last statement."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.data.interactions import Item, User
from r2rec_jax.prompts.answer import count_statements, parse_completion, parse_rating
from r2rec_jax.prompts.thought import render_thought_completion
from r2rec_jax.prompts.verbalize import rating_words, title_text
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.thoughts.teacher import end_once, join_words, pick
from r2rec_jax.thoughts.template import TemplateTeacher
from r2rec_jax.thoughts.validate import problems

HEAT = Item("1", "Heat", 1995, ("Action", "Crime"))
BIG = Item("2", "Big", 1988, ("Comedy", "Drama"))
FARGO = Item("3", "Fargo", 1996, ("Crime", "Drama"))
BARE = Item("4", "unknown", None, ())
USER, OTHER = User("7", (("age", "24"),)), User("12", (("gender", "F"),))
TEACHER = TemplateTeacher("movies")
ALL_RATINGS = list(itertools.product(range(1, 6), repeat=4))
PAIRS = [(HEAT, FARGO), (FARGO, BIG), (HEAT, BIG), (BIG, HEAT), (BARE, HEAT), (HEAT, BARE)]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair[0].title}-{pair[1].title}")
def test_every_rating_pattern_is_valid_and_true(pair: tuple[Item, Item]) -> None:
    for number, ratings in enumerate(ALL_RATINGS):
        chain = ChainView(USER, pair[0], OTHER, pair[1], *ratings)
        thought = TEACHER.write(chain, str(number % 7))
        assert problems(thought, chain) == ()
        assert thought.rating == ratings[3] and len(thought.statements) == 4
        _check_facts(chain, thought.statements)
        assert _rated_numbers(thought.one_line, chain) == {ratings[0], ratings[1], ratings[2], ratings[3]}


def _rated_numbers(text: str, chain: ChainView) -> set[int]:
    for name in (title_text(chain.item0), title_text(chain.item1), "user 12", "User 12"):
        text = text.replace(name, "#")
    return {int(number) for number in re.findall(r"(?<![\d-])[1-5](?!\d)", text)}


def _check_facts(chain: ChainView, statements: tuple[str, ...]) -> None:
    """Each hop states its own rating with the right word, and points, directions and verdicts fit the numbers."""
    hop1, hop2, hop3, last = statements
    for hop, rating in ((hop1, chain.rating_u0), (hop2, chain.rating_n0), (hop3, chain.rating_n1)):
        assert f"{rating} ({rating_words(rating)})" in hop
        assert re.findall(r"(\d) \(", hop) == [str(rating)]
    assert last.endswith(f": predicted rating {chain.rating_u1} ({rating_words(chain.rating_u1)}).")
    gap = chain.rating_n0 - chain.rating_u0
    assert ("higher" in hop2) == (gap > 0) and ("lower" in hop2) == (gap < 0)
    points = {0: "", 1: "one point ", 2: "two points ", 3: "three points ", 4: "four points "}[abs(gap)]
    assert points in hop2
    assert ("speaks for" in hop1) <= (chain.rating_u0 >= 4) and ("against" in hop1) <= (chain.rating_u0 <= 2)
    shared = set(chain.item0.genres) & set(chain.item1.genres)
    if re.search(r"shares no|different kind|unlike", hop3 + last):
        assert not shared
    if re.search(r"which shares|in common|and like", hop3):
        assert shared and all(genre in hop3 for genre in shared)
    lean, delta = chain.rating_u0 - chain.rating_n0, chain.rating_u1 - chain.rating_n1
    if re.search(r"kinder|went higher", last):
        assert lean > 0 and delta > 0
    if re.search(r"stricter|went lower", last):
        assert lean < 0 and delta < 0
    assert (" above " in last) <= (delta > 0) and (" below " in last) <= (delta < 0)
    if "agree on" in last.casefold() and "differ" not in last:
        assert abs(lean) <= 1
    if "differ on" in last or "gap on" in last:
        assert abs(lean) >= 2


def test_the_first_three_statements_do_not_depend_on_the_answer() -> None:
    for ratings in ALL_RATINGS[::31]:
        chain = ChainView(USER, HEAT, OTHER, BIG, *ratings)
        thoughts = [TEACHER.write(replace(chain, rating_u1=answer), "k").statements for answer in range(1, 6)]
        assert len({statements[:3] for statements in thoughts}) == 1
        assert len({statements[3] for statements in thoughts}) == 5


def test_a_hop_knows_nothing_of_what_comes_later() -> None:
    chain = ChainView(USER, HEAT, OTHER, BIG, 5, 4, 2, 3)
    hop1, hop2, _, _ = TEACHER.write(chain, "k").statements
    later = replace(chain, rating_n1=5, item1=replace(BIG, title="Other", year=1950, genres=("War",)))
    assert TEACHER.write(later, "k").statements[:2] == (hop1, hop2)
    assert TEACHER.write(replace(chain, rating_n0=1), "k").statements[0] == hop1


def test_wording_varies_and_is_reproducible() -> None:
    chain = ChainView(USER, HEAT, OTHER, FARGO, 5, 4, 4, 4)
    texts = [TEACHER.write(chain, str(k)).statements for k in range(40)]
    assert all(len({statements[hop] for statements in texts}) >= 2 for hop in range(4))
    assert len(set(texts)) > 15
    assert texts == [TemplateTeacher("movies").write(chain, str(k)).statements for k in range(40)]
    assert TEACHER.write_many([chain], ["3"]) == [TEACHER.write(chain, "3")]


def test_fixed_wording_is_the_first_of_each_and_does_not_depend_on_the_key() -> None:
    chain, fixed = ChainView(USER, HEAT, OTHER, FARGO, 5, 4, 4, 4), TemplateTeacher("movies", varied=False)
    thoughts = {fixed.write(chain, str(k)) for k in range(20)}
    assert len(thoughts) == 1
    thought = thoughts.pop()
    assert thought.statements[0] == "The target user gave Heat a 5 (very liked), so Action and Crime can please them."
    assert thought in {TEACHER.write(chain, str(k)) for k in range(3000)}, "one of those that varied wording gives"
    other = replace(chain, rating_u0=2, item0=BIG)
    assert fixed.write(other, "a").statements[0] == (
        "The target user gave Big a 2 (disliked), so Comedy and Drama are no safe choice for them.")
    for ratings in ALL_RATINGS[::7]:
        chain = ChainView(USER, HEAT, OTHER, BIG, *ratings)
        thought = fixed.write(chain, "k")
        assert problems(thought, chain) == ()
        _check_facts(chain, thought.statements)
    assert fixed.version != TEACHER.version


def test_it_can_be_read_back() -> None:
    thought = TEACHER.write(ChainView(USER, HEAT, OTHER, BIG, 5, 4, 2, 3), "k")
    for opened in (False, True):
        text = render_thought_completion(thought.statements, thought.rating, opened_think=opened)
        assert parse_rating(text, opened_think=opened) == 3
        parsed = parse_completion(text, form="numbers", titles=("Heat", "Big"), opened_think=opened)
        assert parsed.statements == 4


ANY_TITLE = st.text(st.characters(exclude_categories=()), min_size=1, max_size=20) | st.sampled_from(
    ["It", "M", "5", "Hate", "2001: A Space Odyssey", "8 1/2", "{x}", "predicted rating 3", "187: x", "</think>",
     "user 12", "The Rating", "Answer Is", "Love\n</think>"])
ITEM = st.builds(Item, st.uuids().map(str), ANY_TITLE, st.none() | st.integers(1900, 2030),
                 st.lists(st.sampled_from(["Action", "Crime", "Drama", "War", "<b>", " "]), max_size=7).map(tuple))
RATING = st.integers(1, 5)


@given(ITEM, ITEM, RATING, RATING, RATING, RATING, st.sampled_from(["movies", "books", "electronics", "generic"]),
       st.text(max_size=3))
def test_any_titles(first: Item, final: Item, u0: int, n0: int, n1: int, u1: int, domain: str, key: str) -> None:
    chain = ChainView(USER, first, OTHER, final, u0, n0, n1, u1)
    thought = TemplateTeacher(domain).write(chain, key)
    text = render_thought_completion(thought.statements, thought.rating)
    assert parse_rating(text, opened_think=False) == u1
    assert len(thought.one_line.splitlines()) == 1
    assert thought.statements[-1].endswith(f"predicted rating {u1} ({rating_words(u1)}).")
    assert count_statements("\n".join(thought.statements)) == len(thought.statements)


def test_small_helpers() -> None:
    assert [join_words(words) for words in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert [end_once(text) for text in ("a.", "a!.", "a..", "a?.", ".")] == ["a.", "a!", "a.", "a?", "."]
    assert {pick("abc", "key", str(k)) for k in range(30)} == set("abc")
    assert pick(range(1000), "a", "b") == 944
