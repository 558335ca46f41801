"""Wording for movies."""

from __future__ import annotations

from r2rec_jax.prompts.templates.wording import Wording

WORDING = Wording(
    domain="movies",
    item="movie",
    items="movies",
    past="watched",
    genre="genre",
    genres="genres",
    era="came out in",
)
