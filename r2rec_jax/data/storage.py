"""A data set on disk, inside a prepared folder: the events as arrays, users and items as rows.

    interactions.npz         the events and which of them are training edges
    users.jsonl items.jsonl  raw ids and what the source says, by index
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.data.interactions import Dataset, Interactions, Item, User

_EVENT_ARRAYS = ("user_idx", "item_idx", "rating", "timestamp", "place", "offsets")


def write_dataset(folder: Path, dataset: Dataset, training: NDArray[np.bool_]) -> None:
    """Write events, users and items into ``folder``; the same data gives the same bytes."""
    arrays = {name: getattr(dataset.interactions, name) for name in _EVENT_ARRAYS}
    np.savez(folder / "interactions.npz", training=training, **arrays)
    _write_rows(folder / "users.jsonl", (asdict(user) for user in dataset.users))
    _write_rows(folder / "items.jsonl", (asdict(item) for item in dataset.items))


def read_dataset(folder: Path, manifest: Mapping[str, Any]) -> tuple[Dataset, NDArray[np.bool_]]:
    """The data set of a prepared folder, and which of its events are training edges, bool [E].

    Args:
        folder: the prepared folder; its files have been checked against the manifest.
        manifest: for the name, the domain, the rating scale, the notes and the sources.
    """
    users = tuple(User(row["user_id"], tuple((key, value) for key, value in row["attributes"]))
                  for row in _read_rows(folder / "users.jsonl"))
    items = tuple(Item(row["item_id"], row["title"], row["year"], tuple(row["genres"]))
                  for row in _read_rows(folder / "items.jsonl"))
    with np.load(folder / "interactions.npz", allow_pickle=False) as arrays:
        interactions = Interactions(**{name: arrays[name] for name in _EVENT_ARRAYS})
        training = arrays["training"]
    low, high = manifest["rating_scale"]
    dataset = Dataset(manifest["dataset"], manifest["domain"], items, users, interactions, (low, high),
                      manifest["notes"], manifest["sources"])
    return dataset, training


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
