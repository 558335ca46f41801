"""Thoughts on disk: one JSON line each, keyed by the sha256 of what they depend on, so none is written twice.

    thoughts.jsonl    {"key", "thought"}, the thought null where a teacher gave up for good
    rejected.jsonl    {"key", "attempt", "reason", "text", "teacher"}, attempts that the validator did not pass

A line is appended, flushed and fsynced before the thought is used (:class:`~r2rec_jax.files.Journal`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from r2rec_jax.config import fingerprint
from r2rec_jax.data.interactions import Item, User
from r2rec_jax.files import Journal
from r2rec_jax.prompts.answer import TAG
from r2rec_jax.prompts.templates import TEMPLATE_VERSION
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.thoughts.teacher import GivenUp, Rejected, Task, Teacher, Thought, Written


def _item_facts(item: Item) -> list:
    facts = [item.item_id, item.title, item.year, list(item.genres)]
    return [*facts, [list(pair) for pair in item.details]] if item.details else facts


def _user_facts(user: User) -> list:
    return [user.user_id, [list(pair) for pair in user.attributes]]


def thought_key(chain: ChainView, teacher: Teacher, key: str) -> str:
    """Sha256 of the chain's facts, the prompt templates' version, the teacher and its random key."""
    facts = [_user_facts(chain.user), _item_facts(chain.item0), _user_facts(chain.neighbour), _item_facts(chain.item1),
             [chain.rating_u0, chain.rating_n0, chain.rating_n1, chain.rating_u1]]
    return fingerprint("thought", facts, TEMPLATE_VERSION, teacher.name, teacher.version, key)


class ThoughtStore:
    """An append-only file of thoughts, None for chains that a teacher gave up for good, and one of rejected attempts.

    Args:
        path: the file of thoughts; ``rejected.jsonl`` lies beside it. Both are created on the first append, their
            folder must exist.

    Raises:
        ValueError: a line other than the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rejected_path = path.with_name("rejected.jsonl")
        fix = "delete the file to write the thoughts again"
        self._journal = Journal(path, _stored, what="a stored thought", fix=fix)
        self._thoughts: dict[str, Thought | None] = {
            key: thought for key, thought in self._journal.rows
            if thought is None or not any(map(TAG.search, thought.statements))}  # those no completion can be made of
        self._rejected = Journal(self.rejected_path, _tried, what="a rejected attempt", fix=fix)
        self._tried: Counter[str] = Counter()
        for key, attempt in self._rejected.rows:
            self._tried[key] = max(self._tried[key], attempt + 1)

    def __len__(self) -> int:
        return len(self._thoughts)

    def __contains__(self, key: str) -> bool:
        return key in self._thoughts

    def __getitem__(self, key: str) -> Thought | None:
        return self._thoughts[key]

    def get(self, key: str) -> Thought | None:
        """The thought of a key; None where there is none."""
        return self._thoughts.get(key)

    def tried(self, key: str) -> int:
        """How many attempts at a thought were rejected."""
        return self._tried[key]

    def put_many(self, rows: Iterable[tuple[str, Thought | None]]) -> None:
        """Append thoughts and make them durable; those that are there already stay as they are."""
        rows = list(dict((key, thought) for key, thought in rows if key not in self._thoughts).items())
        self._journal.append({"key": key, "thought": asdict(thought) if thought else None} for key, thought in rows)
        self._thoughts.update(rows)

    def reject_many(self, teacher: str, rows: Iterable[tuple[str, Rejected]]) -> None:
        """Append rejected attempts and make them durable."""
        rows = list(rows)
        self._rejected.append({"key": key, "attempt": found.attempt, "reason": found.reason, "text": found.text,
                               "teacher": teacher} for key, found in rows)
        for key, found in rows:
            self._tried[key] = max(self._tried[key], found.attempt + 1)


def _stored(row: Any) -> tuple[str, Thought | None]:
    key, plain = row["key"], row["thought"]
    if plain is None:
        return key, None
    thought = Thought(tuple(plain["statements"]), plain["rating"], plain["teacher"], plain["brief"])
    texts = (key, *thought.statements, thought.teacher, thought.brief)
    if not all(isinstance(text, str) for text in texts) or not isinstance(thought.rating, int):
        raise ValueError("a stored thought has strings and a whole rating")
    return key, thought


def _tried(row: Any) -> tuple[str, int]:
    key, attempt = row["key"], row["attempt"]
    if not isinstance(key, str) or not isinstance(attempt, int):
        raise ValueError("a rejected attempt has a key and a number")
    return key, attempt


def collect(
    teacher: Teacher,
    store: ThoughtStore,
    chains: Sequence[ChainView],
    keys: Sequence[str],
    *,
    on_progress: Callable[[int], None] | None = None,
) -> list[Thought | None]:
    """The thoughts of ``chains``: out of the store, or from the teacher and into the store, block by block.

    Args:
        teacher: writes what the store lacks.
        store: read and appended to.
        chains: what to think about; equal ones are written once.
        keys: random keys, one a chain.
        on_progress: called with the number of chains newly done (those in the store at once).

    Returns:
        One thought a chain, None where the teacher gave up.

    Raises:
        RuntimeError: the teacher had to stop; what it wrote is in the store.
    """
    wanted = [thought_key(chain, teacher, key) for chain, key in zip(chains, keys, strict=True)]
    missing = {name: row for row, name in enumerate(wanted) if name not in store}
    tasks = [Task(name, chains[row], keys[row], store.tried(name)) for name, row in missing.items()]
    report = on_progress or (lambda _: None)
    report(len(chains) - len(tasks))
    with closing(teacher.write_each(tasks)) as blocks:
        for block in blocks:
            store.reject_many(teacher.name, ((tasks[o.row].name, o) for o in block if isinstance(o, Rejected)))
            store.put_many((tasks[o.row].name, o.thought) for o in block if isinstance(o, Written))
            report(sum(isinstance(o, Written | GivenUp) for o in block))
    return [store.get(name) for name in wanted]
