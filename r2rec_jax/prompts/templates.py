"""The words that a domain needs: nouns, a verb, and what a genre and a year are called there."""

from __future__ import annotations

from dataclasses import dataclass, replace

from r2rec_jax.config.table import NOUN_LIMIT, is_noun

TEMPLATE_VERSION = "1"
"""Raised whenever the text of a prompt or of a template thought changes: stored thoughts are keyed by it."""

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


_DOMAINS = {known.domain: known for known in (
    Wording("movies", "movie", "movies", "watched", "genre", "genres", "came out in"),
    Wording("books", "book", "books", "read", "genre", "genres", "was published in"),
    Wording("electronics", "product", "products", "bought", "category", "categories", "came out in"),
    Wording("generic", "item", "items", "chose", "category", "categories", "dates from"),
)}


def wording(domain: str) -> Wording:
    """The wording of a domain.

    Args:
        domain: ``movies``, ``books``, ``electronics``, ``generic``, or ``generic:<noun>:<plural>`` for a table of one's
            own ("generic:song:songs"): the generic wording about songs.

    Raises:
        ValueError: no such domain, or a noun that is more than a few plain words (it goes into every prompt).
    """
    name, *nouns = domain.split(":")
    if name not in _DOMAINS or (nouns and (name != "generic" or len(nouns) != 2)):
        raise ValueError(f"prompts.domain must be one of {sorted(_DOMAINS)}, or generic:<noun>:<plural>; "
                         f"got {domain!r}; 'generic' fits anything")
    if not nouns:
        return _DOMAINS[name]
    for noun in nouns:
        if not is_noun(noun):
            raise ValueError(f"a domain's noun must be one to four words of letters, at most {NOUN_LIMIT} characters; "
                             f"got {noun!r}")
    return replace(_DOMAINS[name], domain=domain, item=nouns[0], items=nouns[1])
