"""A table of one's own: events, and optionally items and users, in files whose columns the configuration names.

Ratings of any scale become whole numbers 1..5 with the threshold between 3 and 4 (:func:`map_ratings`); without a
rating column every event is a like (5). See :class:`~r2rec_jax.config.TableConfig` for what the settings mean.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from r2rec_jax import progress
from r2rec_jax.config import DataConfig, TableConfig
from r2rec_jax.data.attributes import ROW, read_attributes
from r2rec_jax.data.duck import connect, index_rows, load_rows, settle_times
from r2rec_jax.data.interactions import Dataset, build_dataset
from r2rec_jax.data.readers import TableFile, kind_of, open_table, value_at
from r2rec_jax.data.rows import shown
from r2rec_jax.data.tables import ItemTable, UserTable
from r2rec_jax.files import sha256_of

LIKE = 5.0
_ROWS_AT_ONCE = 1 << 22
_YEAR = r"[-+]?[0-9]{1,4}(\.0*)?"
"""A whole number, as floats are written too; DuckDB would round 1957.6, and 19570915 is a date."""


def map_ratings(raw: NDArray, above: float, low: float, high: float) -> NDArray[np.float32]:
    """Raw ratings as whole numbers 1..5, so that ``raw > above`` exactly where the result is above 3.

    What is liked is cut in two at the middle of (above, high], giving 4 and 5; the rest in three equal parts of
    [low, above], giving 1, 2 and 3. Whole ratings 1..5 with a threshold of 3 stay as they are.

    Args:
        raw: [E], all in low..high.
        above: the threshold, low <= above.
        low, high: ends of the scale.

    Example:
        >>> map_ratings(np.array([0.5, 2.0, 3.0, 3.5, 5.0]), 3.0, 0.5, 5.0)
        array([1., 2., 3., 4., 5.], dtype=float32)
        >>> map_ratings(np.array([0.0, 1.0]), 0.0, 0.0, 1.0)
        array([1., 5.], dtype=float32)
    """
    out = np.empty(len(raw), np.float32)
    for start in range(0, len(raw), _ROWS_AT_ONCE):
        part = np.asarray(raw[start:start + _ROWS_AT_ONCE], np.float64)
        parts = [low + (above - low) * share for share in (1 / 3, 2 / 3)] if above > low else []
        below = 1 + sum((part >= edge for edge in parts), np.zeros(len(part)))
        liked = np.where(part > above + (high - above) / 2, 5, 4)
        out[start:start + _ROWS_AT_ONCE] = np.where(part > above, liked, below)
    return out


def load_table(config: DataConfig, path: Path) -> Dataset:
    """Read a table.

    Args:
        config: ``data``; ``table`` names files and columns.
        path: the folder of the files, or the file of events.

    Returns:
        The data set, its ratings 1..5. ``notes`` counts rows, duplicates, what a k-core dropped, ``ratings_mapped``
        (how many ratings are another number now), and items and users that the attribute files do not have.

    Raises:
        ValueError: a file or a column is missing, settings lack their file, or a row is broken; the message names the
            file and the row.
    """
    table = config.table
    folder, events_file = _place(path, table)
    _check_attribute_files(folder, events_file, table)
    _check_labels(table)
    with connect(config) as connection:
        progress.say(f"table: reading events from {events_file}")
        columns = [name for name in (table.user, table.item, table.rating, table.timestamp) if name is not None]
        file = open_table(connection, events_file, columns, delimiter=table.delimiter)
        load_rows(connection, file, user=table.user, item=table.item, rating=table.rating, timestamp=table.timestamp,
                  time_unit=table.time_unit, rating_range=table.rating_range)
        unit = settle_times(connection, file, table.timestamp, table.time_unit)
        events = index_rows(connection, k_core=config.k_core, unit=unit)
        items, item_notes = _items(connection, folder, table, events.item_ids)
        users, user_notes = _users(connection, folder, table, events.user_ids)
    rating, rating_notes = _ratings(events_file, events.rating, table)
    names = (_events_name(path, table), *(name for name in (table.items, table.users) if name is not None))
    dataset = build_dataset(
        name=config.name, domain=table.domain, users=users, items=items, user_rows=events.user_idx,
        item_rows=events.item_idx, rating=rating, timestamp=events.timestamp, split_seed=config.split_seed,
        rating_scale=(1.0, 5.0), sources={str(PurePath(name)): sha256_of(folder / name) for name in names})
    return replace(dataset, notes={**dataset.notes, **events.notes, **rating_notes, **item_notes, **user_notes})


def _place(path: Path, table: TableConfig) -> tuple[Path, Path]:
    """The folder of the files and the file of events."""
    if path.is_dir():
        if table.interactions is None:
            found = sorted(file.name for file in path.iterdir() if file.is_file() and kind_of(file))
            raise ValueError(f"data.table.interactions must name the file of events when data.path is a folder; got "
                             f"null, and {path} holds {', '.join(found[:10]) or 'no table'}")
        return path, path / table.interactions
    if table.interactions is not None and path.name != table.interactions:
        raise ValueError(f"data.path must be a folder when data.table.interactions is given; got the file {path}; set "
                         "one of them")
    return path.parent, path


def _check_attribute_files(folder: Path, events_file: Path, table: TableConfig) -> None:
    """Refuse columns of items or users without a file that has them, and the file of events as one.

    Checked here and not where settings are read: what is prepared stays readable.
    """
    title = None if table.title == TableConfig.title else table.title  # the default needs no file
    items = {"title": title, "year": table.year, "categories": table.categories, "details": table.details}
    for setting, row, name, columns in (("items", "an item", table.items, items),
                                        ("users", "a user", table.users, {"attributes": table.attributes})):
        named = ", ".join(f"data.table.{column}" for column, value in columns.items() if value)
        if name is None and named:
            raise ValueError(f"data.table.{setting} must name the file with the columns of {named}; got null; name a "
                             f"file with one row {row}, or remove these settings")
        if name is not None and (folder / name).resolve() == events_file.resolve():
            raise ValueError(f"data.table.{setting} must be another file than that of the events; got {name} for both; "
                             f"write one row {row} to a file of its own")


def _events_name(path: Path, table: TableConfig) -> str:
    """The file of events as a path that holds from the folder of the files, as those of items and users do."""
    return table.interactions if path.is_dir() and table.interactions is not None else path.name


def _ratings(path: Path, raw: NDArray, table: TableConfig) -> tuple[NDArray[np.float32], dict[str, int]]:
    if table.rating is None:
        return np.full(len(raw), LIKE, np.float32), {"ratings_mapped": 0}
    low, high = table.rating_range or (float(raw.min()), float(raw.max()))
    above = table.positive_above
    if not raw.max() > above:
        raise ValueError(f"{path.name}: some ratings must be above data.table.positive_above; got {raw.min():g} to "
                         f"{raw.max():g} and a threshold of {above:g}; lower it")
    low = min(low, above)
    if (low, high) != (1.0, 5.0) and above == 3.0 and low >= 1.0 and high <= 5.0 and (raw == np.floor(raw)).all():
        low, high = 1.0, 5.0
    mapped = map_ratings(raw, above, low, high)
    return mapped, {"ratings_mapped": int((mapped != raw).sum())}


def _check_labels(table: TableConfig) -> None:
    for setting, names in (("details", table.details), ("attributes", table.attributes)):
        labels = [_label(name) for name in names]
        again = [name for name, label in zip(names, labels, strict=True) if labels.count(label) > 1]
        if again:
            raise ValueError(f"data.table.{setting} must be columns that prompts can tell apart; got "
                             f"{', '.join(map(shown, again))}, which they call alike; rename a column, or leave it out")


def _label(column: str) -> str:
    """A column's name as words: ``release_year`` -> ``release year``."""
    return " ".join(column.replace("_", " ").split()) or column


def _items(connection: duckdb.DuckDBPyConnection, folder: Path, table: TableConfig, ids: pa.Array,
           ) -> tuple[ItemTable, dict[str, int]]:
    if table.items is None:
        return ItemTable(ids, ids), {"items_without_title": len(ids)}
    path = folder / table.items
    used = [name for name in (table.title, table.year, table.categories, *table.details) if name is not None]
    file = open_table(connection, path, tuple(dict.fromkeys((table.item_id, *used))), delimiter=table.delimiter)
    columns = {f"detail {name}": file.line(name) for name in table.details}
    columns["title"] = "NULL::VARCHAR"
    if table.title is not None:
        columns["title"] = f"nullif(trim({file.text(table.title)}), '')"
    if table.year is not None:
        text = f"nullif(trim({file.text(table.year)}), '')"
        columns["year"] = f"CASE WHEN TRY_CAST({text} AS INTEGER) > 0 THEN TRY_CAST({text} AS INTEGER) END"
        columns["bad_year"] = f"CASE WHEN NOT regexp_full_match({text}, '{_YEAR}') THEN {ROW} END"
    if table.categories is not None:
        listed = file.texts(table.categories, table.separator)
        columns["genres"] = f"list_filter(list_transform({listed}, lambda x: trim(x)), lambda x: x <> '')"
    found = read_attributes(connection, file, table.item_id, ids, columns, repeated="refuse")
    bad = found.column("bad_year").drop_null().to_pylist() if table.year is not None else []
    if bad and table.year is not None:
        value = shown(value_at(connection, file, table.year, min(bad)) or "")
        raise ValueError(f"{path.name} row {min(bad)} (the header not counted), {table.year}: a year must be a whole "
                         f"number of at most four digits; got {value}; correct the row ({path})")
    _check_known(connection, file, table.item_id, "items", ids, found.missing)
    notes = {"items_without_attributes": found.missing, "items_without_title": found.column("title").null_count}
    items = ItemTable(ids, found.filled("title", ids),
                      None if table.year is None else found.column("year"),
                      None if table.categories is None else found.column("genres"),
                      [(_label(name), found.column(f"detail {name}")) for name in table.details])
    return items, notes


def _users(connection: duckdb.DuckDBPyConnection, folder: Path, table: TableConfig, ids: pa.Array,
           ) -> tuple[UserTable, dict[str, int]]:
    if table.users is None:
        return UserTable(ids), {}
    file = open_table(connection, folder / table.users, tuple(dict.fromkeys((table.user_id, *table.attributes))),
                      delimiter=table.delimiter)
    columns = {f"attribute {name}": file.line(name) for name in table.attributes}
    found = read_attributes(connection, file, table.user_id, ids, columns, repeated="refuse")
    _check_known(connection, file, table.user_id, "users", ids, found.missing)
    users = UserTable(ids, [(_label(name), found.column(f"attribute {name}")) for name in table.attributes])
    return users, {"users_without_attributes": found.missing}


def _check_known(connection: duckdb.DuckDBPyConnection, file: TableFile, column: str, what: str, ids: pa.Array,
                 missing: int) -> None:
    """Say that most of the ids have no row, as when the files write them differently.

    Raises:
        ValueError: none has one.
    """
    if 2 * missing <= len(ids):
        return
    (theirs,), = connection.execute(f"SELECT min({file.id(column)}) FROM {file.scan}").fetchall()
    found = (f"{missing} of the {len(ids)} {what} of the events are not in column {column} of {file.path.name}, which "
             f"has {shown(theirs or '')} where the events have {shown(ids[0].as_py())}")
    if missing == len(ids):
        raise ValueError(f"{found}; write the ids alike in both files")
    progress.say(f"warning: {found}; they have no attributes")
