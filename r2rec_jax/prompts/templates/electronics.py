"""Wording for electronics."""

from __future__ import annotations

from r2rec_jax.prompts.templates.wording import Wording

WORDING = Wording(
    domain="electronics",
    item="product",
    items="products",
    past="bought",
    genre="category",
    genres="categories",
    era="came out in",
)
