"""Answers of numbers: lists, headings, remarks and titles with digits, as models write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.prompts.naming import bare_title
from tests.prompts.answers import parse


@pytest.mark.parametrize(("block", "ranking", "duplicates", "outside"), [
    ("3, 1, 2", (2, 0, 1), 0, 0),
    ("3 > 1 > 2", (2, 0, 1), 0, 0),
    ("[3], #1; 2.", (2, 0, 1), 0, 0),
    ("3-1-2", (2, 0, 1), 0, 0),
    ("3, 3, 1, 3", (2, 0), 2, 0),
    ("0, 6, 3, 99", (2,), 0, 3),
    ("-3, 1.5, 2", (1,), 0, 2),
    ("3.0, 1.000, 2.01, -1.0", (2, 0), 0, 2),
    ("003, 1", (2, 0), 0, 0),
    (f"{'9' * 5000}, 2", (1,), 0, 1),
    (f"{'0' * 5000}2", (1,), 0, 0),
    ("٣, ３, ², 2", (1,), 0, 0),
    ("3rd, x1, 2", (1,), 0, 0),
    ("1. 3\n2. 1\n3. 2", (2, 0, 1), 0, 0),
    ("1. #3.\n2) [9]", (2,), 0, 1),
    ("1. 3", (2,), 0, 0),
    ("1. Fargo (1996)\n2. 1 Heat\n3. Fargo 3 (1997)", (2, 0), 0, 1),
    ("3. Fargo (1996)\n1. 12 Monkeys (1995)", (2, 0), 0, 0),
    ("1. Candidate 3\n2. #1 Heat\n3. [2] Big", (2, 0, 1), 0, 0),
    ("1. Candidate 3", (2,), 0, 0),
    ("1. No. 3: it fits\n2. 1. Heat (1995)\n3. 2, a comedy", (2, 0, 1), 0, 0),
    ("1. 2 Fast 2 Furious (2003)\n2. 3 Fargo", (2,), 0, 1),
    ("1. 2. 3.", (0, 1, 2), 0, 0),
    ("3. 1, 2", (2, 0, 1), 0, 0),
    ("Best first:\n1. 3", (0, 2), 0, 0),
    ("no idea", (), 0, 0),
    ("", (), 0, 0),
])
def test_numbers(block: str, ranking: tuple[int, ...], duplicates: int, outside: int) -> None:
    parsed = parse(f"<answer>{block}</answer>")
    assert (parsed.ranking, parsed.duplicates, parsed.outside) == (ranking, duplicates, outside)
    assert parsed.has_answer and parsed.valid == bool(ranking)


LIST = "1. Fargo (1996)\n2. Heat (1995)"


@pytest.mark.parametrize(("block", "ranking", "outside"), [
    ("1. Heat (1995), 2. Big (1988)", (0, 1), 0),
    ("1. Fargo (1996), 2. Heat (1995), 3. Casino (1995)", (2, 0), 1),
    ("1. Fargo; 2. Heat", (2, 0), 0),
    ("1. Fargo (1996) 2. Heat (1995)", (2, 0), 0),
    ("1. Fargo (1996) > 2. Heat (1995)", (2, 0), 0),
    ("3. Fargo (1996), 1. Heat (1995)", (2, 0), 0),
    ("3: Fargo, 1: Heat", (2, 0), 0),
    ("[3] Fargo (1996), [1] Heat (1995)", (2, 0), 0),
    ("3) Fargo (1996) 1) Heat (1995)", (2, 0), 0),
    ("1. 3, 2. 1, 3. 2", (2, 0, 1), 0),
    ("Ranking: 1. Fargo (1996), 2. Heat (1995)", (2, 0), 0),
    ("7, 3, 1. Fargo fits best", (2, 0), 1),
    ("3 Fargo (1996), 1 Heat (1995)", (2, 0), 0),
    ("1. Fargo (1996) - fits Drama\n2. Heat (1995) - crime", (2, 0), 0),
    ("1. Fargo (1996; Crime): 2 likes\n2. **Heat (1995)**, as candidate 3", (2, 0), 0),
    ("1. 3 Fargo (1996) - fits Drama\n2. 1, Heat", (2, 0), 0),
    ("1. Big Night (1996) - a comedy\n2. Alien: Resurrection (1997) - fits", (), 2),
    ("1. Heat (1986) - crime\n2. 4 Rooms (1995) - fits", (), 2),
    ("3. Fargo (1996) - fits Drama\n1. Heat (1995) - crime", (2, 0), 0),
    (f"Here is the ranking:\n{LIST}", (2, 0), 0),
    (f"My 2 best of the 5 candidates:\n\n{LIST}\nThese 2 fit them best.", (2, 0), 0),
    (f"3, 2\n{LIST}", (2, 1, 0), 0),
    (f"Alien (1979)\n{LIST}", (3, 2, 0), 0),
    ("Best first:\n1. 3\n2. 1\n3. 2", (2, 0, 1), 0),
    ("Best first:\n1. they like crime\n2. they like drama", (), 2),
    ("Best first:\n3. Fargo (1996)\n1. Heat (1995)", (2, 0), 0),
    ("2. Fargo (1996)\n3. Heat (1995)\n4. Casino (1995)", (2, 0), 1),
    ("**1.** Fargo (1996)\n**2. Heat (1995)**", (2, 0), 0),
    ("- 1. Fargo (1996)\n- 2. Heat (1995)", (2, 0), 0),
    ("3. it fits Drama\n1. crime", (2, 0), 0),
])
def test_lists_in_answers_of_numbers(block: str, ranking: tuple[int, ...], outside: int) -> None:
    for text in (block, block.replace("\n", " \r\n")):
        parsed = parse(f"<answer>{text}</answer>")
        assert (parsed.ranking, parsed.outside) == (ranking, outside)
        assert parsed.valid == bool(ranking)


def test_titles_like_lists_in_answers_of_numbers() -> None:
    titles = ("Emma (1996)", "Heat (1995)", "Emma (1996) [2]", "(500) Days (2009)", "Heat, 2: Electric (1995)",
              "300 (2006)", "2")
    for block, ranking in (
            ("1. Emma (1996) [2] - a drama\n2. (500) Days (2009) - love\n3. Emma (1996) - another", (2, 3, 0)),
            ("1. Emma (1996) [2], 2. Heat (1995)", (2, 1)), ("1. Heat, 2: Electric (1995)", (4,)),
            ("1. 300 (2006)\n2. Heat (1995)", (5, 1)), ("1. 1900 (1976)\n2. Heat (1995)", (1,)), ("1. 2\n2. 7", (1, 6)),
            ("7, 2", (6, 1))):
        assert parse(f"<answer>{block}</answer>", titles=titles).ranking == ranking


DIGITS = ("Heat (1995)", "12 Monkeys (1995)", "Se7en (1995)", "2 Fast 2 Furious (2003)", "300 (2006)",
          "Fahrenheit 451 (1966)", "2001: A Space Odyssey (1968)", "Apollo 13 (1995)", "8 1/2 (1963)",
          "10 Things I Hate About You (1999)", "Ocean's 11", "9 (2009)", "Emma (1996)", "Emma (1996) [2]")
DECORATIONS = ("{n}", "{n}: {t}", "{n}. {t}", "{n}) {t}", "{n} - {t}", "{n} \u2013 {t}", "{n} {t}", "{n} ({t})",
               "#{n} {t}", "**{n}** {t}", "{n}.{t}", "{n}, {t}", "[{n}] {t}", "({n}) {t}", "Candidate {n}: {t}",
               "Movie {n}: {t}", "- {n}: {t}", "{t} ({n})", "{t}: {n}", "{t} (candidate {n})")


@given(st.permutations(range(len(DIGITS))), st.integers(1, len(DIGITS)), st.sampled_from(DECORATIONS),
       st.sampled_from(["label", "bare", "lower"]), st.sampled_from(["\n", ", ", "; "]))
def test_numbers_beside_titles_with_digits_are_those_numbers(order: list[int], top: int, decoration: str, written: str,
                                                             between: str) -> None:
    def title(position: int) -> str:
        label = DIGITS[position]
        if written == "bare" and not label.startswith(("300", "8", "9", "Emma")):  # of digits, or of two candidates
            return bare_title(label)
        return label.lower() if written == "lower" else label

    between = "\n" if decoration[0] == "-" else between
    block = between.join(decoration.format(n=position + 1, t=title(position)) for position in order[:top])
    parsed = parse(f"<answer>{block}</answer>", titles=DIGITS)
    assert (parsed.ranking, parsed.outside, parsed.duplicates) == (tuple(order[:top]), 0, 0)


@pytest.mark.parametrize(("block", "ranking"), [
    ("Apollo 13 (1995)\nHeat (1995)", ()),
    ("Apollo 13 (8), Heat (1)", (7, 0)),
    ("Heat (1995) (candidate 1)\nSe7en (1995; Crime) (candidate 3)", (0, 2)),
    ("Top 3: 5, 1, 2", (4, 0, 1)),
    ("**My 3 best of 20:**\n\n5, 1, 2", (4, 0, 1)),
    ("Candidate 10: 5, 1", (9, 4, 0)),
    ("5, 1, and then: 3, 2", (4, 0, 2, 1)),
    ("Movie 8: 4", (7, 3)),
    ("9, 12", (8, 11)),
    ("12 - 9 (2009), 1", (11, 0)),
])
def test_digits_of_titles_and_headings_are_no_numbers(block: str, ranking: tuple[int, ...]) -> None:
    assert parse(f"<answer>{block}</answer>", titles=DIGITS).ranking == ranking
