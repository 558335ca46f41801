"""Settings of ``data.name: table``: which columns of whose files, and how ratings and times are meant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from r2rec_jax.config.check import check

NOUN_LIMIT = 40
"""Longest noun of a domain, in characters."""

_NOUN = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+){0,3}")


def is_noun(word: str) -> bool:
    """Whether prompts may call an item so: one to four words of letters."""
    return bool(_NOUN.fullmatch(word)) and len(word) <= NOUN_LIMIT


@dataclass(frozen=True)
class TableConfig:
    """A table of one's own: CSV, JSON Lines or Parquet, plain or compressed (``.gz``, ``.zst``).

    Ratings of any scale become whole numbers 1..5, so that a rating is above ``positive_above`` exactly when what it
    becomes is above 3: what is liked becomes 4 or 5, the rest 1, 2 or 3, each side cut evenly between the threshold
    and the lowest or highest rating. Whole ratings 1..5 with a threshold of 3 stay as they are.

    Attributes:
        interactions: the file of events, as a path from ``data.path`` or an absolute one; null when ``data.path`` is
            that file itself.
        user: column of the users' raw ids.
        item: column of the items' raw ids.
        rating: column of the rating; null when there is none: every event is then a like.
        timestamp: column of the time; null when there is none: a user's events are then in file order.
        time_unit: ``seconds`` or ``milliseconds`` since 1970, ``iso`` ("2024-05-01T12:00:00+02:00"; a year of four
            digits first, UTC where no offset is given), or ``auto``: what the whole column can be, numbers of 1e11 and
            more being milliseconds. Seconds may have fractions; thousandths count.
        positive_above: a raw rating above this is a like.
        rating_range: lowest and highest possible raw rating; null takes those that occur.
        items: file of item attributes, one row an item, a path from the same folder or an absolute one; null when
            there is none: the raw id is then the title, and the settings of its columns must be removed.
        item_id: its id column.
        title: its column of titles; null when there is none.
        year: its column of years; null when there is none.
        categories: its column of categories: a list, also one as text (``["a", "b"]``, ``['a', 'b']``), or a text
            split at ``separator``.
        details: further columns of it that prompts show beside the title ("artist").
        users: file of user attributes, likewise; null when there is none.
        user_id: its id column.
        attributes: columns of it that make the profile in a prompt ("age").
        separator: between the categories of one item.
        delimiter: between the columns of CSV files; null finds it in the header.
        noun: what an item is called in a prompt ("song").
        plural: what several are called; null adds an s.
    """

    interactions: str | None = None
    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = "rating"
    timestamp: str | None = "timestamp"
    time_unit: Literal["auto", "seconds", "milliseconds", "iso"] = "auto"
    positive_above: float = 3.0
    rating_range: tuple[float, float] | None = None
    items: str | None = None
    item_id: str = "item_id"
    title: str | None = "title"
    year: str | None = None
    categories: str | None = None
    details: Sequence[str] = ()
    users: str | None = None
    user_id: str = "user_id"
    attributes: Sequence[str] = ()
    separator: str = "|"
    delimiter: str | None = None
    noun: str = "item"
    plural: str | None = None

    def __post_init__(self) -> None:
        for name in ("details", "attributes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.rating_range is not None:
            object.__setattr__(self, "rating_range", tuple(self.rating_range))
            low, high = self.rating_range
            check(low <= self.positive_above < high, "data.table.positive_above", "in data.table.rating_range, below "
                  "its upper end", self.positive_above)
        check(self.user != self.item, "data.table.item", "another column than data.table.user", self.item)
        for name in ("noun", "plural"):
            word = getattr(self, name)
            check(word is None or is_noun(word), f"data.table.{name}",
                  f"one to four words of letters, at most {NOUN_LIMIT} characters", word, "it stands in every prompt")
        check(self.delimiter is None or (len(self.delimiter) == 1 and self.delimiter not in '"\r\n'),
              "data.table.delimiter", "one character, no quote and no line break", self.delimiter)
        check(bool(self.separator), "data.table.separator", "at least one character", self.separator)

    @property
    def domain(self) -> str:
        """The domain of the prompts: ``generic:song:songs``."""
        return f"generic:{self.noun}:{self.plural or self.noun + 's'}"
