"""Events of any size into arrays, by DuckDB: duplicates, k-core and dense indices, out of core.

DuckDB holds the rows in a file of its own in a temporary folder, keeps to ``data.memory_gb`` and works on disk beyond
it. What comes out is columnar: ids as Arrow, events as NumPy.

Of several events of one user and one item the latest in time counts, and of those at one time the last in the file. The
k-core is taken afterwards: users and items with fewer than k events are dropped until none is left.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from r2rec_jax.config import DataConfig
from r2rec_jax.data.readers import TableFile, reading, value_at
from r2rec_jax.data.rows import shown

TimeUnit = Literal["auto", "seconds", "milliseconds", "iso"]

MILLISECONDS_FROM = 1e11
"""Numbers from here on are milliseconds: as seconds they would lie beyond the year 5000."""

_SECONDS_FROM = 1e8
_SECONDS_TO = 1e15
"""Much larger numbers, such as nanoseconds, would not fit 64 bits as milliseconds."""
_ISO = r"^\s*[0-9]{4}[^0-9]"
"""How a date must begin: DuckDB takes 31/12/24 for the 24th of December of the year 31."""


@dataclass(frozen=True, eq=False)
class Events:
    """Distinct events with dense indices.

    Attributes:
        user_ids, item_ids: large_string [U], [I]: raw ids by index, numeric order where all are numbers, else as text.
        user_idx, item_idx: int32 [E], sorted by user and time.
        rating: float64 [E], as in the source.
        timestamp: int64 [E], in ``unit``.
        unit: seconds or milliseconds.
        notes: ``rows`` read, ``duplicates`` dropped, and with a k-core the ``k_core_events``, ``k_core_users`` and
            ``k_core_items`` that it dropped.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    user_idx: NDArray[np.int32]
    item_idx: NDArray[np.int32]
    rating: NDArray[np.float64]
    timestamp: NDArray[np.int64]
    unit: Literal["seconds", "milliseconds"]
    notes: dict[str, int]


@contextmanager
def connect(config: DataConfig) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection that keeps to the memory, threads and folder of the configuration, and off the network.

    Everything it writes is deleted at the end.

    Raises:
        ValueError: ``data.temp_dir`` is no folder, or the block takes more memory or room than there is.
    """
    if config.temp_dir is not None and not Path(config.temp_dir).expanduser().is_dir():
        raise ValueError(f"data.temp_dir must be a folder; got {config.temp_dir!r}; make it, or set it to null")
    where = None if config.temp_dir is None else Path(config.temp_dir).expanduser()
    with tempfile.TemporaryDirectory(prefix="r2rec-duckdb-", dir=where) as scratch:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": f"{config.memory_gb}GB", "temp_directory": str(Path(scratch) / "spill"),
            "autoinstall_known_extensions": "false", "autoload_known_extensions": "false",
            "arrow_large_buffer_size": "true",
        }
        if config.threads is not None:
            settings["threads"] = config.threads
        connection = duckdb.connect(str(Path(scratch) / "rows.duckdb"), config=settings)
        try:
            connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
            yield connection
        except duckdb.Error as error:
            raise ValueError("data.temp_dir must have room, and data.memory_gb be enough, for the data at hand; DuckDB "
                             f"says {' '.join(str(error).split())[:300]}; set them") from None
        finally:
            connection.close()


def load_rows(connection: duckdb.DuckDBPyConnection, file: TableFile, *, user: str, item: str, rating: str | None,
              timestamp: str | None, time_unit: TimeUnit = "auto", rating_range: tuple[float, float] | None = None,
              ) -> None:
    """Read a file of events into the table ``raw`` (place, user_id, item_id, rating, timestamp, thousandths of it).

    Args:
        connection: of :func:`connect`.
        file: opened with the columns named here.
        user, item, rating, timestamp: columns. Without a rating the rating is NULL; without a time the file's order is
            the time.
        time_unit: what the times are (see :class:`~r2rec_jax.config.TableConfig`).
        rating_range: lowest and highest rating that may occur.

    Raises:
        ValueError: a row is broken; the message names the file, the row and the value.
    """
    stars = "NULL::DOUBLE" if rating is None else file.number(rating)
    times, unit = _time(connection, file, timestamp, time_unit)
    number = None if timestamp is None or unit == "iso" else file.number(timestamp)
    thousandths = "0" if number is None else f"TRY_CAST(round({number} * 1000) - floor({number}) * 1000 AS SMALLINT)"
    with reading(file.path):
        connection.execute(
            f"CREATE OR REPLACE TABLE raw AS SELECT row_number() OVER () AS place, {file.id(user)} AS user_id, "
            f"{file.id(item)} AS item_id, {stars} AS rating, {times} AS timestamp, {thousandths} AS thousandths "
            f"FROM {file.scan}")
    low, high = rating_range or (-math.inf, math.inf)
    broken = {
        user: ("a user id must not be empty", "coalesce(user_id, '') = ''"),
        item: ("an item id must not be empty", "coalesce(item_id, '') = ''"),
    }
    if rating is not None:
        allowed = f" in {low:g}..{high:g}" if rating_range else ""
        limits = f" OR rating NOT BETWEEN {low!r} AND {high!r}" if rating_range else ""
        broken[rating] = (f"a rating must be a number{allowed}", f"rating IS NULL OR NOT isfinite(rating){limits}")
    if timestamp is not None:
        broken[timestamp] = (f"a time must be {'an ISO date' if unit == 'iso' else 'a number'}", "timestamp IS NULL")
    found = _first(connection, "SELECT count(*), " + ", ".join(
        f"min(place) FILTER ({test})" for _, test in broken.values()) + " FROM raw")
    if not found[0]:
        raise ValueError(f"{file.path.name} must hold at least one row; got none; get the file again ({file.path})")
    for (column, (rule, _)), place in zip(broken.items(), found[1:], strict=True):
        if place is not None:
            value = value_at(connection, file, column, place)
            got = "nothing" if value is None else shown(value)
            if column == timestamp and unit != "iso" and value is not None and _has_fraction(value):
                rule = f"a time below {_SECONDS_FROM:g} must be a whole number: days or hours would lose their order"
            raise ValueError(f"{file.path.name} row {place} (the header not counted), {column}: {rule}; got {got}; "
                             f"correct the row or get the file again ({file.path})")


def _has_fraction(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and not float(text).is_integer()
    except ValueError:
        return False


def _time(connection: duckdb.DuckDBPyConnection, file: TableFile, column: str | None, unit: TimeUnit,
          ) -> tuple[str, str]:
    """SQL of the time as BIGINT, and whether the column holds ``iso`` dates or ``number``."""
    if column is None:
        return "row_number() OVER ()", "number"
    kind = file.types[column]
    if kind.startswith(("TIMESTAMP", "DATE")):
        return f"epoch_ms(CAST({file.text(column)} AS TIMESTAMPTZ))", "iso"
    if unit == "auto":
        with reading(file.path):
            first = connection.execute(f"SELECT {file.number(column)} FROM {file.scan} "
                                       f"WHERE {file.text(column)} IS NOT NULL LIMIT 1").fetchall()
        unit = "iso" if first and first[0][0] is None else "auto"
    if unit == "iso":
        text = file.text(column)
        return f"CASE WHEN regexp_matches({text}, '{_ISO}') THEN epoch_ms(TRY_CAST({text} AS TIMESTAMPTZ)) END", "iso"
    number = file.number(column)
    return (f"CASE WHEN {number} = floor({number}) OR {number} >= {_SECONDS_FROM} "
            f"THEN TRY_CAST(floor({number}) AS BIGINT) END"), "number"


def settle_times(connection: duckdb.DuckDBPyConnection, file: TableFile, column: str | None, unit: TimeUnit,
                 ) -> Literal["seconds", "milliseconds"]:
    """What the times in ``raw`` count. Seconds with fractions become milliseconds there, and so keep their order.

    Raises:
        ValueError: ``auto``, and some look like seconds and others like milliseconds; or fractions among numbers that
            are too large to count milliseconds.
    """
    if column is None:
        return "seconds"
    if unit in ("iso", "milliseconds") or _time(connection, file, column, unit)[1] == "iso":
        return "milliseconds"
    found = _first(connection, f"SELECT min(place) FILTER (timestamp >= {MILLISECONDS_FROM}), min(place) FILTER "
                               f"(timestamp BETWEEN {_SECONDS_FROM} AND {MILLISECONDS_FROM} - 1), max(thousandths), "
                               f"min(place) FILTER (timestamp NOT BETWEEN -{_SECONDS_TO} AND {_SECONDS_TO}) FROM raw")
    if unit == "auto" and found[0] is not None and found[1] is not None:
        raise ValueError(f"{file.path.name}, {column}: times must all be seconds or all milliseconds; row {found[0]} "
                         f"looks like milliseconds and row {found[1]} like seconds; set data.table.time_unit")
    if unit == "auto" and found[0] is not None:
        return "milliseconds"
    if not found[2]:
        return "seconds"
    if found[3] is not None:
        value = shown(value_at(connection, file, column, found[3]) or "")
        raise ValueError(f"{file.path.name} row {found[3]} (the header not counted), {column}: a time in seconds must "
                         f"lie within {_SECONDS_TO:g} of 1970 where others have fractions; got {value}; write all "
                         f"times in one unit, seconds or milliseconds ({file.path})")
    connection.execute("UPDATE raw SET timestamp = timestamp * 1000 + thousandths")
    return "milliseconds"


def index_rows(connection: duckdb.DuckDBPyConnection, *, k_core: int, unit: Literal["seconds", "milliseconds"],
               ) -> Events:
    """Turn ``raw`` into distinct events with dense indices.

    Args:
        connection: with the table ``raw`` of :func:`load_rows`.
        k_core: least number of events of a user and of an item; 0 or 1 keeps all.
        unit: of the times.

    Raises:
        ValueError: the k-core is empty.
    """
    rows = _count(connection, "raw")
    user_ids, item_ids = _number(connection, "user"), _number(connection, "item")
    connection.execute(
        "CREATE TABLE events AS SELECT u.rowid::INTEGER AS user_idx, i.rowid::INTEGER AS item_idx, rating, timestamp, "
        "place FROM raw JOIN user_ids u ON raw.user_id = u.id JOIN item_ids i ON raw.item_id = i.id")
    connection.execute("DROP TABLE raw")
    duplicates = _drop_duplicates(connection)
    notes = {"rows": rows, "duplicates": duplicates}
    if k_core > 1:
        notes["k_core_events"] = _take_core(connection, k_core)
    events = _fetch(connection)
    user_idx, users = _close_gaps(events["user_idx"], len(user_ids))
    item_idx, items = _close_gaps(events["item_idx"], len(item_ids))
    if k_core > 1:
        notes |= {"k_core_users": len(user_ids) - int(users.sum()), "k_core_items": len(item_ids) - int(items.sum())}
        user_ids, item_ids = user_ids.filter(pa.array(users)), item_ids.filter(pa.array(items))
    return Events(user_ids, item_ids, user_idx, item_idx, events["rating"], events["timestamp"], unit, notes)


def _first(connection: duckdb.DuckDBPyConnection, query: str) -> tuple:
    return connection.execute(query).fetchall()[0]


def _count(connection: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(_first(connection, f"SELECT count(*) FROM {table}")[0])


def _number(connection: duckdb.DuckDBPyConnection, what: Literal["user", "item"]) -> pa.Array:
    """Table ``<what>_ids`` with the distinct ids in index order, so that a row's number is its index; the ids."""
    texts = _first(connection, f"SELECT EXISTS (SELECT 1 FROM raw WHERE NOT regexp_full_match({what}_id, '[0-9]+'))")[0]
    order = "id" if texts else "length(ltrim(id, '0')), ltrim(id, '0'), id"
    connection.execute(f"CREATE TABLE {what}_ids AS SELECT id FROM (SELECT DISTINCT {what}_id AS id FROM raw) "
                       f"ORDER BY {order}")
    table = connection.sql(f"SELECT id FROM {what}_ids ORDER BY rowid").to_arrow_table()
    return table.column("id").combine_chunks()


def _drop_duplicates(connection: duckdb.DuckDBPyConnection) -> int:
    """Keep the latest event of a user and an item; how many were dropped."""
    connection.execute("CREATE TABLE twice AS SELECT user_idx, item_idx FROM events GROUP BY ALL HAVING count(*) > 1")
    connection.execute(
        "CREATE TABLE older AS SELECT place FROM events JOIN twice USING (user_idx, item_idx) "
        "QUALIFY row_number() OVER (PARTITION BY user_idx, item_idx ORDER BY timestamp DESC, place DESC) > 1")
    dropped = _count(connection, "older")
    if dropped:
        connection.execute("CREATE TABLE distinct_events AS SELECT * FROM events ANTI JOIN older USING (place)")
        connection.execute("DROP TABLE events")
        connection.execute("ALTER TABLE distinct_events RENAME TO events")
    connection.execute("DROP TABLE twice")
    connection.execute("DROP TABLE older")
    return dropped


def _take_core(connection: duckdb.DuckDBPyConnection, k: int) -> int:
    """Shrink ``events`` to its k-core; how many events were dropped."""
    first = left = _count(connection, "events")
    while True:
        connection.execute(
            "CREATE TABLE core AS SELECT * FROM events "
            f"SEMI JOIN (SELECT user_idx FROM events GROUP BY user_idx HAVING count(*) >= {k}) USING (user_idx) "
            f"SEMI JOIN (SELECT item_idx FROM events GROUP BY item_idx HAVING count(*) >= {k}) USING (item_idx)")
        connection.execute("DROP TABLE events")
        connection.execute("ALTER TABLE core RENAME TO events")
        before, left = left, _count(connection, "events")
        if not left:
            raise ValueError(f"data.k_core must leave some events; got {k}, which leaves none of {first}; lower it")
        if left == before:
            return first - left


def _fetch(connection: duckdb.DuckDBPyConnection) -> dict[str, NDArray]:
    """The columns of ``events``, sorted by user and time."""
    total = _count(connection, "events")
    columns: dict[str, NDArray] = {"user_idx": np.empty(total, np.int32), "item_idx": np.empty(total, np.int32),
                                   "rating": np.empty(total, np.float64), "timestamp": np.empty(total, np.int64)}
    done = 0
    query = f"SELECT {', '.join(columns)} FROM events ORDER BY user_idx, timestamp, place"
    for batch in pa.RecordBatchReader.from_stream(connection.sql(query)):
        for name, values in columns.items():
            column = batch.column(name)
            values[done:done + len(column)] = column.fill_null(np.nan) if column.null_count else column
        done += len(batch)
    return columns


def _close_gaps(index: NDArray[np.int32], size: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Indices without gaps, and which of the old ones are left, bool [size]."""
    used = np.zeros(size, dtype=bool)
    used[index] = True
    return (np.cumsum(used, dtype=np.int32) - np.int32(1))[index], used
