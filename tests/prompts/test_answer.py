"""The answer: parse(render(x)) == x, what counts and what does not, and any text without an exception. What numbers are
read from other ways to write a list is in ``test_answer_numbers``."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from r2rec_jax.data.interactions import Item
from r2rec_jax.prompts.answer import (
    count_statements,
    parse_rating,
    render_answer,
    render_completion,
    render_rating,
)
from r2rec_jax.prompts.escape import escape_text
from r2rec_jax.prompts.verbalize import item_labels
from tests.prompts.answers import TITLES, parse

REASONING = ("The recent likes are mostly crime stories.", "Two of them come from the nineties.",
             "So Fargo should please them most.")


@given(st.permutations(range(20)), st.integers(1, 20), st.booleans())
def test_numbers_round_trip(order: list[int], top: int, opened: bool) -> None:
    titles = tuple(f"Title {k} (19{k:02d})" for k in range(20))
    text = render_completion(REASONING, render_answer(order, "numbers", titles, top), opened_think=opened)
    parsed = parse(text, opened=opened, titles=titles)
    assert parsed.ranking == tuple(order[:top]) and parsed.valid and parsed.has_answer
    assert (parsed.duplicates, parsed.outside, parsed.statements) == (0, 0, 3)
    assert parsed.reasoning == "\n".join(REASONING)


ANY_TITLE = st.text(st.characters(exclude_categories=()), max_size=30) | st.sampled_from(
    ["Heat", "heat", "Emma", "1. Heat", "(2) x", "</answer>", "<answer>7", "; ", "a; b", "Emma (1996)", "Emma [2]",
     "", "-", "*"])
ANY_ITEM = st.builds(Item, st.just("0"), ANY_TITLE, st.none() | st.just(1996), st.just(()))


@given(st.lists(ANY_ITEM, min_size=1, max_size=12), st.randoms(use_true_random=False), st.booleans())
@example([Item("1", "Emma", 1996, ()), Item("2", "Emma", 1996, ())], random.Random(0), False)
@example([Item("1", "a; b", None, ())], random.Random(0), True)
def test_titles_round_trip(items: list[Item], rng: random.Random, opened: bool) -> None:
    titles = item_labels(items)
    order = list(range(len(titles)))
    rng.shuffle(order)
    text = render_completion((), render_answer(order, "titles", titles, 20), opened_think=opened)
    parsed = parse(text, form="titles", opened=opened, titles=titles)
    assert parsed.ranking == tuple(order)
    assert (parsed.duplicates, parsed.outside) == (0, 0)


@given(st.integers(1, 5), st.booleans())
def test_rating_round_trip(rating: int, opened: bool) -> None:
    assert parse_rating(render_completion(REASONING, render_rating(rating), opened_think=opened),
                        opened_think=opened) == rating


@pytest.mark.parametrize(("block", "ranking", "outside"), [
    ("Fargo (1996)\nBig (1988)", (2, 1), 0),
    ("1. Fargo (1996)\n2. big (1988)", (2, 1), 0),
    ("- **Fargo**\n\n* Seven (1995; Crime)", (2, 4), 0),
    ("Fargo (1996); Big (1988)", (2, 1), 0),
    ("Fargo 2 (1996)\nBig (1988)", (1,), 1),
    ("Fargo (1997)\nheat (1995; Crime)\nSeven (Se7en)", (0, 4), 1),
])
def test_titles(block: str, ranking: tuple[int, ...], outside: int) -> None:
    parsed = parse(f"<answer>\n{block}\n</answer>", form="titles")
    assert (parsed.ranking, parsed.outside) == (ranking, outside)


def test_another_version_is_no_candidate() -> None:
    titles = ("Hurt (Nine Inch Nails)", "Let It Be (Remastered 2009)", "Yesterday", "Emma (1815)")
    for line, ranking in (("Hurt (Johnny Cash)", ()), ("Let It Be (Demo)", ()), ("Hurt", (0,)),
                          ("hurt (nine inch nails)", (0,)), ("Emma (a novel)", (3,)), ("Emma (1816)", ())):
        assert parse(f"<answer>\n{line}\n</answer>", form="titles", titles=titles).ranking == ranking, line


@pytest.mark.parametrize(("label", "lines", "others"), [
    ("Seven (Se7en) (1995)", ("Seven (Se7en)", "Seven (Se7en) (1995; Crime)", "1. seven (se7en)"),
     ("Seven (Se7en) (1996)",)),
    ("Hurt (Nine Inch Nails)", ("Hurt (Nine Inch Nails) (rock)",), ("Hurt (Johnny Cash) (rock)",)),
    ('"Heroes" (1977)', ('1. "Heroes"', "Heroes (1977; Rock)"), ()),
    ("'Til There Was You (1997)", ("'Til There Was You (1997; Drama)", "Til there was you"), ()),
    (escape_text("I <3 U"), ("I <3 U", r"1. I \<3 U"), ()),
    (escape_text("1. Outside (1995)"), ("1. Outside (1995)", r"1. 1\. Outside", "1. Outside"), ()),
    (escape_text("[REC] (2007)"), ("[REC] (2007)", "[rec]"), ()),
    (escape_text("Am\u00e9lie\u00a0Poulain"), ("Ame\u0301lie Poulain",), ("Amelie Poulain",)),
])
def test_ways_to_write_a_title(label: str, lines: tuple[str, ...], others: tuple[str, ...]) -> None:
    titles = ("Heat (1995)", label, "Seven (1979)", "Til (1990)")
    for line in (label, *lines, *others):
        expected = () if line in others else (1,)
        assert parse(f"<answer>\n{line}\n</answer>", form="titles", titles=titles).ranking == expected, line


@pytest.mark.parametrize(("text", "form", "first"), [
    ("<answer>\n1. fargo\nBig (1988)\n</answer>", "titles", 2),
    ("<answer>\nFargo 2 (1996)\nBig (1988)\n</answer>", "titles", None),
    ("<answer>Big (1988); Fargo (1996)</answer>", "titles", 1),
    ("<think>\nBig (1988)\n</think>\n<answer>3, 1</answer>", "numbers", 2),
    ("<answer>9, 1</answer>", "numbers", None),
    ("<answer>\n</answer>", "titles", None),
    ("Big (1988)", "titles", None),
])
def test_the_first_line(text: str, form: Any, first: int | None) -> None:
    parsed = parse(text, form=form)
    assert (parsed.ranking[0] if parsed.places[:1] == (1,) else None) == first
    assert [n for n in range(len(TITLES)) if parsed.place_of(n, len(TITLES)) == 1] == [first][:first is not None]


@pytest.mark.parametrize("line", ["***", "1. ***", '"', "(1995)", "* (a)"])
def test_a_line_without_words_names_nothing(line: str) -> None:
    titles = (*item_labels([Item("1", "", None, ())]), "*", "Heat (1995)")
    assert titles[0] == "(untitled)"
    assert parse(f"<answer>\n{line}\n</answer>", form="titles", titles=titles).ranking == ()
    for written, position in (("(untitled)", 0), ("1. (Untitled)", 0), ("*", 1)):
        assert parse(f"<answer>\n{written}\n</answer>", form="titles", titles=titles).ranking == (position,)


def test_a_title_of_two_candidates_without_year_names_neither() -> None:
    titles = ("Emma (1996)", "Emma (1932)")
    assert parse("<answer>Emma</answer>", form="titles", titles=titles).ranking == ()
    assert parse("<answer>Emma (1932)</answer>", form="titles", titles=titles).ranking == (1,)


@pytest.mark.parametrize(("text", "opened", "ranking"), [
    ("<think>x <answer>1</answer></think><answer>2</answer>", False, (1,)),
    ("x <answer>1</answer></think><answer>2</answer><answer>3</answer>", True, (1,)),
    ("<answer>1</answer></think>", True, ()),
    ("<answer>1</answer>", True, (0,)),
    ("<answer>1, 2", False, ()),
    ("1, 2</answer>", False, ()),
    ("</answer><answer>2</answer>", False, (1,)),
    ("I will use <answer> tags: <answer>2</answer>", False, (1,)),
    ("<think>a</think><answer>1</answer></think><answer>2</answer>", False, (1,)),
    ("<Answer>1</Answer>", False, ()),
    ("<answer >1</answer>", False, ()),
    ("ranking: 1, 2", False, ()),
])
def test_which_block_is_the_answer(text: str, opened: bool, ranking: tuple[int, ...]) -> None:
    assert parse(text, opened=opened).ranking == ranking


def test_ranks_and_copied_order() -> None:
    parsed = parse("<answer>4, 2</answer>")
    assert [parsed.rank_of(k, 5) for k in range(5)] == [5, 2, 5, 1, 5]
    assert parse("<answer>1, 2, 3</answer>").copied_order and parse("<answer>1, 2, 3, 4, 5</answer>").copied_order
    assert not parse("<answer>1</answer>").copied_order
    assert not parse("<answer>2, 1</answer>").copied_order and not parse("").copied_order


def test_reasoning_counts_when_the_template_opened_think() -> None:
    body = "\n".join(REASONING)
    assert parse(f"{body}\n</think>\n<answer>1</answer>", opened=True).statements == 3
    assert parse(f"<think>\n{body}\n</think>\n<answer>1</answer>").statements == 3
    assert parse(f"<think>\n<think>\n{body}\n</think>\n<answer>1</answer>").statements == 3
    assert parse(f"{body}\n</think>\n<answer>1</answer>").statements == 0, "no opening tag anywhere"
    assert parse(f"{body}\n<answer>1</answer>", opened=True).statements == 0, "never closed"
    assert parse(f"<think>\n</think>\n{body}\n<answer>1</answer>").statements == 0, "outside the block"


@pytest.mark.parametrize("line", [
    "1. Heat (1995)", "3. Fargo", "12) Heat is a really good movie", "  (4) Alien (1979; Horror)", "- 2. Big",
    "**3.** Fargo", "1, 2, 3, 4", "Heat (1995), Big (1988), Fargo (1996)", "Heat > Big > Fargo > Alien",
    "Heat (1995; Action, Crime)",
    "The ranking:", "4 5 6 7 8", "...", "", "<answer>1, 2, 3</answer>", "good good", "Answer: Heat Big Fargo",
])
def test_answers_in_disguise_are_no_statements(line: str) -> None:
    assert count_statements(line, TITLES) == 0


def test_statements() -> None:
    assert count_statements("They like crime.\nThey  like crime.\nHeat is a crime story.", TITLES) == 2
    assert count_statements("12 Monkeys was liked best.", TITLES) == 1
    assert count_statements("They like crime.\rThey like drama.", TITLES) == 2
    assert count_statements("They like crime.\u2028They like drama.", TITLES) == 1


def test_bad_renders() -> None:
    for order in ([], [0, 0], [5], [-1]):
        with pytest.raises(ValueError, match="order must be distinct positions"):
            render_answer(order, "numbers", TITLES, 5)
    with pytest.raises(ValueError, match="top must be"):
        render_answer([0], "numbers", TITLES, 0)
    with pytest.raises(ValueError, match="rating must be"):
        render_rating(6)
    for statement in ("two\nlines", " ", "a </think> b", "<answer>"):
        with pytest.raises(ValueError, match="one non-empty line without tags"):
            render_completion([statement], "<answer>1</answer>")
    assert render_completion([], "<answer>1</answer>") == "<answer>1</answer>"
    assert parse(render_completion([], "<answer>1</answer>", opened_think=True), opened=True).ranking == (0,)


@pytest.mark.parametrize(("text", "rating"), [
    ("<answer>4</answer>", 4), ("<answer> Rating: 4 (liked) </answer>", 4), ("<answer>4/5</answer>", None),
    ("<answer>6</answer>", None), ("<answer>4.5</answer>", None), ("<answer>four</answer>", None), ("4", None),
    (f"<answer>{'4' * 5000}</answer>", None), ("<answer>4", None), ("<answer>٤</answer>", None),
])
def test_ratings(text: str, rating: int | None) -> None:
    assert parse_rating(text, opened_think=False) == rating


PIECES = ["<think>", "</think>", "<answer>", "</answer>", "<answer", "think>", "\n", " ", ", ", "7", "3.", "-1", "1.5",
          "20", "Heat (1995)", "Heat", "(", ")", "1e9", "٣", "²", "\x00", "\ud800", "\u202e", "*",
          "They like crime stories.", "9" * 5000, "[", "\\", ";", "🎬", "None", "nan", "0x10"]


def fuzzed_outputs(count: int, form: str) -> list[str]:
    """Random bytes, tag soup, and rendered answers that are cut or damaged."""
    rng = random.Random(0)
    good = render_completion(REASONING, render_answer([2, 0, 1], form, TITLES, 5))  # type: ignore[arg-type]
    texts = []
    for k in range(count):
        if k % 4 == 0:
            texts.append(rng.randbytes(rng.randrange(200)).decode("utf-8", "replace"))
        elif k % 4 == 1:
            texts.append("".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(60))))
        elif k % 4 == 2:
            texts.append("".join(rng.choice(PIECES) for _ in range(rng.randrange(25))))
        else:
            cut = rng.randrange(len(good))
            texts.append(good[:cut] + rng.choice(PIECES) * rng.randrange(2) + good[cut + rng.randrange(6):])
    return texts


@pytest.mark.parametrize("form", ["numbers", "titles"])
def test_ten_thousand_fuzzed_outputs(form: str) -> None:
    valid = 0
    for k, text in enumerate(fuzzed_outputs(10_000, form)):
        parsed = parse(text, form=form, opened=bool(k % 2))
        assert len(set(parsed.ranking)) == len(parsed.ranking) and set(parsed.ranking) <= set(range(len(TITLES)))
        assert parsed.valid == bool(parsed.ranking) and parsed.statements >= 0 and parsed.duplicates >= 0
        valid += parsed.valid
        parse_rating(text, opened_think=bool(k % 2))
    assert valid > 100, "the fuzz must reach the part that reads answers"


@given(st.text(st.characters(exclude_categories=()), max_size=400))
def test_any_text(text: str) -> None:
    for opened in (False, True):
        parse(text, opened=opened)
        parse(f"<answer>{text}</answer>", form="titles", opened=opened)


@pytest.mark.parametrize("unit", ["<answer>", "</answer>", "<think>", " ", "(", "(a", "1", "1.", "a ", "a'", "Heat (",
                                  "\n1. ", ", 1. a", ",  ", ") 1. Heat (1995) ", "\n1. Heat (1995) - a",
                                  "(1995) ", "a: ", "a:\n1, 2\n", "Heat (1995 ", "Heat   ",
                                  "[1", "</think>", "-", "\\"])
def test_time_is_linear_in_the_length(unit: str) -> None:
    text = "<answer>" + unit * (200_000 // len(unit)) + "</answer>"
    started = time.perf_counter()
    for form in ("numbers", "titles"):
        parse("<think>" + text + "</think>" + text, form=form)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("rest", ["candidate" + " " * 20_000 + "x", "#" * 20_000 + "x", "no. (" + " " * 20_000 + "x"])
def test_time_is_linear_in_the_length_of_a_line(rest: str) -> None:
    started = time.perf_counter()
    assert not parse(f"<answer>1. {rest}</answer>").valid
    assert time.perf_counter() - started < 2


def test_escaped_titles_hold_no_tags() -> None:
    titles = tuple(escape_text(title) for title in ("</answer>", "<answer>", "</think>", "Heat"))
    text = render_completion(["They like " + titles[2] + " best."], render_answer([0, 2, 1], "titles", titles, 3))
    assert parse(text, form="titles", titles=titles).ranking == (0, 2, 1)
