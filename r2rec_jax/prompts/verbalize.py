"""Items, users and chains as text, every untrusted part escaped.

The chain's line is the paper's (Appendix A.1) in a compact form; the arrow carries the rating:

    target user -5-> Heat (1995; Action) -4-> user 12 (24, M, writer) -2-> Big (1988; Comedy) -3-> target user
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from r2rec_jax.data.interactions import Item, User
from r2rec_jax.prompts.escape import escape_text
from r2rec_jax.prompts.templates import RATING_WORDS
from r2rec_jax.prompts.views import ChainView

TARGET = "target user"
MAX_GENRES = 6
MAX_DETAILS = 3
GENRE_LIMIT = 40
USER_ID_LIMIT = 10

_DRAWN_ID = re.compile(r"A[A-Z0-9]{9,}")
_ARTICLE = re.compile(r"^([^(]+), (The|An?|La|Le|Les|Il|El|Der|Die|Das|L')(?= \(|$)")


def rating_words(rating: float) -> str:
    """``liked`` for 4; ratings between two whole numbers take the word of the nearer one, halves the higher."""
    return RATING_WORDS[min(5, max(1, int(rating + 0.5))) - 1]


def title_text(item: Item) -> str:
    """The escaped title without its year, catalogue articles moved to the front: "Killer, The" -> "The Killer"."""
    raw = item.title.strip(" ")
    if item.year is not None:
        raw = raw.removesuffix(f"({item.year})").rstrip(" ")
    found = _ARTICLE.match(raw)
    if found:
        space = "" if found[2].endswith("'") else " "
        raw = f"{found[2]}{space}{found[1]}{raw[found.end():]}"
    return escape_text(raw) or "(untitled)"


def genre_texts(item: Item) -> tuple[str, ...]:
    """The escaped genres, blank and repeated ones left out, at most six."""
    texts = (escape_text(genre, GENRE_LIMIT) for genre in item.genres)
    return tuple(dict.fromkeys(text for text in texts if text))[:MAX_GENRES]


def shares_genre(first: Item, second: Item) -> bool:
    """Whether the items have a genre in common, those beyond the displayed six included."""
    return not {genre.strip() for genre in first.genres if genre.strip()}.isdisjoint(g.strip() for g in second.genres)


def detail_texts(item: Item) -> tuple[str, ...]:
    """``author A. Writer``: further facts, escaped and cut, blank ones left out, at most three."""
    texts = ((escape_text(name, GENRE_LIMIT), escape_text(value, GENRE_LIMIT)) for name, value in item.details)
    return tuple(f"{name} {value}" for name, value in texts if name and value)[:MAX_DETAILS]


def item_text(item: Item, *, facts: bool = True) -> str:
    """``Heat (1995; Action, Crime)``, ``Emma (1815; Novels; author J. Austen)``, without facts ``Heat (1995)``; what is
    unknown is left out."""
    more = (", ".join(genre_texts(item)), *detail_texts(item)) if facts else ()
    parts = (str(item.year or ""), *more)
    shown = "; ".join(part for part in parts if part)
    return f"{title_text(item)} ({shown})" if shown else title_text(item)


def item_name(item: Item) -> str:
    """``Heat (1995``: what :func:`item_text` and :func:`item_labels` have in common, an item's name as one token."""
    return f"{title_text(item)} ({item.year}" if item.year else title_text(item)


def item_labels(items: Sequence[Item]) -> tuple[str, ...]:
    """Short names of the candidates, all different: ``Heat (1995)``, and ``Heat (1995) [2]`` for a second one."""
    return candidate_texts(items, facts=False)


def candidate_texts(items: Sequence[Item], *, facts: bool = True) -> tuple[str, ...]:
    """The candidates as the prompt lists them; items of one label carry its mark: ``Heat (1995; Action) [2]``."""
    marks = _copy_marks([item_text(item, facts=False) for item in items])
    return tuple(item_text(item, facts=facts) + mark for item, mark in zip(items, marks, strict=True))


def _copy_marks(stems: Sequence[str]) -> list[str]:
    """What makes the stems different: nothing for the first of a name, `` [2]`` for the next."""
    marks: list[str] = []
    taken: set[str] = set()
    for stem in stems:
        mark, copy = "", 1
        while (stem + mark).casefold() in taken:
            copy += 1
            mark = f" [{copy}]"
        taken.add((stem + mark).casefold())
        marks.append(mark)
    return marks


def neighbour_name(user: User) -> str:
    """``user 12``; of a long id ten characters: ``user cust…00123``, since the ids of a table often begin alike, and of
    Amazon's, which are drawn, the beginning."""
    raw = user.user_id.strip()
    if len(raw) > USER_ID_LIMIT and not _DRAWN_ID.fullmatch(raw):
        raw = f"{raw[:4]}…{raw[-5:]}"
    return f"user {escape_text(raw, USER_ID_LIMIT) or '(unknown)'}"


def profile_text(user: User | None) -> str:
    """``age 24, gender M, occupation technician``; empty where nothing is known."""
    if user is None:
        return ""
    return ", ".join(f"{escape_text(name, GENRE_LIMIT)} {escape_text(value, GENRE_LIMIT)}"
                     for name, value in user.attributes if value.strip())


def neighbour_text(user: User) -> str:
    """``user 12 (24, M, writer)``: the values alone, since the chain's line has to stay short."""
    values = ", ".join(escape_text(value, GENRE_LIMIT) for _, value in user.attributes if value.strip())
    return f"{neighbour_name(user)} ({values})" if values else neighbour_name(user)


def chain_text(chain: ChainView, *, masked: bool = False, described: Collection[str] = ()) -> str:
    """The chain as one line.

    Args:
        chain: the chain.
        masked: the unclosed forward chain of the rating question, its last rating shown as ``?``.
        described: ids of items whose year and genres the prompt has given already; they are named by title alone.
    """
    first, final = (title_text(item) if item.item_id in described else item_text(item)
                    for item in (chain.item0, chain.item1))
    closing = "?" if masked else str(chain.rating_u1)
    return (f"{TARGET} -{chain.rating_u0}-> {first} -{chain.rating_n0}-> {neighbour_text(chain.neighbour)} "
            f"-{chain.rating_n1}-> {final} -{closing}-> {TARGET}")
