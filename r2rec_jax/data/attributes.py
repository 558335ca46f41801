"""What a file says of users or items, joined to ids: one row for every id, in index order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from r2rec_jax.data.readers import TableFile, identifier, reading
from r2rec_jax.data.rows import shown

ROW = "r2rec_row"
"""1-based row of the file, for SQL over its columns; names of ours that no file should have."""

_INDEX, _ID = "r2rec_index", "r2rec_id"


@dataclass(frozen=True, eq=False)
class Attributes:
    """The rows of a file for given ids.

    Attributes:
        rows: one row an id, in index order, null where the file has nothing.
        missing: ids that the file does not have.
        passed: rows that were passed over because a later one has the same id.
    """

    rows: pa.Table
    missing: int
    passed: int

    def column(self, name: str) -> pa.ChunkedArray:
        """A column, [N]."""
        return self.rows.column(name)

    def filled(self, name: str, default: pa.Array) -> pa.ChunkedArray:
        """A column, null values taken from ``default``, [N]."""
        return pc.call_function("coalesce", [self.column(name), pa.chunked_array([default])])


def read_attributes(connection: duckdb.DuckDBPyConnection, file: TableFile, id_column: str, ids: pa.Array,
                    columns: Mapping[str, str], *, repeated: Literal["last", "refuse"]) -> Attributes:
    """The rows of a file for given ids; other rows of the file are parsed and dropped at once.

    Args:
        connection: of :func:`~r2rec_jax.data.duck.connect`.
        file: opened with ``id_column`` and every column that ``columns`` uses.
        id_column: its ids.
        ids: raw ids by index, large_string [N].
        columns: name -> SQL over the file's columns and :data:`ROW`.
        repeated: of several rows of one id the ``last`` counts, or the file is refused.

    Returns:
        ``columns`` for every id.

    Raises:
        ValueError: a row without an id, or one that comes twice; the message names the file and the row.
    """
    connection.register("wanted", pa.table({_ID: ids, _INDEX: np.arange(len(ids), dtype=np.int64)}))
    source = ", ".join(identifier(column) for column in file.types)
    values = "".join(f", {expression} AS {identifier(name)}" for name, expression in columns.items())
    key = file.id(id_column)
    with reading(file.path):
        connection.execute(
            f"CREATE OR REPLACE TABLE attributes AS SELECT {_INDEX}, {ROW}, {key} AS {_ID}{values} "
            f"FROM (SELECT row_number() OVER () AS {ROW}, {source} FROM {file.scan}) LEFT JOIN wanted ON {_ID} = {key} "
            f"WHERE {_INDEX} IS NOT NULL OR coalesce({key}, '') = ''")
    (empty,), = connection.execute(f"SELECT min({ROW}) FROM attributes WHERE {_INDEX} IS NULL").fetchall()
    if empty is not None:
        raise ValueError(f"{file.path.name} row {empty} (the header not counted), {id_column}: an id must not be "
                         f"empty; correct the row or get the file again ({file.path})")
    connection.execute(
        f"CREATE OR REPLACE TABLE earlier AS SELECT {ROW}, {_ID} FROM attributes "
        f"SEMI JOIN (SELECT {_INDEX} FROM attributes GROUP BY {_INDEX} HAVING count(*) > 1) USING ({_INDEX}) "
        f"QUALIFY row_number() OVER (PARTITION BY {_INDEX} ORDER BY {ROW} DESC) > 1")
    (passed, first, raw_id), = connection.execute(
        f"SELECT count(*), min({ROW}), min_by({_ID}, {ROW}) FROM earlier").fetchall()
    if passed and repeated == "refuse":
        raise ValueError(f"{file.path.name} row {first} (the header not counted), {id_column}: ids must be unique; "
                         f"{shown(raw_id)} comes again later; remove one of the rows ({file.path})")
    names = "".join(f", {identifier(name)}" for name in columns)
    table = connection.sql(
        f"SELECT {ROW} IS NULL AS missing{names} FROM wanted LEFT JOIN (SELECT * EXCLUDE ({_ID}) FROM attributes "
        f"ANTI JOIN earlier USING ({ROW})) USING ({_INDEX}) ORDER BY {_INDEX}").to_arrow_table()
    for name in ("attributes", "earlier"):
        connection.execute(f"DROP TABLE {name}")
    connection.unregister("wanted")
    return Attributes(table, int(table.column("missing").to_numpy().sum()), int(passed))
