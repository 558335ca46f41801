"""Users and items as columns: what ``Dataset.users`` and ``Dataset.items`` are.

A table reads like a sequence of :class:`User` or :class:`Item` (length, index, slice, iteration, equality), and holds
Arrow arrays, so ten million users take a few hundred megabytes and no Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Self, TypeVar, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import ArrayLike, NDArray

from r2rec_jax.data.randomness import digest, id_keys

_arrow: Any = pyarrow.compute  # its functions are made on import, which type checkers do not see
_TEXT = pa.large_string()
_GENRES = pa.list_(pa.string())
_READ_ROWS = 1 << 14

Columns = Sequence[tuple[str, Any]]
"""(name, values) of further columns; values are what :func:`pyarrow.array` takes, null where a row has none."""


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


Row = TypeVar("Row", Item, User)


def as_array(values: Any, kind: pa.DataType = _TEXT) -> pa.Array:
    """``values`` (a list, a NumPy array, an Arrow array or chunked array) as one Arrow array of ``kind``."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if not isinstance(values, pa.Array):
        return pa.array(values, kind)
    return values if values.type == kind else values.cast(kind)


def id_order(ids: pa.Array) -> NDArray[np.int64] | None:
    """Positions of ``ids`` in index order; None when they are in order already.

    Numeric when all are decimal numbers (``2`` before ``10``, of equal numbers the text decides), else by code points.
    """
    keys: dict[str, pa.Array] = {"id": ids}
    if _arrow.all(_arrow.match_substring_regex(ids, r"^[0-9]+$")).as_py():
        digits = _arrow.ascii_ltrim(ids, "0")
        keys = {"length": _arrow.binary_length(digits), "digits": digits, "id": ids}
    elif len(ids) < 2 or _arrow.all(_arrow.less_equal(ids[:-1], ids[1:])).as_py():
        return None
    table = pa.table(keys)
    return _arrow.sort_indices(table, sort_keys=[(name, "ascending") for name in keys]).to_numpy().astype(np.int64)


class _Table(Sequence[Row], Generic[Row]):
    """Columns of equal length; the first is the raw id, and ``_extra`` holds the named ones."""

    def __init__(self, columns: Mapping[str, pa.Array], extra: Columns, keys: NDArray[np.uint64] | None) -> None:
        self._columns = dict(columns)
        self._extra = tuple((str(name), as_array(values)) for name, values in extra)
        self._keys = keys
        size = len(self.ids)
        for name, column in (*self._columns.items(), *self._extra):
            if len(column) != size:
                raise ValueError(f"every column must have one value a row; {name!r} has {len(column)} for {size} ids; "
                                 "fill rows that have none with null")
        for name in self._required:
            if self._columns[name].null_count:
                raise ValueError(f"{name} must not be null; {self._columns[name].null_count} of {size} rows are; "
                                 "drop those rows or fill them")
        names = [name for name, _ in self._extra]
        if len(set(names)) < len(names):
            raise ValueError(f"column names must be unique; got {names}; rename one")

    _required: tuple[str, ...] = ("ids",)

    @property
    def ids(self) -> pa.Array:
        """Raw ids, large_string, none null."""
        return self._columns["ids"]

    def keys(self) -> NDArray[np.uint64]:
        """Hash key of every raw id (:func:`~r2rec_jax.data.randomness.id_keys`), computed once, uint64."""
        if self._keys is None:
            self._keys = id_keys(self.ids)
        return self._keys

    def find(self, raw_id: str) -> int | None:
        """Index of the row with a raw id, or None. The first call sorts the keys; memory is 16 bytes a row."""
        key = np.uint64(digest(raw_id))
        order, ordered = self._by_key
        place = int(np.searchsorted(ordered, key))
        while place < len(ordered) and ordered[place] == key:
            index = int(order[place])
            if self.ids[index].as_py() == raw_id:
                return index
            place += 1
        return None

    def find_all(self, raw_ids: Sequence[str]) -> NDArray[np.int64]:
        """Indices of many raw ids, -1 where there is no such row, int64 [len(raw_ids)]: one pass over the table."""
        if not len(raw_ids):
            return np.zeros(0, np.int64)
        wanted = pa.array(raw_ids, _TEXT).dictionary_encode()
        place = _arrow.index_in(self.ids, value_set=wanted.dictionary)
        rows = np.flatnonzero(_arrow.is_valid(place).to_numpy(zero_copy_only=False))
        found = np.full(len(wanted.dictionary), -1, np.int64)
        found[place.take(pa.array(rows)).to_numpy()] = rows
        return found[wanted.indices.to_numpy()]

    def take(self, positions: ArrayLike) -> Self:
        """The rows at ``positions``, in that order."""
        rows = pa.array(np.asarray(positions, dtype=np.int64))
        keys = None if self._keys is None else self._keys[np.asarray(positions, dtype=np.int64)]
        return self._with(lambda column: column.take(rows), keys)

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Row | Self:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step != 1:
                return self.take(range(start, stop, step))
            keys = None if self._keys is None else self._keys[start:stop]
            return self._with(lambda column: column.slice(start, max(0, stop - start)), keys)
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of a table of {len(self)}")
        return next(self._rows(int(index), int(index) + 1))

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _READ_ROWS):
            yield from self._rows(start, min(len(self), start + _READ_ROWS))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return NotImplemented
        mine, others = ({**table._columns, **{f"+{name}": column for name, column in table._extra}}
                        for table in (self, other))
        return list(mine) == list(others) and all(column.equals(others[name]) for name, column in mine.items())

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        names = [*self._columns, *(name for name, _ in self._extra)]
        return f"{type(self).__name__}({len(self)} rows: {', '.join(names)})"

    @cached_property
    def _by_key(self) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        keys = self.keys()
        order = np.argsort(keys).astype(np.int32)
        return order, keys[order]

    def _pairs(self, start: int, stop: int) -> list[tuple[tuple[str, str], ...]]:
        """The named values of rows ``start`` to ``stop`` that are not null."""
        values = [column.slice(start, stop - start).to_pylist() for _, column in self._extra]
        names = [name for name, _ in self._extra]
        if not names:
            return [()] * (stop - start)
        return [tuple((name, value) for name, value in zip(names, row, strict=True) if value is not None)
                for row in zip(*values, strict=True)]

    def _with(self, change: Any, keys: NDArray[np.uint64] | None) -> Self:
        raise NotImplementedError

    def _rows(self, start: int, stop: int) -> Iterator[Row]:
        raise NotImplementedError


class UserTable(_Table[User]):
    """Users as columns.

    Args:
        ids: raw ids, unique, none null.
        attributes: (name, values) columns, for example ``[("age", ["24", None])]``; null where unknown.
        keys: hash keys of the ids where they are at hand already.

    Raises:
        ValueError: columns of different length, a null id, or a name that comes twice.

    Example:
        >>> table = UserTable(["7", "1"], [("age", ["24", None])])
        >>> table[0].attributes, table[1].attributes, table.find("1")
        ((('age', '24'),), (), 1)
    """

    def __init__(self, ids: Any, attributes: Columns = (), keys: NDArray[np.uint64] | None = None) -> None:
        super().__init__({"ids": as_array(ids)}, attributes, keys)

    @property
    def attributes(self) -> tuple[tuple[str, pa.Array], ...]:
        """(name, values) columns, large_string with nulls."""
        return self._extra

    @classmethod
    def from_rows(cls, rows: Sequence[User]) -> UserTable:
        """The table of given users; attributes keep the order in which their names first appear."""
        if isinstance(rows, cls):
            return rows
        return cls([row.user_id for row in rows], _columns_of([row.attributes for row in rows]))

    def _with(self, change: Any, keys: NDArray[np.uint64] | None) -> UserTable:
        return UserTable(change(self.ids), [(name, change(column)) for name, column in self._extra], keys)

    def _rows(self, start: int, stop: int) -> Iterator[User]:
        return map(User, self.ids.slice(start, stop - start).to_pylist(), self._pairs(start, stop))


class ItemTable(_Table[Item]):
    """Items as columns.

    Args:
        ids: raw ids, unique, none null.
        title: without the year, none null.
        year: whole numbers, null where unknown; None for a table without years.
        genres: lists of text; None for a table without genres.
        details: (name, values) columns of further facts, null where unknown.
        keys: hash keys of the ids where they are at hand already.

    Raises:
        ValueError: columns of different length, a null id or title, or a name that comes twice.
    """

    _required = ("ids", "title")

    def __init__(self, ids: Any, title: Any, year: Any = None, genres: Any = None, details: Columns = (),
                 keys: NDArray[np.uint64] | None = None) -> None:
        first = as_array(ids)
        columns = {
            "ids": first,
            "title": as_array(title),
            "year": pa.nulls(len(first), pa.int32()) if year is None else as_array(year, pa.int32()),
            "genres": pa.nulls(len(first), _GENRES) if genres is None else as_array(genres, _GENRES),
        }
        super().__init__(columns, details, keys)

    @property
    def title(self) -> pa.Array:
        """Titles, large_string, none null."""
        return self._columns["title"]

    @property
    def year(self) -> pa.Array:
        """Years, int32, null where unknown."""
        return self._columns["year"]

    @property
    def genres(self) -> pa.Array:
        """Lists of strings; null and the empty list both mean none."""
        return self._columns["genres"]

    @property
    def details(self) -> tuple[tuple[str, pa.Array], ...]:
        """(name, values) columns, large_string with nulls."""
        return self._extra

    @classmethod
    def from_rows(cls, rows: Sequence[Item]) -> ItemTable:
        """The table of given items; details keep the order in which their names first appear."""
        if isinstance(rows, cls):
            return rows
        return cls([row.item_id for row in rows], [row.title for row in rows], [row.year for row in rows],
                   [list(row.genres) for row in rows], _columns_of([row.details for row in rows]))

    def _with(self, change: Any, keys: NDArray[np.uint64] | None) -> ItemTable:
        return ItemTable(change(self.ids), change(self.title), change(self.year), change(self.genres),
                         [(name, change(column)) for name, column in self._extra], keys)

    def _rows(self, start: int, stop: int) -> Iterator[Item]:
        columns = [self._columns[name].slice(start, stop - start).to_pylist() for name in self._columns]
        for item_id, title, year, genres, details in zip(*columns, self._pairs(start, stop), strict=True):
            yield Item(item_id, title, year, tuple(genres or ()), details)


def _columns_of(pairs: Sequence[tuple[tuple[str, str], ...]]) -> list[tuple[str, list[str | None]]]:
    """(name, value) pairs of every row as columns.

    Raises:
        ValueError: a row that has a name twice.
    """
    columns: dict[str, list[str | None]] = {}
    for row, named in enumerate(pairs):
        for name, value in named:
            column = columns.setdefault(name, [None] * len(pairs))
            if column[row] is not None:
                raise ValueError(f"the names of a row must be unique; row {row} has {name!r} twice; rename one")
            column[row] = value
    return list(columns.items())
