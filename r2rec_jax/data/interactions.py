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
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.data.randomness import fold, id_keys, root_key


@dataclass(frozen=True)
class Item:
    """One item. ``title`` carries no year; ``year`` is None where the source gives none; ``details`` are further facts
    that a prompt shows, for example ``(("author", "A. Writer"), ("price", "10 to 25 dollars"))``."""

    item_id: str
    title: str
    year: int | None
    genres: tuple[str, ...]
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class User:
    """One user and what the source says of them, for example ``(("age", "24"), ("gender", "M"))``."""

    user_id: str
    attributes: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class Interactions:
    """All events, sorted by user and then by place.

    Attributes:
        user_idx, item_idx: int32 [E].
        rating: float32 [E].
        timestamp: int64 [E], seconds.
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
        items, users: by index.
        interactions: the events.
        rating_scale: lowest and highest possible rating.
        notes: counts of what was dropped or merged while reading.
        sources: file name -> sha256 of the files read.
    """

    name: str
    domain: str
    items: tuple[Item, ...]
    users: tuple[User, ...]
    interactions: Interactions
    rating_scale: tuple[float, float] = (1.0, 5.0)
    notes: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {user.user_id: index for index, user in enumerate(self.users)}

    @cached_property
    def _item_rows(self) -> dict[str, int]:
        return {item.item_id: index for index, item in enumerate(self.items)}

    @cached_property
    def user_keys(self) -> NDArray[np.uint64]:
        """Hash key of every user's raw id, uint64 [U]."""
        return id_keys([user.user_id for user in self.users])

    @cached_property
    def item_keys(self) -> NDArray[np.uint64]:
        """Hash key of every item's raw id, uint64 [I]."""
        return id_keys([item.item_id for item in self.items])

    def user_index(self, user_id: str) -> int:
        """The index of a raw user id.

        Raises:
            ValueError: no such user.
        """
        if user_id not in self._user_rows:
            raise ValueError(f"user must be one of the {len(self.users)} users of {self.name} who have interactions; "
                             f"got {user_id!r}; known ids look like {self.users[0].user_id!r}")
        return self._user_rows[user_id]

    def item_index(self, item_id: str) -> int:
        """The index of a raw item id.

        Raises:
            ValueError: no such item.
        """
        if item_id not in self._item_rows:
            raise ValueError(f"item must be one of the {len(self.items)} items of {self.name} that have interactions; "
                             f"got {item_id!r}; known ids look like {self.items[0].item_id!r}")
        return self._item_rows[item_id]

    def history(self, user_idx: int, place: int | None = None) -> list[tuple[int, float]]:
        """(item_idx, rating) of a user's events before ``place``, oldest first."""
        rows = self.interactions.rows(user_idx, place)
        return list(zip(self.interactions.item_idx[rows].tolist(), self.interactions.rating[rows].tolist(),
                        strict=True))


def _id_order(ids: Sequence[str]) -> list[int]:
    """Positions of ``ids`` in index order: numeric when all are decimal numbers, else as text."""
    if all(raw.isascii() and raw.isdigit() for raw in ids):
        return sorted(range(len(ids)), key=lambda position: (int(ids[position]), ids[position]))
    return sorted(range(len(ids)), key=lambda position: ids[position])


def _keep_last(user: NDArray, item: NDArray, n_items: int) -> NDArray[np.int64]:
    """Rows to keep, in order, when of equal (user, item) pairs the last one wins."""
    pairs = user.astype(np.int64) * n_items + item
    _, first_from_the_end = np.unique(pairs[::-1], return_index=True)
    return np.sort(len(pairs) - 1 - first_from_the_end)


def _used(rows: NDArray, ids: Sequence[str]) -> tuple[list[int], NDArray[np.int32]]:
    """Source positions that occur in ``rows``, in index order, and the map source position -> index."""
    seen = np.zeros(len(ids), dtype=bool)
    seen[rows] = True
    positions = [position for position in _id_order(ids) if seen[position]]
    index = np.full(len(ids), -1, dtype=np.int32)
    index[positions] = np.arange(len(positions), dtype=np.int32)
    return positions, index


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
    user_rows, item_rows = np.asarray(user_rows), np.asarray(item_rows)
    kept = _keep_last(user_rows, item_rows, len(items))
    duplicates = len(user_rows) - len(kept)
    user_rows, item_rows = user_rows[kept], item_rows[kept]
    user_positions, user_index = _used(user_rows, [user.user_id for user in users])
    item_positions, item_index = _used(item_rows, [item.item_id for item in items])
    kept_users = tuple(users[position] for position in user_positions)
    kept_items = tuple(items[position] for position in item_positions)
    user, item = user_index[user_rows], item_index[item_rows]
    seconds = np.asarray(timestamp, dtype=np.int64)[kept]
    user_keys = id_keys([u.user_id for u in kept_users])
    item_keys = id_keys([i.item_id for i in kept_items])
    ties = fold(fold(root_key(split_seed, "ties"), user_keys)[user], item_keys[item])
    order = np.lexsort((ties, seconds, user))
    user, item = user[order], item[order]
    offsets = np.zeros(len(kept_users) + 1, dtype=np.int64)
    np.cumsum(np.bincount(user, minlength=len(kept_users)), out=offsets[1:])
    place = (np.arange(len(user)) - offsets[user]).astype(np.int32)
    interactions = Interactions(user, item, np.asarray(rating, dtype=np.float32)[kept][order], seconds[order], place,
                                offsets)
    counts = dict(notes or {}) | {
        "duplicates": duplicates,
        "users_without_interactions": len(users) - len(kept_users),
        "items_without_interactions": len(items) - len(kept_items),
    }
    return Dataset(name, domain, kept_items, kept_users, interactions, rating_scale, counts, dict(sources or {}))
