"""The validator: hop order, leaks, final rating."""

from __future__ import annotations

from dataclasses import replace

import pytest

from r2rec_jax.data.interactions import Item, User
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.thoughts.teacher import Thought
from r2rec_jax.thoughts.validate import problems

CHAIN = ChainView(User("7", ()), Item("1", "Heat", 1995, ("Crime",)), User("12", ()),
                  Item("2", "Big", 1988, ("Comedy",)), 5, 4, 2, 3)
GOOD = ("The target user gave Heat a 5 and likes crime.", "User 12 also liked it, rating 4.",
        "User 12 rated Big 2, a comedy.", "So a middling view of Big is likely: predicted rating 3.")


def reasons(*statements: str, rating: int = 3, chain: ChainView = CHAIN) -> str:
    return " | ".join(problems(Thought(statements, rating, "test"), chain))


def test_a_good_thought() -> None:
    assert reasons(*GOOD) == ""
    assert reasons(GOOD[0], GOOD[1] + " They agree.", GOOD[2], "It is a comedy from 1988.", GOOD[3]) == ""


def test_the_final_item_is_known_by_the_noun_of_its_domain() -> None:
    leak = Thought((*GOOD[:3], "The target user disliked the final song.", GOOD[3]), 3, "test")
    assert "verdict on the final item" in " ".join(problems(leak, CHAIN, "generic:song:songs"))
    assert not problems(leak, CHAIN, "movies")


@pytest.mark.parametrize("leak", [
    "The target user gave Big 3 stars.",
    "They loved Big, which is a comedy.",
    "The target user disliked Big as a comedy.",
    "The target user will rate the final movie a 3.",
    "Big is worth 3 of 5 here.",
    "Big: a neutral verdict is near.",
    "I predict something in the middle here.",
    "The correct answer is in the middle.",
    "The given rating guides the reasoning here.",
    "We know the true rating already.",
    "So the answer is three for this.",
    "Their rating of Big was 3/5.",
    "A three-star verdict fits Big well.",
])
def test_leaks_before_the_end(leak: str) -> None:
    assert "statement 4 of 5" in reasons(*GOOD[:3], leak, GOOD[3])


@pytest.mark.parametrize("fine", [
    "The neighbour rated Big low, 2 of 5.",
    "User 12 gave Big a 2 (disliked).",
    "The target user liked Heat, a crime story.",
    "The two agree in their ratings of Heat.",
    "Big came out in 1988 and is a comedy.",
])
def test_what_is_no_leak(fine: str) -> None:
    assert reasons(*GOOD[:3], fine, GOOD[3]) == ""


def test_hop_order() -> None:
    assert "hop 3" in reasons(GOOD[0], GOOD[2], GOOD[1], GOOD[3])
    assert "hop 2" in reasons(GOOD[2], GOOD[0], GOOD[1], GOOD[3])
    assert "hop 2" in reasons(GOOD[1], GOOD[0], GOOD[2], GOOD[3])
    assert "'Big' is not mentioned" in reasons(GOOD[0], GOOD[1], "A comedy came next.", GOOD[3])
    assert "'Heat' is not mentioned" in reasons("They like crime stories.", *GOOD[1:])
    assert "'user 12' is not mentioned" in reasons(GOOD[0], "A neighbour agreed on it.", "Big came next.", GOOD[3])


def test_the_final_rating_is_the_truth() -> None:
    assert "final rating must be 3; got 4" in reasons(*GOOD, rating=4)
    assert "conclusion must state 3; got 4" in reasons(*GOOD[:3], "So it ends here: predicted rating 4.")
    assert reasons(*GOOD[:3], "That makes a middling verdict likely.") == ""


def test_form() -> None:
    assert "at least 4 statements; got 1" in reasons("Only one statement here.")
    assert "at least 3 words" in reasons(GOOD[0], GOOD[1], GOOD[2], "So three.")
    assert "one line" in reasons(GOOD[0] + "\nmore", *GOOD[1:])
    for tag in ("</think>", "<think>", "<answer>", "</answer>"):
        assert "statement 4 holds a tag" in reasons(*GOOD[:3], f"{GOOD[3]} {tag}"), "no completion can be made of it"


def test_titles_that_look_like_verdicts() -> None:
    chain = replace(CHAIN, item1=Item("2", "3", None, ()), item0=Item("1", "The Answer Is Yes", 1995, ()))
    assert reasons("The target user gave The Answer Is Yes a 5.", "User 12 also gave it 4.", "User 12 gave 3 a 2.",
                   "So a middling view is likely: predicted rating 3.", chain=chain) == ""
