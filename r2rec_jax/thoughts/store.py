"""Thoughts on disk: one JSON line each, keyed by the sha256 of what they depend on, so none is written twice.

A line is appended, flushed and fsynced before the thought is used. A process that dies while writing leaves a torn last
line; it is ignored, and the file is cut back to the last whole line before the next append. A broken line elsewhere is
damage that no crash of ours explains, and an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from r2rec_jax.config import fingerprint
from r2rec_jax.data.interactions import Item, User
from r2rec_jax.prompts.templates import TEMPLATE_VERSION
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.thoughts.teacher import Teacher, Thought


def _item_facts(item: Item) -> list:
    return [item.item_id, item.title, item.year, list(item.genres)]


def _user_facts(user: User) -> list:
    return [user.user_id, [list(pair) for pair in user.attributes]]


def thought_key(chain: ChainView, teacher: Teacher, key: str) -> str:
    """Sha256 of the chain's facts, the prompt templates' version, the teacher and its random key."""
    facts = [_user_facts(chain.user), _item_facts(chain.item0), _user_facts(chain.neighbour), _item_facts(chain.item1),
             [chain.rating_u0, chain.rating_n0, chain.rating_n1, chain.rating_u1]]
    return fingerprint("thought", facts, TEMPLATE_VERSION, teacher.name, teacher.version, key)


class ThoughtStore:
    """An append-only JSONL file of thoughts, None for chains that a teacher gave up.

    Args:
        path: the file; created on the first append, its folder must exist.

    Raises:
        ValueError: a line other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thoughts: dict[str, Thought | None] = {}
        self._size = 0
        if path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._thoughts)

    def __contains__(self, key: str) -> bool:
        return key in self._thoughts

    def __getitem__(self, key: str) -> Thought | None:
        return self._thoughts[key]

    def _read(self) -> None:
        data = self.path.read_bytes()
        lines = data.split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                row = json.loads(line)
                self._thoughts[row["key"]] = _thought(row["thought"])
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) - 1 or (number == len(lines) - 2 and not lines[-1]):
                    break
                raise ValueError(f"every line of {self.path} must be a stored thought; line {number} is not "
                                 f"({type(error).__name__}); delete the file to write the thoughts again") from None
            self._size += len(line) + 1

    def put_many(self, rows: Iterable[tuple[str, Thought | None]]) -> None:
        """Append thoughts and make them durable."""
        rows = [(key, thought) for key, thought in rows if key not in self._thoughts]
        if not rows:
            return
        block = b"".join(json.dumps({"key": key, "thought": asdict(thought) if thought else None},
                                    ensure_ascii=True).encode() + b"\n" for key, thought in rows)
        with open(self.path, "r+b" if self.path.exists() else "x+b") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write(block)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(block)
        self._thoughts.update(rows)


def _thought(row: dict | None) -> Thought | None:
    if row is None:
        return None
    thought = Thought(tuple(row["statements"]), row["rating"], row["teacher"], row["brief"])
    texts = (*thought.statements, thought.teacher, thought.brief)
    if not all(isinstance(text, str) for text in texts) or not isinstance(thought.rating, int):
        raise ValueError("a stored thought has strings and a whole rating")
    return thought


def collect(
    teacher: Teacher,
    store: ThoughtStore,
    chains: Sequence[ChainView],
    keys: Sequence[str],
    *,
    batch: int = 256,
    on_progress: Callable[[int], None] | None = None,
) -> list[Thought | None]:
    """The thoughts of ``chains``: out of the store, or from the teacher and into the store.

    Args:
        teacher: writes what the store lacks.
        store: read and appended to.
        chains: what to think about; equal ones are written once.
        keys: random keys, one a chain.
        batch: thoughts written between two appends.
        on_progress: called with the number of chains newly done (those in the store at once).

    Returns:
        One thought a chain, None where the teacher gave up.
    """
    wanted = [thought_key(chain, teacher, key) for chain, key in zip(chains, keys, strict=True)]
    missing = list({name: row for row, name in enumerate(wanted) if name not in store}.items())
    if on_progress:
        on_progress(len(chains) - len(missing))
    for start in range(0, len(missing), batch):
        part = missing[start:start + batch]
        thoughts = teacher.write_many([chains[row] for _, row in part], [keys[row] for _, row in part])
        store.put_many((name, thought) for (name, _), thought in zip(part, thoughts, strict=True))
        if on_progress:
            on_progress(len(part))
    return [store[name] for name in wanted]
