"""Reading files of events by DuckDB: formats, broken rows, duplicates, k-core, dense indices, memory."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.config import DataConfig
from r2rec_jax.data.attributes import read_attributes
from r2rec_jax.data.duck import Events, connect, index_rows, load_rows, settle_times
from r2rec_jax.data.readers import kind_of, open_table, stem_of

COLUMNS = ("user", "item", "rating", "time")
ROWS = [("10", "b", 5.0, 300), ("2", "a", 1.5, 200), ("10", "a", 4.0, 100), ("2", 'x "y", z', 3.0, 200)]


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(DataConfig(name="table", memory_gb=0.5, threads=1)) as opened:
        yield opened


def csv_text(rows: list, mark: str = ",") -> str:
    quoted = [[f'"{str(v).replace(chr(34), chr(34) * 2)}"' if mark in str(v) or '"' in str(v) else str(v) for v in row]
              for row in rows]
    return "".join(mark.join(row) + "\n" for row in [list(COLUMNS), *quoted])


def json_lines(rows: list) -> str:
    return "".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in rows)


def write(path: Path, content: str | bytes) -> Path:
    raw = content.encode() if isinstance(content, str) else content
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(raw))
    elif path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(raw)
    else:
        path.write_bytes(raw)
    return path


def read(connection: duckdb.DuckDBPyConnection, path: Path, k_core: int = 0, **changes) -> Events:
    options = {"user": "user", "item": "item", "rating": "rating", "timestamp": "time"} | changes
    columns = [options[name] for name in ("user", "item", "rating", "timestamp") if options[name] is not None]
    file = open_table(connection, path, columns)
    load_rows(connection, file, **options)
    unit = settle_times(connection, file, options["timestamp"], options.get("time_unit", "auto"))
    return index_rows(connection, k_core=k_core, unit=unit)


def listed(events: Events) -> list[tuple]:
    return [(events.user_ids[int(u)].as_py(), events.item_ids[int(i)].as_py(), float(r), int(t))
            for u, i, r, t in zip(events.user_idx, events.item_idx, events.rating, events.timestamp, strict=True)]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst", "a.tsv", "semi.csv", "a.jsonl", "a.jsonl.gz",
                                  "a.jsonl.zst", "a.parquet", "b[1]*.csv", "it's 'x'.csv.gz", "user=1/a.csv"])
def test_every_format_gives_the_same_events(name: str, tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if kind_of(path) == "parquet":
        pq.write_table(pa.table({c: [row[n] for row in ROWS] for n, c in enumerate(COLUMNS)}), path)
    elif kind_of(path) == "jsonl":
        write(path, json_lines(ROWS))
    else:
        write(path, csv_text(ROWS, {"a.tsv": "\t", "semi.csv": ";"}.get(name, ",")))
    events = read(connection, path)
    assert events.user_ids.to_pylist() == ["2", "10"]  # numbers in numeric order
    assert events.item_ids.to_pylist() == ["a", "b", 'x "y", z']
    assert sorted(listed(events)) == sorted(ROWS)
    assert events.user_idx.tolist() == [0, 0, 1, 1] and events.timestamp.tolist() == [200, 200, 100, 300]
    assert events.notes == {"rows": 4, "duplicates": 0} and events.unit == "seconds"
    assert (events.user_idx.dtype, events.item_idx.dtype, events.timestamp.dtype) == (np.int32, np.int32, np.int64)


def test_windows_line_ends_and_a_byte_order_mark(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    text = csv_text(ROWS).replace("\n", "\r\n")
    assert sorted(listed(read(connection, write(tmp_path / "a.csv", b"\xef\xbb\xbf" + text.encode())))) == sorted(ROWS)


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("a.csv", "user,item,rating,time\n1,a,5,1\n1,b,high,2\n",
     r"a\.csv row 2 .*rating: a rating must be a number.*'high'"),
    ("a.csv", "user,item,rating,time\n1,a,nan,1\n", r"a\.csv row 1 .*must be a number.*'nan'"),
    ("a.csv", "user,item,rating,time\n1,a,1_0,1\n", r"row 1 .*must be a number.*'1_0'"),
    ("a.csv", "user,item,rating,time\n1,a,,1\n", r"row 1 .*rating.*got nothing"),
    ("a.csv", "user,item,rating,time\n1,a,5,1\n,a,5,1\n", r"row 2 .*user: a user id must not be empty"),
    ("a.csv", "user,item,rating,time\n1,,5,1\n", r"row 1 .*item: an item id must not be empty"),
    ("a.csv", "user,item,rating,time\n1,a,5,noon\n1,b,5,1\n", r"row 1 .*time: a time must be an ISO date.*'noon'"),
    ("a.csv", "user,item,rating,time\n1,a,5,1\n1,b,5,noon\n", r"row 2 .*time: a time must be a number.*'noon'"),
    ("a.csv", "user,item,time\n1,a,1\n", r"a\.csv must have the columns user, item, rating, time; missing rating"),
    ("a.csv", "user,item,rating,user\n", r"line 1: every column must have a name of its own.*; got 'user', 'user'; "),
    ("a.csv", "user,item,rating,time,Rating\n1,a,5,1,4\n", r"own, in capitals or not; got 'rating', 'Rating'; rename"),
    ("a.csv", "user,item,rating,time,\n", r"a\.csv line 1: every column must have a name; got "),
    ("a.csv", "user,item,rating,time\n1,a,5,1\n1,b,5\n", r"a\.csv line 3: .*columns of the header; got '1,b,5'"),
    ("a.csv", "user,item,rating,time\n1,a,5,1\n1,b,5,1,9\n", r"a\.csv line 3: "),
    ("a.csv", 'user,item,rating,time\n1,a,5,1\n1,"b,5,1\n', r"a\.csv line 3: .*quote"),
    ("a.csv", b"user,item,rating,time\n1,\xff,5,1\n", r"a\.csv line 2: the text must be UTF-8; got .*; save it as UTF"),
    ("a.csv", b"us\xffer,item,rating,time\n", r"a\.csv line 1: .* UTF-8; got byte 0xff; save it as UTF-8, or"),
    ("a.csv", "user,item,rating,time\n1,a,5,1\n".encode("utf-16"), r"a\.csv line 1: .*; got byte 0xf.; save it"),
    ("a.csv", "", r"a\.csv must hold at least one row; got an empty file \(0 bytes\)"),
    ("a.csv", "user,item,rating,time\n", r"a\.csv must hold at least one row; got none"),
    ("a.csv", "\n", r"a\.csv line 1: the header must name the columns"),
    ("a.jsonl", '{"user": 1, "item": "a", "rating": 5, "time": 1}\n{"user": 1,\n',
     r"a\.jsonl line 2: a row must be a JSON"),
    ("a.jsonl", b'{"user": 1, "item": "a", "rating": 5, "time": 1}\n' * 3 + b'{"user": "\xff"}\n',
     r"a\.jsonl line 4: the text must be UTF-8; got byte 0xff; save it as UTF-8, or get the file again"),
    ("a.jsonl", '{"user": 1, "item": "a", "rating": 5, "time": 1}\n[1]\n',
     r"a\.jsonl line 2: a row must be a JSON object"),
    ("a.jsonl", '{"user": 1, "item": "a", "rating": 5, "time": 1}\n{"user": 1, "item": "b", "time": 2}\n',
     r"a\.jsonl row 2 .*rating.*got nothing"),
    ("a.jsonl", '{"user": 1, "item": "a", "time": 2}\n', "missing rating among 'user', 'item', 'time'"),
    ("a.jsonl", "\n\n", "got blank lines only"),
    ("a.parquet", b"PAR1xxxxPAR1", r"a\.parquet must be a whole parquet file"),
    ("a.xlsx", "x", r"a\.xlsx must be \.csv, \.tsv, \.jsonl or \.parquet"),
])
def test_broken_files_are_refused_in_one_line(name: str, content: str | bytes, expected: str, tmp_path: Path,
                                              connection: duckdb.DuckDBPyConnection) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=expected) as caught:
        read(connection, path)
    assert "\n" not in str(caught.value) and "r2rec-duckdb" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz"])
def test_a_cut_archive_is_refused(name: str, tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    rows = [(str(n), str(n * 7919 % 10007), 5.0, n) for n in range(20000)]
    whole = gzip.compress((csv_text(rows) if "csv" in name else json_lines(rows)).encode())
    path = tmp_path / name
    path.write_bytes(whole[:-5000])
    with pytest.raises(ValueError, match=f"{name} must be a whole"):
        read(connection, path)
    with pytest.raises(ValueError, match=r"b\.csv must be in .*; the file is missing"):
        read(connection, tmp_path / "b.csv")


@pytest.mark.parametrize(("column", "expected", "unit"), [
    ([0, 5, 1_600_000_000], [0, 5, 1_600_000_000], "seconds"),
    ([0, 5, 1_600_000_000_123], [0, 5, 1_600_000_000_123], "milliseconds"),
    (["2024-05-01T12:00:00+02:00", "2024-05-01T10:00:00Z", "2024-05-01"],
     [1714557600000, 1714557600000, 1714521600000], "milliseconds"),
    ([2.0, 1.9e8 + 0.5, 1e9], [2000, 190_000_000_500, 1_000_000_000_000], "milliseconds"),
])
@pytest.mark.parametrize("form", ["a.csv", "a.jsonl", "a.parquet"])
def test_times(column: list, expected: list[int], unit: str, form: str, tmp_path: Path,
               connection: duckdb.DuckDBPyConnection) -> None:
    rows = [("u", f"i{n}", 5.0, value) for n, value in enumerate(column)]
    if form == "a.parquet":
        pq.write_table(pa.table({c: [row[n] for row in rows] for n, c in enumerate(COLUMNS)}), tmp_path / form)
    else:
        write(tmp_path / form, csv_text(rows) if form == "a.csv" else json_lines(rows))
    events = read(connection, tmp_path / form)
    assert {item: time for _, item, _, time in listed(events)} == {f"i{n}": time for n, time in enumerate(expected)}
    assert events.unit == unit


@pytest.mark.parametrize("form", ["a.csv", "a.jsonl"])
def test_days_with_fractions_are_not_cut_off(form: str, tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """All of one day would be at one time, and which like is the last one a matter of chance."""
    rows = [("u", "a", 5.0, 45413.0), ("u", "b", 5.0, 45413.25)]
    write(tmp_path / form, csv_text(rows) if form == "a.csv" else json_lines(rows))
    with pytest.raises(ValueError, match=r"row 2 .* a time below 1e\+08 must be a whole number.*got '45413\.25'"):
        read(connection, tmp_path / form)


@pytest.mark.parametrize("unit", ["auto", "seconds"])
@pytest.mark.parametrize("form", ["a.csv", "a.jsonl"])
def test_seconds_with_fractions_keep_their_order(form: str, unit: str, tmp_path: Path,
                                                 connection: duckdb.DuckDBPyConnection) -> None:
    """Clicks of one second: file order would decide between them, against their times; and of two the latest counts."""
    times = {"a": 1714521600.751, "b": 1714521600.125, "c": 1714521600.0, "d": 1714521599.9996}
    rows = [("u", item, 5.0, time) for item, time in times.items()] + [("u", "c", 1.0, 1714521599.5)]
    write(tmp_path / form, csv_text(rows) if form == "a.csv" else json_lines(rows))
    events = read(connection, tmp_path / form, time_unit=unit)
    assert events.unit == "milliseconds"
    assert listed(events) == [("u", "c", 5.0, 1714521600000), ("u", "d", 5.0, 1714521600000),
                              ("u", "b", 5.0, 1714521600125), ("u", "a", 5.0, 1714521600751)]


@pytest.mark.parametrize("form", ["a.csv", "a.parquet"])
def test_ids_are_the_same_however_they_are_set_off(form: str, tmp_path: Path, connection: duckdb.DuckDBPyConnection,
                                                   ) -> None:
    """Blanks behind a comma, and what pandas makes of numbers with gaps."""
    if form == "a.parquet":
        pq.write_table(pa.table({"user": [1.0, 2.5], "item": ["x ", "x"], "rating": [4, 5], "time": [1, 2]}),
                       tmp_path / form)
    else:
        write(tmp_path / form, "user, item, rating, time\n1, x, 4, 1\n2.5, x , 5, 2\n")
    events = read(connection, tmp_path / form)
    assert events.user_ids.to_pylist() == ["1", "2.5"] and events.item_ids.to_pylist() == ["x"]


def test_typed_times_of_parquet(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    times = pa.array([1_600_000_000_123_456, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"user": [1, 1], "item": [1, 2], "rating": [4, 5], "time": times}), tmp_path / "a.parquet")
    events = read(connection, tmp_path / "a.parquet")
    assert events.timestamp.tolist() == [0, 1_600_000_000_123] and events.unit == "milliseconds"
    assert events.user_ids.to_pylist() == ["1"]


def test_mixed_units_are_refused(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    path = write(tmp_path / "a.csv", csv_text([("u", "a", 5, 1_600_000_000), ("u", "b", 5, 1_600_000_000_000)]))
    with pytest.raises(ValueError, match=r"all be seconds or all milliseconds; row 2 .* row 1"):
        read(connection, path)
    assert read(connection, path, time_unit="milliseconds").unit == "milliseconds"


def test_without_a_time_the_file_order_counts(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    rows = [("u", f"i{n * 7 % 11}", 5.0, 0) for n in range(11)]
    events = read(connection, write(tmp_path / "a.csv", csv_text(rows)), timestamp=None)
    assert [item for _, item, _, _ in listed(events)] == [item for _, item, _, _ in rows]


def test_of_duplicates_the_latest_counts(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    rows = [("u", "a", 1.0, 10), ("u", "a", 2.0, 30), ("u", "a", 3.0, 20), ("u", "b", 4.0, 5), ("v", "a", 1.0, 7),
            ("v", "a", 5.0, 7)]  # equal times: the later row
    events = read(connection, write(tmp_path / "a.csv", csv_text(rows)))
    assert listed(events) == [("u", "b", 4.0, 5), ("u", "a", 2.0, 30), ("v", "a", 5.0, 7)]
    assert events.notes == {"rows": 6, "duplicates": 3}


def k_core_by_hand(pairs: set[tuple[str, str]], k: int) -> set[tuple[str, str]]:
    while True:
        users = {u for u, _ in pairs if sum(u == v for v, _ in pairs) >= k}
        items = {i for _, i in pairs if sum(i == j for _, j in pairs) >= k}
        kept = {(u, i) for u, i in pairs if u in users and i in items}
        if kept == pairs:
            return pairs
        pairs = kept


@settings(max_examples=12, deadline=None)
@given(pairs=st.sets(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=40), k=st.integers(1, 4))
def test_the_k_core_is_the_largest_one(pairs: set[tuple[int, int]], k: int, tmp_path_factory) -> None:
    named = {(f"u{u}", f"i{i}") for u, i in pairs}
    path = write(tmp_path_factory.mktemp("core") / "a.csv", csv_text([(u, i, 5.0, 1) for u, i in sorted(named)]))
    expected = k_core_by_hand(named, k)
    with connect(DataConfig(name="table", threads=1)) as connection:
        if not expected:
            with pytest.raises(ValueError, match=rf"data\.k_core must leave some events; got {k}"):
                read(connection, path, k_core=k)
            return
        events = read(connection, path, k_core=k)
    assert {(u, i) for u, i, _, _ in listed(events)} == expected
    assert events.user_ids.to_pylist() == sorted({u for u, _ in expected})
    assert events.item_ids.to_pylist() == sorted({i for _, i in expected})
    if k > 1:
        assert events.notes["k_core_events"] == len(named) - len(expected)
        assert events.notes["k_core_users"] == len({u for u, _ in named}) - len(events.user_ids)


def test_little_memory_is_enough(tmp_path: Path) -> None:
    rows = 200_000
    rng = np.random.default_rng(0)
    user, item = rng.integers(0, rows // 3, rows), rng.integers(0, rows // 5, rows)
    pq.write_table(pa.table({"user": pa.array([f"user-{u:024d}" for u in user]), "item": item, "rating": np.ones(rows),
                             "time": np.arange(rows)}), tmp_path / "a.parquet")
    spill = tmp_path / "spill"
    spill.mkdir()
    with connect(DataConfig(name="table", memory_gb=0.25, threads=1, temp_dir=str(spill))) as connection:
        assert list(spill.iterdir())
        events = read(connection, tmp_path / "a.parquet")
    assert not list(spill.iterdir())  # nothing is left behind
    pairs = {}
    for row in range(rows):
        pairs[user[row], item[row]] = row
    assert len(events.user_idx) == len(pairs) and events.notes["duplicates"] == rows - len(pairs)
    assert sorted(events.timestamp.tolist()) == sorted(pairs.values())


def test_a_missing_temp_dir_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.temp_dir must be a folder"), connect(
            DataConfig(name="table", temp_dir=str(tmp_path / "none"))):
        pass


def test_attributes_come_in_index_order_whatever_columns_are_called(
        tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    path = write(tmp_path / "a.csv", "id,place,idx,missing\nb,2,x,\nz,9,y,q\na,1,,p\n")
    file = open_table(connection, path, ("id", "place", "idx", "missing"))
    found = read_attributes(connection, file, "id", pa.array(["a", "b", "c"], pa.large_string()),
                            {"place": '"place"', "other": '"idx"'}, repeated="refuse")
    assert found.column("place").to_pylist() == ["1", "2", None] and found.missing == 1
    assert found.column("other").to_pylist() == [None, "x", None]
    assert found.filled("other", pa.array(["A", "B", "C"], pa.large_string())).to_pylist() == ["A", "x", "C"]


def test_repeated_and_empty_ids_of_attributes(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    ids = pa.array(["a", "b"], pa.large_string())
    file = open_table(connection, write(tmp_path / "a.csv", "id,t\na,1\nb,2\na,3\nq,4\nq,5\n"), ("id", "t"))
    found = read_attributes(connection, file, "id", ids, {"t": '"t"'}, repeated="last")
    assert found.column("t").to_pylist() == ["3", "2"] and found.passed == 1
    with pytest.raises(ValueError, match=r"a\.csv row 1 .*, id: ids must be unique; 'a' comes again"):
        read_attributes(connection, file, "id", ids, {"t": '"t"'}, repeated="refuse")
    file = open_table(connection, write(tmp_path / "b.csv", "id,t\na,1\n,2\n"), ("id", "t"))
    with pytest.raises(ValueError, match=r"b\.csv row 2 .*, id: an id must not be empty"):
        read_attributes(connection, file, "id", ids, {"t": '"t"'}, repeated="last")


def test_names() -> None:
    assert [stem_of(Path(name)) for name in ("Books.csv.gz", "a.b.jsonl.zst", "x.parquet", "plain")] == [
        "Books", "a.b", "x", "plain"]
    assert kind_of(Path("A.CSV.GZ")) == "csv" and kind_of(Path("a.zip")) is None
