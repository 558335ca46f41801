"""What a teacher is: something that writes the thought of a chain.

A teacher sees the whole chain, closing rating included, and has to reason as if it did not (section 3.2.2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from r2rec_jax.prompts.views import ChainView

_T = TypeVar("_T")

MOST_PHRASINGS = 5
"""Options of the statement that has most of them."""


@dataclass(frozen=True)
class Thought:
    """One interaction-of-thought.

    Attributes:
        statements: the reasoning, hop by hop, one line each; the last one draws the conclusion.
        rating: the rating that it arrives at.
        teacher: the name of the teacher that wrote it.
        brief: the whole thought in one line, for ``prompts.detail: brief``; unlike ``statements`` it may read the
            closing rating, which ranking prompts show. Empty falls back to the last statement.
    """

    statements: tuple[str, ...]
    rating: int
    teacher: str
    brief: str = ""

    @property
    def one_line(self) -> str:
        """The brief form."""
        return self.brief or self.statements[-1]


@dataclass(frozen=True)
class Task:
    """A chain to think about.

    Attributes:
        name: the key that the thought will be stored under.
        chain: the chain.
        key: seeds the randomness.
        tried: attempts at it that were rejected before this start.
    """

    name: str
    chain: ChainView
    key: str
    tried: int = 0


@dataclass(frozen=True)
class Written:
    """A validated thought on the task of a row; None where the teacher gave up for good."""

    row: int
    thought: Thought | None


@dataclass(frozen=True)
class Rejected:
    """An attempt that the validator did not pass; kept beside the thoughts.

    Attributes:
        row: of the task.
        attempt: 0-based number of the attempt.
        reason: why.
        text: what the teacher answered.
    """

    row: int
    attempt: int
    reason: str
    text: str


@dataclass(frozen=True)
class GivenUp:
    """The task of a row has no attempts left; a later start that allows more of them goes on with it."""

    row: int


Outcome = Written | Rejected | GivenUp


class Teacher(Protocol):
    """Writes thoughts. ``name`` goes into the thought, ``version`` into the key it is stored under."""

    @property
    def name(self) -> str:
        """Short name: ``template``, ``local``, ``endpoint``."""
        ...

    @property
    def version(self) -> str:
        """Everything that changes what it writes: wording, model, sampling settings."""
        ...

    def write_each(self, tasks: Sequence[Task]) -> Generator[list[Outcome], None, None]:
        """Outcomes in blocks, as they come and in any order; a block may be empty.

        What is in a block is stored before the next one is asked for. Every task ends in one :class:`Written` or
        :class:`GivenUp`, unless the teacher has to stop.

        Raises:
            RuntimeError: the teacher has to stop before the end; what was handed over counts.
        """
        ...


class BatchTeacher:
    """A teacher that writes many thoughts with one call; its blocks are batches in the order of the tasks."""

    block = 256

    def write_many(self, chains: Sequence[ChainView], keys: Sequence[str]) -> list[Thought | None]:
        """A validated thought for each chain, None where the teacher gave up. ``keys`` seed the randomness."""
        raise NotImplementedError

    def write_each(self, tasks: Sequence[Task]) -> Generator[list[Outcome], None, None]:
        """As :class:`Teacher` says."""
        for start in range(0, len(tasks), self.block):
            part = tasks[start:start + self.block]
            thoughts = self.write_many([task.chain for task in part], [task.key for task in part])
            yield [Written(start + i, thought) for i, thought in enumerate(thoughts)]


def keyed_number(*key: str) -> int:
    """64 bits of a hash of the key: the same on every machine, and independent of other keys."""
    text = "\x1f".join(key).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def pick(options: Sequence[_T], *key: str) -> _T:
    """One of the options, by :func:`keyed_number`."""
    return options[keyed_number(*key) % len(options)]


Phrase = Callable[[Sequence[str], str], str]
"""``phrase(options, slot)``: one of the phrasings of the statement that stands at a slot of a thought."""


def phrasing(*key: str, varied: bool) -> Phrase:
    """Phrasings by :func:`keyed_number` of key and slot, or always the first."""
    return lambda options, slot: pick(options, *key, slot) if varied else options[0]


def every_phrasing() -> list[Phrase]:
    """Phrasings that between them take every option of every slot."""
    def nth(number: int) -> Phrase:
        def phrase(options: Sequence[str], slot: str) -> str:
            if len(options) > MOST_PHRASINGS:
                raise ValueError(f"MOST_PHRASINGS must be >= {len(options)}, the options of {slot!r}; got "
                                 f"{MOST_PHRASINGS}")
            return options[number % len(options)]
        return phrase

    return [nth(number) for number in range(MOST_PHRASINGS)]


def join_words(words: Sequence[str]) -> str:
    """``Action``, ``Action and Crime``, ``Action, Crime and Drama``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def end_once(sentence: str) -> str:
    """A sentence without the full stop behind a title that ends in ``!``, ``?`` or a stop of its own."""
    return sentence[:-1] if sentence[-2:] in ("!.", "?.", "..", "….") else sentence
