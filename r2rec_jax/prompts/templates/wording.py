"""The words that a domain needs: nouns, a verb, and what a genre and a year are called there."""

from __future__ import annotations

from dataclasses import dataclass

RATING_WORDS = ("very disliked", "disliked", "neutral", "liked", "very liked")
"""What ratings 1 to 5 mean, in the paper's own scale (Appendix A.1)."""


@dataclass(frozen=True)
class Wording:
    """The wording of one domain.

    Attributes:
        domain: its name in ``prompts.domain``.
        item, items: what is recommended, one and many.
        past: what a user did with an item ("watched").
        genre, genres: what ``Item.genres`` holds, one and many.
        era: how a year is introduced ("came out in").
    """

    domain: str
    item: str
    items: str
    past: str
    genre: str
    genres: str
    era: str
