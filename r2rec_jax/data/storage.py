"""A data set on disk, inside a prepared folder: the events as arrays, users and items as columns.

    event_items.npy event_ratings.npy event_timestamps.npy event_training.npy    by user, then by place [E]
    event_offsets.npy                                                            int64 [U+1]; user and place follow
    users.parquet items.parquet      raw ids, their hash keys, and what the source says, by index
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from r2rec_jax.data.interactions import Dataset, Interactions
from r2rec_jax.data.tables import ItemTable, UserTable

_ATTRIBUTE, _DETAIL = "attribute:", "detail:"
_ROW_GROUP = 1 << 20


def write_dataset(folder: Path, dataset: Dataset, training: NDArray[np.bool_]) -> None:
    """Write events, users and items into ``folder``; the same data gives the same bytes."""
    events = dataset.interactions
    arrays = {"items": events.item_idx, "ratings": events.rating, "timestamps": events.timestamp,
              "offsets": events.offsets, "training": training}
    for name, array in arrays.items():
        np.save(folder / f"event_{name}.npy", array, allow_pickle=False)
    users, items = dataset.users, dataset.items
    _write_columns(folder / "users.parquet", {
        "id": users.ids, "key": pa.array(users.keys()),
        **{_ATTRIBUTE + name: column for name, column in users.attributes}})
    _write_columns(folder / "items.parquet", {
        "id": items.ids, "key": pa.array(items.keys()), "title": items.title, "year": items.year,
        "genres": items.genres, **{_DETAIL + name: column for name, column in items.details}})


def read_dataset(folder: Path, manifest: Mapping[str, Any]) -> tuple[Dataset, NDArray[np.bool_]]:
    """The data set of a prepared folder, and which of its events are training edges, bool [E].

    Args:
        folder: the prepared folder; its files have been checked against the manifest.
        manifest: for the name, the domain, the rating scale, the notes and the sources.
    """
    columns = _read_columns(folder / "users.parquet")
    users = UserTable(columns["id"], _named(columns, _ATTRIBUTE), columns["key"].to_numpy())
    columns = _read_columns(folder / "items.parquet")
    items = ItemTable(columns["id"], columns["title"], columns["year"], columns["genres"], _named(columns, _DETAIL),
                      columns["key"].to_numpy())
    del columns
    arrays = {name: np.load(folder / f"event_{name}.npy", allow_pickle=False)
              for name in ("items", "ratings", "timestamps", "offsets", "training")}
    offsets = arrays["offsets"]
    user = np.repeat(np.arange(len(users), dtype=np.int32), np.diff(offsets))
    place = np.arange(len(user), dtype=np.int32) - offsets[:-1].astype(np.int32)[user]
    interactions = Interactions(user, arrays["items"], arrays["ratings"], arrays["timestamps"], place, offsets)
    low, high = manifest["rating_scale"]
    dataset = Dataset(manifest["dataset"], manifest["domain"], items, users, interactions, (low, high),
                      manifest["notes"], manifest["sources"])
    return dataset, arrays["training"]


def _write_columns(path: Path, columns: Mapping[str, pa.Array]) -> None:
    pq.write_table(pa.table(dict(columns)), path, compression="zstd", row_group_size=_ROW_GROUP)


def _read_columns(path: Path) -> dict[str, pa.Array]:
    """Columns of a file of :func:`_write_columns`, each in one piece."""
    table = pq.read_table(path, memory_map=False)
    return {name: table.column(name).combine_chunks() for name in table.column_names}


def _named(columns: Mapping[str, pa.Array], prefix: str) -> list[tuple[str, pa.Array]]:
    return [(name.removeprefix(prefix), column) for name, column in columns.items() if name.startswith(prefix)]
