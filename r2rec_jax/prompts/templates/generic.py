"""Wording for whatever has no template of its own."""

from __future__ import annotations

from r2rec_jax.prompts.templates.wording import Wording

WORDING = Wording(
    domain="generic",
    item="item",
    items="items",
    past="chose",
    genre="category",
    genres="categories",
    era="dates from",
)
