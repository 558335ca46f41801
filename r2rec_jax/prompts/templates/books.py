"""Wording for books."""

from __future__ import annotations

from r2rec_jax.prompts.templates.wording import Wording

WORDING = Wording(
    domain="books",
    item="book",
    items="books",
    past="read",
    genre="genre",
    genres="genres",
    era="was published in",
)
