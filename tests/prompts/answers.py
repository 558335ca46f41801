"""Five candidates, and what an answer says of them."""

from __future__ import annotations

from r2rec_jax.prompts.answer import ParsedAnswer, parse_completion

TITLES = ("Heat (1995)", "Big (1988)", "Fargo (1996)", "Alien (1979)", "Seven (1995)")


def parse(text: str, *, form: str = "numbers", opened: bool = False, titles: tuple[str, ...] = TITLES) -> ParsedAnswer:
    return parse_completion(text, form=form, titles=titles, opened_think=opened)  # type: ignore[arg-type]
