"""Which thoughts are kept: hop order, no answer before the end, final rating equal to the truth (section 3.2.2).

Teachers that are language models write freely, so these are checks on text and can only be strict, not complete: a
rejected good thought costs another attempt, an accepted leak would teach the model to know answers in advance.
"""

from __future__ import annotations

import re
from functools import cache

from r2rec_jax.prompts.answer import MIN_WORDS, TAG
from r2rec_jax.prompts.templates import RATING_WORDS, wording
from r2rec_jax.prompts.verbalize import neighbour_name, title_text
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.thoughts.teacher import Thought

MIN_STATEMENTS = 4
"""One for each of the three hops, and a conclusion."""

_REVEALS = re.compile(
    r"</?answer>|\b(?:correct|true|given|final|actual|right|known)\s+(?:answer|rating)\b|\banswer\s+(?:is|was|will)\b"
    r"|\bpredict(?:s|ed|ing|ion)?\b", re.IGNORECASE)
_TARGET = re.compile(r"\b(?:target\s+user|the\s+target)\b", re.IGNORECASE)
_PRONOUN = re.compile(r"\b(?:they|them|their|he|she|him|his|hers?)\b", re.IGNORECASE)
_VERDICT = re.compile(
    r"\b(?:lov|lik|enjoy|hat|dislik|ador|appreciat|prefer|favou?r)(?:e|es|ed|ing|s)?\b|\b(?:rat|gav|giv|scor|award)"
    r"(?:e|es|ed|en|ing|ings?)?\b|\bneutral\b|\bstars?\b|\b[1-5]\s*/\s*5\b|\bout\s+of\s+5\b|★", re.IGNORECASE)
_NOUNS = ("movie", "film", "book", "product", "item")
_RATING_NUMBER = re.compile(r"(?<![\w.,/-])([1-5])(?![\w-]|\.\d)")
_NUMBER_WORDS = ("one", "two", "three", "four", "five")
_STATED = re.compile(
    r"\b(?:predicted\s+rating|rating(?:\s+of|\s+is|\s+should\s+be|\s+will\s+be)?)\s*:?\s*([1-5])(?!\w|\.\d)",
    re.IGNORECASE)


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None


def _without(text: str, *names: str) -> str:
    """``text`` with the names taken out, longest first: a title may be "5" or "Hate"."""
    for name in sorted(names, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " # ", text, flags=re.IGNORECASE)
    return text


@cache
def _final_reference(domain: str) -> re.Pattern[str]:
    """Speaks of the final item without its name, in the words of the domain: "the final song"."""
    nouns = "|".join(re.escape(noun) for noun in (*_NOUNS, wording(domain).item))
    return re.compile(rf"\b(?:last|final|second|next|other)\s+(?:{nouns})\b", re.IGNORECASE)


def problems(thought: Thought, chain: ChainView, domain: str = "generic") -> tuple[str, ...]:
    """Why a thought is rejected; empty when it is valid.

    Args:
        thought: what the teacher wrote.
        chain: the chain it was written for.
        domain: whose words the teacher was asked in.
    """
    found: list[str] = []
    if len(thought.statements) < MIN_STATEMENTS:
        return (f"a thought needs at least {MIN_STATEMENTS} statements; got {len(thought.statements)}",)
    for number, statement in enumerate(thought.statements, start=1):
        if "\n" in statement or "\r" in statement or len(statement.split()) < MIN_WORDS:
            found.append(f"statement {number} is not one line of at least {MIN_WORDS} words: {statement!r}")
        if TAG.search(statement):
            found.append(f"statement {number} holds a tag of completions: {statement!r}")
    found += _hop_order(thought, chain)
    for number, statement in enumerate(thought.statements[:-1], start=1):
        reason = _leak(statement, chain, domain)
        if reason:
            found.append(f"statement {number} of {len(thought.statements)} {reason}: {statement!r}")
    found += _final(thought, chain)
    return tuple(found)


def _hop_order(thought: Thought, chain: ChainView) -> list[str]:
    """Item 0, neighbour and final item are each first mentioned in a later statement, all before the conclusion."""
    names = (title_text(chain.item0), neighbour_name(chain.neighbour), title_text(chain.item1))
    places = []
    for name in names:
        at = [place for place, statement in enumerate(thought.statements) if _mentions(statement, name)]
        if not at or at[0] == len(thought.statements) - 1:
            return [f"{name!r} is not mentioned before the conclusion"]
        places.append(at[0])
    # A name inside an earlier one ("It" in "It Happened One Night") seems to come too early, and is not checked.
    if places[1] <= places[0] and not _mentions(names[0], names[1]):
        return ["hop 2 (the neighbour) comes before hop 1 is reasoned over"]
    if places[2] <= places[1] and not any(_mentions(name, names[2]) for name in names[:2]):
        return ["hop 3 (the final item) comes before hop 2 is reasoned over"]
    return []


def _leak(statement: str, chain: ChainView, domain: str) -> str:
    """What a statement before the conclusion gives away; empty when nothing."""
    final, neighbour = title_text(chain.item1), neighbour_name(chain.neighbour)
    plain = _without(statement, title_text(chain.item0), final, neighbour)
    if _REVEALS.search(plain):
        return "speaks of the answer or of a prediction"
    about_final = _mentions(statement, final) or _final_reference(domain).search(statement) is not None
    if not about_final or _mentions(title_text(chain.item0), final):
        return ""
    about_neighbour = (_mentions(statement, neighbour)
                       or re.search(r"\bneighbou?r|\bother user\b", plain, re.IGNORECASE) is not None)
    about_target = _TARGET.search(plain) or (not about_neighbour and _PRONOUN.search(plain))
    if about_target and _VERDICT.search(plain):
        return "gives the target user's verdict on the final item"
    if not about_neighbour:
        truth = chain.rating_u1
        words = (RATING_WORDS[truth - 1], _NUMBER_WORDS[truth - 1] + " star", _NUMBER_WORDS[truth - 1] + "-star")
        if str(truth) in _RATING_NUMBER.findall(plain) or any(word in plain.casefold() for word in words):
            return "gives the answer's rating without saying whose it is"
    return ""


def _final(thought: Thought, chain: ChainView) -> list[str]:
    """The rating arrived at is the true one, and the conclusion states no other."""
    if thought.rating != chain.rating_u1:
        return [f"final rating must be {chain.rating_u1}; got {thought.rating}"]
    names = (title_text(chain.item0), title_text(chain.item1), neighbour_name(chain.neighbour))
    stated = [int(number) for number in _STATED.findall(_without(thought.statements[-1], *names))]
    if stated and stated[-1] != thought.rating:
        return [f"the conclusion must state {thought.rating}; got {stated[-1]}"]
    return []
