"""Users, items and their interactions: the records that every later step reads.

``user_id`` and ``item_id`` are the raw ids of the source, ``user_idx`` and ``item_idx`` their 0-based indices here.
Indices follow the order of the ids (numeric where all ids are numbers), so two sources of the same data agree.

A user's events are ordered by timestamp; ties are broken by a seeded hash of (user, item). Many last positives of
MovieLens tie in time with the one before, and an order by item id would make the highest id the target. ``place`` is
the 0-based position in that order, and "before" always means a smaller place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.data.randomness import fold, root_key
from r2rec_jax.data.tables import Item, ItemTable, User, UserTable, id_order

__all__ = ["Dataset", "Interactions", "Item", "ItemTable", "User", "UserTable", "build_dataset"]

_ROWS_AT_ONCE = 1 << 22
Table = TypeVar("Table", UserTable, ItemTable)


@dataclass(frozen=True, eq=False)
class Interactions:
    """All events, sorted by user and then by place.

    Attributes:
        user_idx, item_idx: int32 [E].
        rating: float32 [E].
        timestamp: int64 [E], seconds, or milliseconds where the source has them.
        place: int32 [E], 0-based order within the user.
        offsets: int64 [U+1]; user u's events are rows ``offsets[u]:offsets[u+1]``, so ``offsets[u] + place`` is a row.
    """

    user_idx: NDArray[np.int32]
    item_idx: NDArray[np.int32]
    rating: NDArray[np.float32]
    timestamp: NDArray[np.int64]
    place: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user_idx)

    def rows(self, user_idx: int, place: int | None = None) -> slice:
        """The rows of a user's events before ``place`` (all of them when None), oldest first."""
        start, stop = int(self.offsets[user_idx]), int(self.offsets[user_idx + 1])
        return slice(start, stop if place is None else min(stop, start + place))


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set.

    Attributes:
        name: as in ``data.name``.
        domain: which prompt templates fit (``movies``).
        items, users: by index, as columns that read like sequences of :class:`Item` and :class:`User`.
        interactions: the events.
        rating_scale: lowest and highest possible rating.
        notes: counts of what was dropped or merged while reading.
        sources: file name -> sha256 of the files read.
    """

    name: str
    domain: str
    items: ItemTable
    users: UserTable
    interactions: Interactions
    rating_scale: tuple[float, float] = (1.0, 5.0)
    notes: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def user_keys(self) -> NDArray[np.uint64]:
        """Hash key of every user's raw id, uint64 [U]."""
        return self.users.keys()

    @property
    def item_keys(self) -> NDArray[np.uint64]:
        """Hash key of every item's raw id, uint64 [I]."""
        return self.items.keys()

    def user_index(self, user_id: str) -> int:
        """The index of a raw user id.

        Raises:
            ValueError: no such user.
        """
        index = self.users.find(user_id)
        if index is None:
            raise self._unknown("user", "who", user_id, self.users)
        return index

    def item_index(self, item_id: str) -> int:
        """The index of a raw item id.

        Raises:
            ValueError: no such item.
        """
        index = self.items.find(item_id)
        if index is None:
            raise self._unknown("item", "that", item_id, self.items)
        return index

    def user_indices(self, user_ids: Sequence[str]) -> NDArray[np.int64]:
        """The indices of many raw user ids at once, int64.

        Raises:
            ValueError: one of them is of no user.
        """
        found = self.users.find_all(user_ids)
        if (found < 0).any():
            raise self._unknown("user", "who", user_ids[int((found < 0).argmax())], self.users)
        return found

    def item_indices(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """The indices of many raw item ids at once, int64.

        Raises:
            ValueError: one of them is of no item.
        """
        found = self.items.find_all(item_ids)
        if (found < 0).any():
            raise self._unknown("item", "that", item_ids[int((found < 0).argmax())], self.items)
        return found

    def _unknown(self, what: str, which: str, raw_id: str, table: UserTable | ItemTable) -> ValueError:
        return ValueError(f"{what} must be one of the {len(table)} {what}s of {self.name} {which} have interactions; "
                          f"got {raw_id!r}; known ids look like {table.ids[0].as_py()!r}")

    def history(self, user_idx: int, place: int | None = None) -> list[tuple[int, float]]:
        """(item_idx, rating) of a user's events before ``place``, oldest first."""
        rows = self.interactions.rows(user_idx, place)
        return list(zip(self.interactions.item_idx[rows].tolist(), self.interactions.rating[rows].tolist(),
                        strict=True))


def _keep_last(user: NDArray, item: NDArray, n_items: int) -> NDArray[np.int64] | None:
    """Rows to keep, in order, when of equal (user, item) pairs the last one wins; None when no pair comes twice."""
    pairs = user.astype(np.int64)
    pairs *= n_items
    pairs += item
    ordered = np.sort(pairs)
    if not (ordered[1:] == ordered[:-1]).any():
        return None
    del ordered
    order = np.argsort(pairs, kind="stable")
    pairs = pairs[order]
    return np.sort(order[np.flatnonzero(np.r_[pairs[1:] != pairs[:-1], True])])


def _used(rows: NDArray, table: UserTable | ItemTable) -> tuple[NDArray[np.int64] | None, NDArray[np.int32] | None]:
    """Source positions that occur in ``rows``, in index order, and the map source position -> index.

    Both are None where all positions occur and are in index order already, which makes positions indices.
    """
    order = id_order(table.ids)
    seen = np.zeros(len(table), dtype=bool)
    seen[rows] = True
    if order is None and seen.all():
        return None, None
    positions = np.flatnonzero(seen) if order is None else order[seen[order]]
    index = np.full(len(table), -1, dtype=np.int32)
    index[positions] = np.arange(len(positions), dtype=np.int32)
    return positions, index


def _index(rows: NDArray, table: Table) -> tuple[Table, NDArray[np.int32]]:
    """The rows of ``table`` that occur, in index order, and ``rows`` as indices into them."""
    positions, index = _used(rows, table)
    if positions is None or index is None:
        return table, rows
    return table.take(positions), index[rows]


def _tie_keys(user: NDArray, item: NDArray, user_keys: NDArray, item_keys: NDArray, split_seed: int,
              ) -> NDArray[np.uint64]:
    """The seeded hash of every event's user and item, in pieces: hashing takes a multiple of the result's memory."""
    root = root_key(split_seed, "ties")
    ties = np.empty(len(user), dtype=np.uint64)
    for start in range(0, len(user), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        ties[part] = fold(fold(root, user_keys[user[part]]), item_keys[item[part]])
    return ties


def build_dataset(
    *,
    name: str,
    domain: str,
    users: Sequence[User],
    items: Sequence[Item],
    user_rows: NDArray,
    item_rows: NDArray,
    rating: NDArray,
    timestamp: NDArray,
    split_seed: int,
    rating_scale: tuple[float, float] = (1.0, 5.0),
    notes: Mapping[str, int] | None = None,
    sources: Mapping[str, str] | None = None,
) -> Dataset:
    """Order, index and merge raw events.

    Users and items without an event are left out (counted): a movie that nobody ever rated is no fair negative, and
    is none of the items of the published counts (3,706 of the 3,883 movies in MovieLens-1M's file).

    Args:
        name, domain, rating_scale, sources: as in :class:`Dataset`.
        users, items: as the source lists them, ids unique.
        user_rows, item_rows: positions in ``users`` and ``items``, one an event, in file order.
        rating, timestamp: of every event.
        split_seed: breaks ties in time.
        notes: counts to carry over.

    Returns:
        The data set; ``notes`` gains ``duplicates``, ``users_without_interactions``, ``items_without_interactions``.
    """
    user_table, item_table = UserTable.from_rows(users), ItemTable.from_rows(items)
    user, item = np.asarray(user_rows, np.int32), np.asarray(item_rows, np.int32)
    stars, seconds = np.asarray(rating, np.float32), np.asarray(timestamp, np.int64)
    rows = len(user)
    kept = _keep_last(user, item, len(item_table))
    if kept is not None:
        user, item, stars, seconds = user[kept], item[kept], stars[kept], seconds[kept]
    for what, column, table in (("user", user, user_table), ("item", item, item_table)):
        if len(column) and (column.min() < 0 or column.max() >= len(table)):
            raise ValueError(f"{what}_rows must be positions in 0..{len(table) - 1}; got {column.min()} to "
                             f"{column.max()}; list every {what} of the events")
    kept_users, user = _index(user, user_table)
    kept_items, item = _index(item, item_table)
    ties = _tie_keys(user, item, kept_users.keys(), kept_items.keys(), split_seed)
    order = np.lexsort((ties, seconds, user))
    del ties
    user, item, stars, seconds = user[order], item[order], stars[order], seconds[order]
    del order
    offsets = np.zeros(len(kept_users) + 1, dtype=np.int64)
    np.cumsum(np.bincount(user, minlength=len(kept_users)), out=offsets[1:])
    place = (np.arange(len(user)) - offsets[user]).astype(np.int32)
    counts = dict(notes or {}) | {
        "duplicates": rows - len(user),
        "users_without_interactions": len(user_table) - len(kept_users),
        "items_without_interactions": len(item_table) - len(kept_items),
    }
    return Dataset(name, domain, kept_items, kept_users, Interactions(user, item, stars, seconds, place, offsets),
                   rating_scale, counts, dict(sources or {}))
