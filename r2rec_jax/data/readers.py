"""Tables as files: CSV, JSON Lines and Parquet, plain or compressed, opened strictly by DuckDB.

Nothing is guessed: the header, the schema, or the first rows of JSON Lines, which may leave out what is null, must have
the columns that are asked for, text is UTF-8, and every complaint is one line with the file and the row. The kind
follows from the file's name. An empty field is a missing value, as is NaN, which pandas writes for one.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Literal, cast

import duckdb
import pyarrow as pa

from r2rec_jax.data.rows import encoding_error, row_error, shown

Kind = Literal["csv", "jsonl", "parquet"]

KINDS: dict[str, Kind] = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl",
                          ".json": "jsonl", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".zst")
_DELIMITERS = (",", "\t", ";", "|")
_FLOATS = ("DOUBLE", "FLOAT")
ROWS_FOR_KEYS = 1000
"""Rows of JSON Lines that a column must be in one of to be found."""
_LINE = re.compile(r"\bline:? (\d+)", re.IGNORECASE)
_NO_TEXT = "\x1f"
"""A separator that texts do not have."""
_QUOTED_SQL = re.compile(r"\nLINE \d+:")
_BAD_TEXT = re.compile(r'Invalid string encoding .*value "(.*)" is not valid UTF8', re.DOTALL)


@dataclass(frozen=True)
class TableFile:
    """A file that DuckDB can scan.

    Attributes:
        path: where it lies.
        kind: how it is read.
        scan: the table function, as SQL.
        types: column -> DuckDB's type, of the columns that were asked for and exist. All of CSV and JSON Lines is
            VARCHAR, lists and objects of JSON as their text.
    """

    path: Path
    kind: Kind
    scan: str
    types: dict[str, str]

    def text(self, column: str) -> str:
        """SQL of a column as VARCHAR; NaN is NULL."""
        name, kind = identifier(column), self.types[column]
        if kind in _FLOATS:
            return f"CASE WHEN NOT isnan({name}) THEN CAST({name} AS VARCHAR) END"
        return name if kind == "VARCHAR" else f"CAST({name} AS VARCHAR)"

    def id(self, column: str) -> str:
        """SQL of a column of ids as VARCHAR, without space around them.

        Of floats and decimals 7.0 is 7 and 2.50 is 2.5; NaN is NULL.
        """
        name, kind = identifier(column), self.types[column]
        if kind in _FLOATS or kind.startswith("DECIMAL"):
            text = f"CAST({name} AS VARCHAR)"
            whole = f"coalesce(CAST(TRY_CAST({name} AS HUGEINT) AS VARCHAR), {text})"
            if kind.startswith("DECIMAL"):
                return f"CASE WHEN {name} = floor({name}) THEN {whole} ELSE rtrim({text}, '0') END"
            return (f"CASE WHEN NOT isfinite({name}) THEN NULL WHEN {name} = floor({name}) THEN {whole} "
                    f"ELSE {text} END")
        return f"trim({self.text(column)})"

    def number(self, column: str) -> str:
        """SQL of a column as DOUBLE, NULL where it is no number."""
        name = identifier(column)
        if self.types[column] != "VARCHAR":
            return f"TRY_CAST({name} AS DOUBLE)"
        return f"CASE WHEN contains({name}, '_') THEN NULL ELSE TRY_CAST({name} AS DOUBLE) END"

    def texts(self, column: str, separator: str) -> str:
        """SQL of a column as VARCHAR[]: a list as it is, also one that was written as text (JSON, or as Python and
        pandas do: ``['a', 'b']``), another text cut at ``separator``."""
        if self.types[column].endswith("[]"):
            return f"CAST({identifier(column)} AS VARCHAR[])"
        text = self.text(column)
        split = f"string_split({text}, {literal(separator)})"
        written = f"coalesce(TRY_CAST(TRY_CAST({text} AS JSON) AS VARCHAR[]), TRY_CAST({text} AS VARCHAR[]), {split})"
        return f"CASE WHEN regexp_matches({text}, '^\\s*\\[.*\\]\\s*$', 's') THEN {written} ELSE {split} END"

    def line(self, column: str) -> str:
        """SQL of a column as VARCHAR, NULL where it is blank; the parts of a list with commas between them."""
        return f"nullif(trim(array_to_string({self.texts(column, _NO_TEXT)}, ', ')), '')"

    def json(self, column: str) -> str:
        """SQL of a column as JSON: text that holds JSON, or a map or struct; NULL where it is neither."""
        name = identifier(column)
        return f"TRY_CAST({name} AS JSON)" if self.types[column] in ("VARCHAR", "JSON") else f"to_json({name})"


def literal(text: str) -> str:
    """A text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def identifier(name: str) -> str:
    """A column's name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def kind_of(path: Path) -> Kind | None:
    """How a file of this name is read; None where no reader fits."""
    name = path.name.lower()
    for suffix in _COMPRESSED:
        name = name.removesuffix(suffix)
    return KINDS.get(Path(name).suffix)


def stem_of(path: Path) -> str:
    """``Books`` for ``Books.csv.gz``."""
    name = path.name
    for suffix in (*_COMPRESSED, *KINDS):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name


def open_table(connection: duckdb.DuckDBPyConnection, path: Path, required: Sequence[str],
               optional: Sequence[str] = (), *, delimiter: str | None = None) -> TableFile:
    """Open a file for scanning.

    Args:
        connection: of :func:`r2rec_jax.data.duck.connect`.
        path: the file.
        required: columns that must be there.
        optional: columns that are used when they are there.
        delimiter: of CSV; None takes the one of comma, tab, semicolon and bar that shows the required columns.

    Raises:
        ValueError: the file is missing, a folder, empty, of no known kind, or lacks a column.
    """
    kind = kind_of(path)
    if path.is_dir():
        raise ValueError(f"{path.name} must be one file; got a folder; make one file of its parts, as DuckDB does by "
                         f"COPY (FROM '{path.name}/*{path.suffix or '.parquet'}') TO 'one.parquet', and name that "
                         f"({path})")
    if not path.is_file():
        raise ValueError(f"{path.name} must be in {path.parent}; the file is missing; copy it there or correct "
                         "the name")
    if kind is None:
        raise ValueError(f"{path.name} must be .csv, .tsv, .jsonl or .parquet, or one of these with .gz or .zst; "
                         f"got {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} must hold at least one row; got an empty file (0 bytes); get it again ({path})")
    source = literal(str(_plain_path(connection, path)))
    with reading(path):
        if kind == "parquet":
            # some writers do not mark their text as such
            scan = f"read_parquet({source}, hive_partitioning = false, binary_as_string = true)"
            schema = connection.sql(f"SELECT * FROM {scan} LIMIT 0")
            found = dict(zip(schema.columns, map(str, schema.types), strict=True))
            types = {column: found[column] for column in (*required, *optional) if column in found}
        elif kind == "jsonl":
            found = dict.fromkeys(_keys(path), "VARCHAR")
            types = dict.fromkeys((*required, *optional), "VARCHAR")
            scan = (f"read_json({source}, format = 'newline_delimited', hive_partitioning = false, "
                    f"columns = {_struct(types)})")
        else:
            separator, names = _header(path, required, delimiter)
            found = dict.fromkeys(names, "VARCHAR")
            types = {column: "VARCHAR" for column in (*required, *optional) if column in found}
            scan = (f"read_csv({source}, auto_detect = false, header = true, delim = {literal(separator)}, "
                    f"quote = '\"', escape = '\"', strict_mode = true, hive_partitioning = false, "
                    f"columns = {_struct(found)})")
    missing = [column for column in required if column not in found]
    if missing:
        raise ValueError(f"{path.name} must have the columns {', '.join(required)}; missing {', '.join(missing)} among "
                         f"{', '.join(map(shown, islice(found, 20)))}; name the columns in the configuration ({path})")
    return TableFile(path, kind, scan, types)


def value_at(connection: duckdb.DuckDBPyConnection, file: TableFile, column: str, row: int) -> str | None:
    """The text of one value, by 1-based row; NaN is shown as it is."""
    value = f"CAST({identifier(column)} AS VARCHAR)"
    found = connection.execute(f"SELECT value FROM (SELECT {value} AS value, row_number() OVER () AS place "
                               f"FROM {file.scan}) WHERE place = {row}").fetchall()
    return found[0][0] if found else None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what DuckDB says about a file into one line with the file and, where it is known, the line."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise ValueError(f"data.memory_gb must be larger to read {path.name}; DuckDB says {_first_line(error)}; raise "
                         "it, or lower data.threads") from None
    except (duckdb.Error, UnicodeDecodeError, OSError, EOFError) as error:
        text = _QUOTED_SQL.split(str(error))[0]
        if isinstance(error, duckdb.IOException) and re.search(r"\bwrit|no space", text, re.IGNORECASE):
            raise  # not the file's fault: see ``duck.connect``
        if "state machine reached an invalid state" in text:
            _check_line_ends(path)
        if bad := _BAD_TEXT.search(text):
            raise ValueError(f"{path.name}: the text must be UTF-8; got {shown(bad[1])}; save it as UTF-8, or get the "
                             f"file again ({path})") from None
        found = _LINE.search(text)
        if found and "JSON" in text:
            raise _bad_json(path, int(found[1]), _first_line(error)) from None
        if found:
            raise _bad_csv(path, int(found[1]), text) from None
        raise ValueError(f"{path.name} must be a whole {kind_of(path)} file in UTF-8; got {_first_line(error)}; get "
                         f"the file again ({path})") from None


def open_bytes(path: Path) -> BinaryIO:
    """The uncompressed bytes of a file."""
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if path.name.lower().endswith(".zst"):
        return io.BufferedReader(cast(io.RawIOBase, pa.input_stream(str(path), compression="zstd")))
    return path.open("rb")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n")[0].split())[:300]


def _struct(types: dict[str, str]) -> str:
    return "{" + ", ".join(f"{literal(name)}: '{kind}'" for name, kind in types.items()) + "}"


def _plain_path(connection: duckdb.DuckDBPyConnection, path: Path) -> Path:
    """An absolute path that DuckDB cannot take for a pattern: where it looks like one, a link to it."""
    absolute = path.expanduser().absolute()
    if not set(str(absolute)) & set("*?[]{}"):
        return absolute
    folder = Path(connection.execute("SELECT current_setting('temp_directory')").fetchall()[0][0]).parent
    link = folder / f"input-{len(list(folder.glob('input-*')))}{''.join(_suffixes(path))}"
    link.symlink_to(absolute)
    return link


def _suffixes(path: Path) -> list[str]:
    return [suffix for suffix in path.suffixes[-2:] if suffix.lower() in (*KINDS, *_COMPRESSED)]


def _json_lines(path: Path, count: int) -> Iterator[tuple[int, bytes]]:
    """The first lines that are not blank, with their numbers, and without the mark that some files in UTF-8 begin with,
    which DuckDB passes over too."""
    with open_bytes(path) as file:
        for number, line in enumerate(islice(file, count), 1):
            if line.strip():
                yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _keys(path: Path) -> list[str]:
    """The keys of the first rows of JSON Lines: a row may leave out what is null."""
    found: dict[str, None] = {}
    for number, line in _json_lines(path, ROWS_FOR_KEYS):
        problem = _json_problem(path, number, line)
        if problem:
            raise problem
        found |= dict.fromkeys(json.loads(line))
    if not found:
        raise ValueError(f"{path.name} must hold at least one row; got blank lines only; get the file again ({path})")
    return list(found)


def _json_problem(path: Path, number: int, line: bytes) -> ValueError | None:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return encoding_error(path, number, f"byte 0x{line[error.start]:02x}")
    except ValueError as error:
        text = shown(line.decode("utf-8", "replace").strip())
        return row_error(path, number, f"a row must be a JSON object; got {text} ({error})")
    if isinstance(row, dict):
        return None
    return row_error(path, number, f"a row must be a JSON object; got {shown(line.decode().strip())}")


def _bad_json(path: Path, near: int, reason: str) -> ValueError:
    """What is wrong with a broken row and where; DuckDB's own count can be off by one or two."""
    problems = (_json_problem(path, *row) for row in _json_lines(path, near + 1) if row[0] >= near - 2)
    return next(filter(None, problems), row_error(path, near, reason))


def _header(path: Path, required: Sequence[str], delimiter: str | None) -> tuple[str, list[str]]:
    """(delimiter, column names) of a CSV file."""
    with open_bytes(path) as file:
        line = file.readline()
    try:
        text = line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise encoding_error(path, 1, f"byte 0x{line[error.start]:02x}") from None
    if not text.strip():
        raise row_error(path, 1, f"the header must name the columns; got {shown(text)}")
    try:
        tried = {mark: [name.strip() for name in next(csv.reader([text], delimiter=mark))]
                 for mark in ((delimiter,) if delimiter else _DELIMITERS)}
    except csv.Error as error:
        problem = (f"lines must end in a line feed; got {shown(text)}, which has carriage returns alone" if "\r" in text
                   else f"the header must be a row of CSV; got {shown(text)} ({error})")
        raise row_error(path, 1, problem) from None
    fitting = [mark for mark, names in tried.items() if set(required) <= set(names)]
    chosen = fitting[0] if fitting else max(tried, key=lambda mark: len(tried[mark]))
    names = tried[chosen]
    if len(names) > 1 and names[0] == "":
        raise ValueError(f"{path.name} line 1: every column must have a name; got {shown(text)}, whose first has none, "
                         f"as when pandas writes its index; write it with index=False ({path})")
    if "" in names:
        raise row_error(path, 1, f"every column must have a name; got {shown(text)}")
    lower = [name.encode().lower() for name in names]  # as DuckDB compares them: without the case of ASCII letters
    again = [shown(name) for name, low in zip(names, lower, strict=True) if lower.count(low) > 1]
    if again:
        raise ValueError(f"{path.name} line 1: every column must have a name of its own, in capitals or not; got "
                         f"{', '.join(again[:20])}; rename or remove all but one ({path})")
    return chosen, names


def _check_line_ends(path: Path) -> None:
    """Raise a ValueError with the first line of a CSV file that ends in another way than line 1."""
    first = ""
    with suppress(OSError, EOFError, zlib.error), open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            end = "CRLF" if line.endswith(b"\r\n") else "LF"
            first = first or end
            body = line.rstrip(b"\r\n")
            if b"\r" in body or (end != first and line.endswith(b"\n")):
                other = "CR" if b"\r" in body else end
                raise ValueError(f"{path.name} line {number}: all lines must end alike; got {other} after {first}; "
                                 f"convert the line ends of the file to LF ({path})") from None


def _bad_csv(path: Path, number: int, text: str) -> ValueError:
    """What DuckDB holds against a line of CSV, without its advice."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    original = shown(next((line.partition(":")[2].strip() for line in lines if line.startswith("Original Line")), ""))
    if "unicode" in text or "utf-8" in text:
        return encoding_error(path, number, original)
    reason = next((line for line in lines[1:] if not line.startswith("Original Line")), lines[0])
    return row_error(path, number, f"a row must have the columns of the header; got {original} ({reason})")
