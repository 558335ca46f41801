"""One module a domain; :func:`wording` finds it by name."""

from __future__ import annotations

import re
from dataclasses import replace

from r2rec_jax.prompts.templates import books, electronics, generic, movies
from r2rec_jax.prompts.templates.wording import RATING_WORDS, Wording

TEMPLATE_VERSION = "1"
"""Raised whenever the text of a prompt or of a template thought changes: stored thoughts are keyed by it."""

_DOMAINS = {module.WORDING.domain: module.WORDING for module in (movies, books, electronics, generic)}

__all__ = ["RATING_WORDS", "TEMPLATE_VERSION", "Wording", "wording"]


_NOUN = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+){0,3}")
NOUN_LIMIT = 40
"""Longest noun of a domain, in characters."""


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
        if not _NOUN.fullmatch(noun) or len(noun) > NOUN_LIMIT:
            raise ValueError(f"a domain's noun must be one to four words of letters, at most {NOUN_LIMIT} characters; "
                             f"got {noun!r}")
    return replace(_DOMAINS[name], domain=domain, item=nouns[0], items=nouns[1])
