"""Queries: the tasks of every stage, frozen to JSON Lines that carry raw ids and their own hash in the name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from r2rec_jax.data.interactions import Dataset

Split = Literal["test", "validation", "sft", "rl"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Query:
    """One ranking task: order ``candidates`` for a user who is about to choose ``target``.

    Attributes:
        query_id: ``<split>-<user_id>-<item_id>``.
        split: what the query is for.
        user_idx: the user.
        target: item_idx of the item to find.
        place: the target's place among the user's events; events with a smaller place are visible.
        candidates: item_idx, shuffled, the target among them.
    """

    query_id: str
    split: Split
    user_idx: int
    target: int
    place: int
    candidates: tuple[int, ...]


def write_lines(folder: Path, stem: str, rows: Iterable[dict[str, Any]]) -> str:
    """Write ``rows`` as ``<stem>-<first 16 digits of the sha256>.jsonl`` and return that name."""
    text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows).encode()
    name = f"{stem}-{hashlib.sha256(text).hexdigest()[:16]}.jsonl"
    (folder / name).write_bytes(text)
    return name


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of :func:`write_lines`.

    Raises:
        ValueError: the file is not what its name says.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} must be in {path.parent}; the file is missing; prepare the data again")
    raw = path.read_bytes()
    found, expected = hashlib.sha256(raw).hexdigest()[:16], path.stem.rpartition("-")[2]
    if found != expected:
        raise ValueError(f"the sha256 of {path.name} must begin with {expected}; got {found}: the file was changed; "
                         f"prepare the data again ({path})")
    return [json.loads(line) for line in raw.decode().split("\n") if line]


def save_queries(folder: Path, queries: Iterable[Query], dataset: Dataset) -> str:
    """Freeze ``queries`` to a file in ``folder``, in order, by raw ids; returns the file's name."""
    return write_lines(folder, "queries", (
        {
            "query_id": query.query_id,
            "split": query.split,
            "user_id": dataset.users[query.user_idx].user_id,
            "target": dataset.items[query.target].item_id,
            "place": query.place,
            "candidates": [dataset.items[item].item_id for item in query.candidates],
        }
        for query in queries
    ))


def load_queries(path: Path, dataset: Dataset) -> list[Query]:
    """Read frozen queries back, in file order.

    Raises:
        ValueError: the file was changed, or names users or items that ``dataset`` does not have.
    """
    return [
        Query(row["query_id"], row["split"], dataset.user_index(row["user_id"]), dataset.item_index(row["target"]),
              int(row["place"]), tuple(dataset.item_index(item) for item in row["candidates"]))
        for row in read_lines(path)
    ]
