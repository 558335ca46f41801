"""The model's output: how it is written for training, and the parser that reads what a model wrote.

The answer is the first ``<answer>...</answer>`` block after the last ``</think>``, or anywhere when the text has no
``</think>``. A block that is not closed is no answer. The first mention of a candidate counts; repeats, and numbers or
titles that are not candidates, are dropped and counted. An answer with no valid mention is not valid.

Reasoning is what stands between the first ``<think>`` and the last ``</think>``. Chat templates of reasoning models
already end in ``<think>``, so the completion has no opening tag: ``opened_think`` says so, and a format reward that
misses it is always 0. A reasoning statement is a line with at least three words besides candidates' titles; numbered
lines ("3. Heat") are answers in disguise and do not count, nor does a repeated line.

The text may be anything a model can emit: nothing here raises on it, and the work is linear in its length.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from r2rec_jax.prompts.naming import bare_title, find_at_start, title_finder, titles_in_numbers

AnswerForm = Literal["numbers", "titles"]

THINK, END_THINK = "<think>", "</think>"
ANSWER, END_ANSWER = "<answer>", "</answer>"
MIN_WORDS = 3

_NUMBER = re.compile(r"(?<!\w)[-+]?[0-9]+(?:\.[0-9]+)?(?!\w)")
_NUMBERED_LINE = re.compile(r"^[\W_]*[0-9]{1,3}\s*[.):\]]")
_ORDINAL = re.compile(r"^(?:[-*•]\s+)?\*{0,2}[(\[]?([0-9]{1,3})[.):\]]\*{0,2}\s+(\S.*)$")
_NEXT = re.compile(r"(?:[,;>]|(?<=\))(?!\s*\[)|(?<=[^\W\d]:))\s*(?=\*{0,2}[(\[]?[0-9]{1,3}[.):\]]\*{0,2}\s)")
_HEADING = re.compile(r"[\W_]*[^\W\d_][^,;>]*")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_CALLED = re.compile(r"^(?:(?:(?:candidate|item|option|number|no\.?)\s*(?:[#\[(]+\s*)?|[#\[(]+\s*)(?P<number>[0-9]+)|"
                     r"(?P<bare>[0-9]+))(?!\w|\.[0-9])", re.IGNORECASE)
TAG = re.compile(r"</?(?:think|answer)>")
"""What a statement may not hold."""


@dataclass(frozen=True)
class ParsedAnswer:
    """A parsed completion.

    Attributes:
        ranking: 0-based candidate positions in the order of their first mention.
        places: 1-based place of each of these mentions among all that is written, repeats and what is no candidate.
        duplicates: repeated mentions.
        outside: numbers or titles that are no candidate.
        has_answer: whether there is a closed answer block.
        valid: whether it mentions at least one candidate.
        statements: reasoning statements inside a closed think block.
        reasoning: the text of that block.
    """

    ranking: tuple[int, ...]
    places: tuple[int, ...]
    duplicates: int
    outside: int
    has_answer: bool
    valid: bool
    statements: int
    reasoning: str

    def rank_of(self, position: int, n_candidates: int) -> int:
        """1-based rank of a candidate; those not listed share the last rank, ``n_candidates``."""
        return self.ranking.index(position) + 1 if position in self.ranking else n_candidates

    def place_of(self, position: int, n_candidates: int) -> int:
        """As :meth:`rank_of`, with all that is written before a candidate counted."""
        if position not in self.ranking:
            return n_candidates
        return min(self.places[self.ranking.index(position)], n_candidates)

    @property
    def copied_order(self) -> bool:
        """Whether the answer repeats the prompt's own order 1, 2, 3, ... (two places at least)."""
        return len(self.ranking) >= 2 and self.ranking == tuple(range(len(self.ranking)))


def render_answer(order: Sequence[int], form: AnswerForm, titles: Sequence[str], top: int) -> str:
    """The answer block.

    Args:
        order: 0-based candidate positions, best first, no repeats.
        form: candidate numbers, or titles one a line.
        titles: the candidates as displayed, in prompt order.
        top: how many places are written.

    Returns:
        ``<answer>7, 3, 12</answer>``, or the block with one title a line.

    Raises:
        ValueError: a position repeats or lies outside the candidates, or there is none.
    """
    if not order or len(set(order)) != len(order) or not all(0 <= p < len(titles) for p in order):
        raise ValueError(f"order must be distinct positions in 0..{len(titles) - 1}, at least one; got {list(order)}")
    if top < 1:
        raise ValueError(f"top must be >= 1; got {top}")
    kept = order[:top]
    if form == "numbers":
        return f"{ANSWER}{', '.join(str(position + 1) for position in kept)}{END_ANSWER}"
    lines = "\n".join(titles[position] for position in kept)
    return f"{ANSWER}\n{lines}\n{END_ANSWER}"


def render_rating(rating: int) -> str:
    """The answer block of the rating question: ``<answer>4</answer>``."""
    if rating not in (1, 2, 3, 4, 5):
        raise ValueError(f"rating must be a whole number from 1 to 5; got {rating!r}")
    return f"{ANSWER}{rating}{END_ANSWER}"


def render_completion(statements: Sequence[str], answer: str, *, opened_think: bool = False) -> str:
    r"""A whole completion.

    Args:
        statements: the reasoning, one line each; none at all leaves the think block out (or empty, when it is open).
        answer: the answer block.
        opened_think: the chat template already wrote ``<think>``; the completion then begins behind it.

    Returns:
        ``<think>\n...\n</think>\n<answer>...</answer>``, without the ``<think>\n`` when it is open already.

    Raises:
        ValueError: a statement is blank, has a line break or holds a tag.
    """
    for statement in statements:
        if not statement.strip() or len(statement.splitlines()) != 1 or TAG.search(statement):
            raise ValueError(f"a statement must be one non-empty line without tags; got {statement!r}")
    if not statements:
        return f"{END_THINK}\n{answer}" if opened_think else answer
    body = "\n".join([*statements, END_THINK, answer])
    return body if opened_think else f"{THINK}\n{body}"


def split_completion(text: str, *, opened_think: bool) -> tuple[str, str | None]:
    """The reasoning (empty unless its block is closed) and the inside of the answer block (None without one)."""
    if opened_think:
        text = THINK + text
    end = text.rfind(END_THINK)
    reasoning, rest = "", text
    if end >= 0:
        start = text.find(THINK)
        if 0 <= start < end:
            reasoning = text[start + len(THINK):end]
        rest = text[end + len(END_THINK):]
    opening = rest.find(ANSWER)
    closing = rest.find(END_ANSWER, opening) if opening >= 0 else -1
    if closing < 0:
        return reasoning.strip(), None
    opening = rest.rfind(ANSWER, 0, closing)
    return reasoning.strip(), rest[opening + len(ANSWER):closing]


def count_statements(reasoning: str, titles: Sequence[str] = ()) -> int:
    """How many :func:`read_statements` finds."""
    return len(read_statements(reasoning, titles))


def read_statements(reasoning: str, titles: Sequence[str] = ()) -> tuple[str, ...]:
    """Reasoning statements: distinct, unnumbered lines with at least three words besides the candidates' titles."""
    pattern = _titles_pattern(titles)
    seen: dict[str, None] = {}
    for line in re.split(r"[\r\n]+", reasoning):
        line = " ".join(TAG.sub(" ", line).split())
        if line in seen or _NUMBERED_LINE.match(line):
            continue
        without = pattern.sub(" ", line) if pattern else line
        if len(_WORD.findall(without)) >= MIN_WORDS:
            seen[line] = None
    return tuple(seen)


def _titles_pattern(titles: Sequence[str]) -> re.Pattern[str] | None:
    """Matches candidates as listed: a label, or its title followed by anything in parentheses."""
    names = sorted({name for title in titles for name in (title, bare_title(title)) if name}, key=len, reverse=True)
    if not names:
        return None
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, names)) + r")(?:\s*\([^()]*\))*(?!\w)")


def _count_mentions(mentions: Sequence[int | None]) -> tuple[tuple[int, ...], tuple[int, ...], int, int]:
    """First mentions in order, their places, the number of repeats, and of mentions outside the list."""
    first: dict[int, int] = {}
    for place, mention in enumerate(mentions, start=1):
        if mention is not None:
            first.setdefault(mention, place)
    inside = sum(mention is not None for mention in mentions)
    return tuple(first), tuple(first.values()), inside - len(first), len(mentions) - inside


def _read_numbers(block: str, titles: Sequence[str]) -> list[int | None]:
    """Each number as a 0-based position, None when it is no candidate's.

    In a numbered list, its entries on lines of their own or on one, the number before a list mark is the candidate's,
    as prompts list them, or it counts places: where these numbers are 1, 2, 3, ..., or an entry goes on with another
    candidate's title. Then what the entry goes on with is meant. Digits of titles are no numbers, nor are those of a
    line of words beside the list ("My 3 best:"). A title of digits alone is one in such a list, and where its year
    stands behind it; elsewhere "300" is a number.
    """
    find = title_finder(titles)
    entries = [entry for line in block.split("\n") if line.strip() for entry in _entries(line.strip(), find)]
    marks = [(mark[1], mark[2]) for _, mark in entries if mark]
    named = [None if _lone_number(rest) else find_at_start(rest, find) for _, rest in marks]
    worded = all(position is not None or _WORD.search(rest) for position, (_, rest) in zip(named, marks, strict=True))
    listed = set(named) - {None} or all(_WORD.search(rest) or _lone_number(rest) for _, rest in marks)
    if not marks or not listed or (len(marks) == 1 < len(entries) and not worded):
        return _plain_numbers(block, titles)
    own = [_candidate(number, len(titles)) for number, _ in marks]
    counted = [int(number) for number, _ in marks] == list(range(1, len(marks) + 1))
    places = counted or any(position not in (None, number) for position, number in zip(named, own, strict=True))
    if not places and not worded:
        return _plain_numbers(block, titles)
    mentions: list[int | None] = []
    for entry, mark in entries:
        if mark:
            mentions.append(_meant(mark[2], find, len(titles)) if places else _candidate(mark[1], len(titles)))
        elif not _WORD.search(entry):
            mentions += [_candidate(number, len(titles)) for number in _NUMBER.findall(entry)]
        elif (position := _meant(entry, find, len(titles))) is not None:
            mentions.append(position)
    return mentions


def _plain_numbers(block: str, titles: Sequence[str]) -> list[int | None]:
    """Each number outside titles and headings. A heading is words and a colon, behind it at least two numbers and no
    words, on its line or the next: "Top 3: 5, 1, 2"."""
    if pattern := titles_in_numbers(titles):
        block = pattern.sub("_", block)  # no word, no number
    lines = [line for line in block.split("\n") if line.strip()]
    read = []
    for line, following in zip(lines, [*lines, ""][1:], strict=True):
        head, colon, rest = line.partition(":")
        behind = rest if _WORD.search(rest) or _NUMBER.search(rest) else following
        heading = (colon and _HEADING.fullmatch(head) and not _CALLED.match(head.strip())
                   and not _WORD.search(behind) and len(_NUMBER.findall(behind)) > 1)
        read += _NUMBER.findall(rest if heading else line)
    return [_candidate(number, len(titles)) for number in read]


def _entries(line: str, find: Callable[[str], int | None]) -> list[tuple[str, re.Match[str] | None]]:
    """A line and its list mark, None without one; or its parts, where each of them has one behind a heading, if there
    is one: "Best first: 3. Fargo (1996), 1. Heat (1995)"."""
    parts = [(part, _ORDINAL.match(part)) for part in map(str.strip, _NEXT.split(line))]
    heading = parts[0][0].endswith(":")
    whole = find(line) is not None or not all(mark for _, mark in parts[heading:])
    return [(line, _ORDINAL.match(line))] if whole else parts


def _meant(rest: str, find: Callable[[str], int | None], n_candidates: int) -> int | None:
    """The position that an entry names: a number alone, a title, or the number that it begins with: a "candidate 7",
    "#7", "[7]", "7: ...", or "7" before a candidate's title, but not the digits of "12 Monkeys"."""
    number = _lone_number(rest)
    if number:
        return _candidate(number[0], n_candidates)
    position = find_at_start(rest, find)
    if position is not None or (called := _CALLED.match(rest)) is None:
        return position
    written, behind = called["number"] or called["bare"], rest[called.end():]
    if called["number"] or not behind[:1].isspace() or find_at_start(behind, find) is not None:
        return _candidate(written, n_candidates)
    return None


def _lone_number(rest: str) -> re.Match[str] | None:
    return _NUMBER.fullmatch(rest.strip(" .,;:#*()[]"))


def _candidate(number: str, n_candidates: int) -> int | None:
    """A written number, whole or as ``3.0``, as a 0-based position. Huge ones never reach ``int``."""
    whole, _, fraction = number.partition(".")
    digits = whole.lstrip("0")
    short = whole.isdigit() and not fraction.strip("0") and 0 < len(digits) <= len(str(n_candidates))
    return int(digits) - 1 if short and int(digits) <= n_candidates else None


def _read_titles(block: str, titles: Sequence[str]) -> list[int | None]:
    """Each line as a 0-based position."""
    find = title_finder(titles)
    lines = [line for line in block.split("\n") if line.strip()]
    if len(lines) == 1 and find(lines[0]) is None:
        lines = [part for part in lines[0].split(";") if part.strip()]
    return [find(line) for line in lines]


def parse_completion(text: str, *, form: AnswerForm, titles: Sequence[str], opened_think: bool) -> ParsedAnswer:
    """Read a model's completion.

    Args:
        text: the decoded completion, without the prompt.
        form: the form that was asked for.
        titles: the candidates as displayed, in prompt order.
        opened_think: whether the prompt already ended in ``<think>``.

    Returns:
        What it says; never raises on any text.

    Example:
        >>> parse_completion("Drama fits them best.</think><answer>2, 9, 2, 1</answer>", form="numbers",
        ...                  titles=["Heat", "Big"], opened_think=True)
        ParsedAnswer(ranking=(1, 0), places=(1, 4), duplicates=1, outside=1, has_answer=True, valid=True, \
statements=1, reasoning='Drama fits them best.')
    """
    reasoning, block = split_completion(text, opened_think=opened_think)
    mentions: list[int | None] = []
    if block is not None:
        mentions = _read_numbers(block, titles) if form == "numbers" else _read_titles(block, titles)
    ranking, places, duplicates, outside = _count_mentions(mentions)
    return ParsedAnswer(ranking, places, duplicates, outside, block is not None, bool(ranking),
                        count_statements(reasoning, titles), reasoning)


def parse_rating(text: str, *, opened_think: bool) -> int | None:
    """The rating in the answer block; None unless it holds exactly one number, a whole one from 1 to 5."""
    _, block = split_completion(text, opened_think=opened_think)
    numbers = _NUMBER.findall(block) if block is not None else []
    return int(numbers[0]) if len(numbers) == 1 and numbers[0] in {"1", "2", "3", "4", "5"} else None
