"""Which candidate a written title names: titles are written with and without their year, facts, marks and escapes.

A name that two candidates share, another year, or another version names neither. The work is linear in a line's length.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

_LIST_MARK = re.compile(r"^(?:[-*•]|[(\[]?[0-9]{1,3}[.):\]])\s+")
_YEAR = re.compile(r"\(([0-9]{4})\b[^()]*\)(?: \[[0-9]+\])?$")
_UP_TO_YEAR = re.compile(r"\([0-9]{4}\b[^()]*\)(?:\s*\([^()]*\))*(?: \[[0-9]+\])?")
_LAST_PARENTHESIS = re.compile(r"\([^()]*\)(?: \[[0-9]+\])?$")
_ESCAPED = re.compile(r"\\(?:u\{([0-9a-f]{1,5})\}|([^\w\s]))")
_AROUND = " \"'*,;"
_LETTER = re.compile(r"[^\W\d_]")
_YEAR_BEHIND = r"(?:\s*\([0-9]{4}\b[^()]*\))?"


def _year(title: str) -> str | None:
    """The year in a label's last parenthesis: ``Heat (1995; Crime)`` -> ``1995``."""
    found = _YEAR.search(title)
    return found[1] if found else None


def bare_title(title: str) -> str:
    """A label without its last parenthesis: ``Heat (1995)`` -> ``Heat``."""
    return _LAST_PARENTHESIS.sub("", title).rstrip()


def titles_in_numbers(titles: Sequence[str]) -> re.Pattern[str] | None:
    """Matches what is a candidate's title, not its number, in an answer of numbers: a label, or a title with or without
    its year and facts. A title without letters is one where its year stands behind it ("300 (2006)"); "300" is a
    number."""
    names: dict[str, str] = {}
    for label in titles:
        bare, year = bare_title(label), _year(label)
        if _LETTER.search(bare):
            names[bare] = re.escape(bare) + _YEAR_BEHIND
        elif bare and year:
            names[bare] = rf"{re.escape(bare)}\s*\({year}\b[^()]*\)"
        if _LETTER.search(label):
            names.setdefault(label, re.escape(label))
    patterns = [names[name] for name in sorted(names, key=len, reverse=True)]
    return re.compile(rf"(?<!\w)(?:{'|'.join(patterns)})(?!\w)", re.IGNORECASE) if patterns else None


def _spelling(text: str) -> str:
    """A title as titles are compared: escapes undone, accents and spaces in one form, no case, no quotes around."""
    plain = _ESCAPED.sub(lambda found: chr(int(found[1], 16)) if found[1] else found[2], text)
    return " ".join(unicodedata.normalize("NFC", plain).split()).strip(_AROUND).casefold()


def title_finder(titles: Sequence[str]) -> Callable[[str], int | None]:
    """Finds a line's 0-based position: the label exactly, else without list mark and case, else without the parenthesis
    that the line or the label lacks (a year; facts): a film of the same name and another year is no candidate, nor is
    another version of a song ("Hurt (Nine Inch Nails)" for "Hurt (Johnny Cash)")."""
    exact = {title: position for position, title in enumerate(titles)}
    labels = [_spelling(title) for title in titles]
    whole: dict[str, list[int]] = {}
    without: dict[str, list[int]] = {}
    for position, label in enumerate(labels):
        for names, name in ((whole, label), (without, bare_title(label).strip(_AROUND))):
            if name:  # "***" and "(1995)" name nothing, not even an item without title
                names.setdefault(name, []).append(position)

    def find(line: str) -> int | None:
        line = line.strip()
        if line in exact:
            return exact[line]
        for text in dict.fromkeys((_spelling(line), _spelling(_LIST_MARK.sub("", line)))):
            short = bare_title(text).strip(_AROUND)
            for found in (whole.get(text, ()), without.get(text, ()), whole.get(short, ()), without.get(short, ())):
                if len(found) == 1:
                    break
            else:
                continue
            label = labels[found[0]]
            other_year = len({_year(text), _year(label)} - {None}) > 1
            other_version = (_year(label) is None and label not in (text, short)
                             and text != bare_title(label).strip(_AROUND))
            return None if other_year or other_version else found[0]
        return None

    return find


def find_at_start(text: str, find: Callable[[str], int | None]) -> int | None:
    """The position whose title a text is, or begins with where a year closes it: ``Fargo (1996) - fits them``."""
    position, year = find(text), _UP_TO_YEAR.search(text)
    return position if position is not None or year is None else find(text[:year.end()])
