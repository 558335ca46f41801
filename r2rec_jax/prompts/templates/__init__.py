"""One module a domain; :func:`wording` finds it by name."""

from __future__ import annotations

from r2rec_jax.prompts.templates import books, electronics, generic, movies
from r2rec_jax.prompts.templates.wording import RATING_WORDS, Wording

TEMPLATE_VERSION = "1"
"""Raised whenever the text of a prompt or of a template thought changes: stored thoughts are keyed by it."""

_DOMAINS = {module.WORDING.domain: module.WORDING for module in (movies, books, electronics, generic)}

__all__ = ["RATING_WORDS", "TEMPLATE_VERSION", "Wording", "wording"]


def wording(domain: str) -> Wording:
    """The wording of a domain.

    Raises:
        ValueError: no such domain.
    """
    if domain not in _DOMAINS:
        raise ValueError(f"prompts.domain must be one of {sorted(_DOMAINS)}; got {domain!r}; 'generic' fits anything")
    return _DOMAINS[domain]
