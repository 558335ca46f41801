"""Queries and their candidates: the tasks of every stage, frozen to JSON Lines that carry raw ids and their own hash in
the name.

    queries-<hash>.jsonl               query_id, split, user_id, target, place
    candidates-<sampler>-<hash>.jsonl  query_id, candidates (shuffled, the target among them)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from r2rec_jax.data.candidates import CandidateLists
from r2rec_jax.data.interactions import Dataset

Split = Literal["test", "validation", "sft", "rl"]
SPLITS: tuple[Split, ...] = get_args(Split)
EVALUATED: tuple[Split, ...] = ("test", "validation")
"""Splits whose queries have a list from every sampler."""


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
        raise ValueError(f"{path.name} must be in {path.parent}; the file is missing; delete the folder and prepare "
                         "the data again")
    raw = path.read_bytes()
    found, expected = hashlib.sha256(raw).hexdigest()[:16], path.stem.rpartition("-")[2]
    if found != expected:
        raise ValueError(f"the sha256 of {path.name} must begin with {expected}; got {found}: the file was changed; "
                         f"delete the folder and prepare the data again ({path})")
    return [json.loads(line) for line in raw.decode().split("\n") if line]


def split_name(rule: Literal["last-positive", "global-time"], split: Split) -> str:
    """How result rows call the queries that a number is of: test queries carry the name of the rule, ``data.split``."""
    if split == "test":
        return rule
    if split == "validation":
        return "last-positive-but-one" if rule == "last-positive" else "global-time (validation)"
    return f"training ({split})"


def save_queries(folder: Path, queries: Sequence[Query], dataset: Dataset) -> str:
    """Freeze ``queries`` without their candidates to a file in ``folder``, in order; returns the file's name."""
    users = _raw_ids(dataset.users.ids, [query.user_idx for query in queries])
    targets = _raw_ids(dataset.items.ids, [query.target for query in queries])
    return write_lines(folder, "queries", (
        {"query_id": query.query_id, "split": query.split, "user_id": user, "target": target, "place": query.place}
        for query, user, target in zip(queries, users, targets, strict=True)
    ))


def save_candidates(folder: Path, sampler: str, lists: CandidateLists, dataset: Dataset) -> str:
    """Freeze the lists of one sampler to a file in ``folder``, in order; returns the file's name."""
    names = iter(_raw_ids(dataset.items.ids, [item for found in lists.values() for item in found]))
    return write_lines(folder, f"candidates-{sampler}", (
        {"query_id": query_id, "candidates": list(islice(names, len(found)))} for query_id, found in lists.items()))


def load_candidates(path: Path, dataset: Dataset) -> dict[str, tuple[int, ...]]:
    """Read the frozen lists of one sampler back, in file order.

    Raises:
        ValueError: the file was changed, or names items that ``dataset`` does not have.
    """
    rows = read_lines(path)
    items = iter(dataset.item_indices([item for row in rows for item in row["candidates"]]).tolist())
    return {row["query_id"]: tuple(islice(items, len(row["candidates"]))) for row in rows}


def load_queries(path: Path, dataset: Dataset, candidates: CandidateLists) -> list[Query]:
    """Read frozen queries back, in file order.

    Args:
        path: the file of :func:`save_queries`.
        dataset: what the raw ids are of.
        candidates: the lists of ``data.negatives``; every query must have one that holds its target.

    Raises:
        ValueError: the file was changed, names users or items that ``dataset`` does not have, or does not belong to
            ``candidates``.
    """
    rows = read_lines(path)
    users = dataset.user_indices([row["user_id"] for row in rows]).tolist()
    targets = dataset.item_indices([row["target"] for row in rows]).tolist()
    queries = [
        Query(row["query_id"], row["split"], user, target, int(row["place"]), candidates.get(row["query_id"], ()))
        for row, user, target in zip(rows, users, targets, strict=True)
    ]
    check_lists(queries, candidates, path.name)
    return queries


def check_lists(queries: Sequence[Query], candidates: CandidateLists, name: str) -> None:
    """Refuse lists that are not those of ``queries``, naming the first query that shows it.

    Raises:
        ValueError: a query without a list, a list without a query or without its query's target.
    """
    apart = sorted(candidates.keys() ^ {query.query_id for query in queries})
    apart += [query.query_id for query in queries if query.target not in candidates.get(query.query_id, ())]
    if apart:
        raise ValueError(f"every query must have one list of candidates with its target, and no other list may be "
                         f"there; {name} breaks this for {apart[0]}; delete the folder and "
                         "prepare the data again")


def with_lists(queries: Iterable[Query], candidates: CandidateLists) -> list[Query]:
    """The same queries with other candidates."""
    return [replace(query, candidates=candidates[query.query_id]) for query in queries]


def _raw_ids(ids: pa.Array, indices: Sequence[int]) -> list[str]:
    return ids.take(pa.array(indices, pa.int64())).to_pylist()
