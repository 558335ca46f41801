"""Files that other programs write in their own way: line ends, text without a mark, ids as numbers, dates."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r2rec_jax.config import DataConfig, TableConfig
from r2rec_jax.data.duck import TimeUnit, connect, load_rows, settle_times
from r2rec_jax.data.load import load_dataset
from r2rec_jax.data.readers import open_table, reading

COLUMNS = ("user", "item", "time")


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with connect(DataConfig(name="table", memory_gb=0.5, threads=1)) as opened:
        yield opened


def rows_of(connection: duckdb.DuckDBPyConnection, path: Path, **changes) -> list[tuple]:
    """(user, item, time) of every row."""
    file = open_table(connection, path, COLUMNS)
    load_rows(connection, file, user="user", item="item", rating=None, timestamp="time", **changes)
    return connection.execute("SELECT user_id, item_id, timestamp FROM raw ORDER BY place").fetchall()


def csv_of(path: Path, times: list[str]) -> Path:
    path.write_text("user,item,time\n" + "".join(f"u,i{n},{time}\n" for n, time in enumerate(times)), encoding="utf-8")
    return path


def parquet_of(path: Path, **columns) -> Path:
    least = {"user": ["u", "v"], "item": ["a", "b"], "time": [1, 2]}
    pq.write_table(pa.table(least | columns), path)
    return path


@pytest.mark.parametrize("unit", ["iso", "auto"])
@pytest.mark.parametrize("text", ["31/12/24", "31-12-24", "24-05-01", "024-05-01", "-2024-05-01", "infinity", "epoch"])
def test_a_date_must_begin_with_four_digits_of_a_year(text: str, unit: str, tmp_path: Path,
                                                      connection: duckdb.DuckDBPyConnection) -> None:
    path = csv_of(tmp_path / "a.csv", ["2024-05-01", text])
    with pytest.raises(ValueError, match=rf"a\.csv row 2 .*time: a time must be an ISO date; got '{text}'"):
        rows_of(connection, path, time_unit=unit)
    if text != "infinity":  # which is a number too
        with pytest.raises(ValueError, match=r"a\.csv row 1 .*time: a time must be an ISO date"):
            rows_of(connection, csv_of(tmp_path / "a.csv", [text]), time_unit=unit)


@pytest.mark.parametrize(("times", "unit"), [(["2024-05-01", "1700000000"], "auto"), (["1700000000.5"], "iso"),
                                             (["2024-05-01", "45413.25"], "iso")])
def test_a_number_among_dates_is_no_date(times: list[str], unit: str, tmp_path: Path,
                                         connection: duckdb.DuckDBPyConnection) -> None:
    path = csv_of(tmp_path / "a.csv", times)
    with pytest.raises(ValueError, match=rf"row {len(times)} .*time: a time must be an ISO date; got '{times[-1]}'"):
        rows_of(connection, path, time_unit=unit)


@pytest.mark.parametrize(("text", "unit"), [("1714580999000000000", "seconds"), ("-1714580999000000000", "auto")])
def test_nanoseconds_among_fractions_of_seconds(text: str, unit: TimeUnit, tmp_path: Path,
                                                connection: duckdb.DuckDBPyConnection) -> None:
    path = csv_of(tmp_path / "a.csv", ["1714580999.5", text])
    rows_of(connection, path, time_unit=unit)
    with pytest.raises(ValueError, match=rf"^a\.csv row 2 .*, time: a time in seconds must lie within 1e\+15 of 1970 "
                                         rf"where others have fractions; got '{text}'; write all times in one unit"):
        settle_times(connection, open_table(connection, path, COLUMNS), "time", unit)


@pytest.mark.parametrize("text", ["2024-05-01", "2024/05/01", "2024-5-1", "2024-05-01T00:00:00Z", "2024-05-01 00:00",
                                  "2024-05-01T02:00:00.000+02:00", "2024 05 01", " 2024-05-01"])
def test_dates_that_are_read(text: str, tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    assert rows_of(connection, csv_of(tmp_path / "a.csv", [text])) == [("u", "i0", 1714521600000)]


def test_native_dates_of_parquet_are_read(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    for kind in (pa.date32(), pa.timestamp("ms"), pa.timestamp("us", tz="UTC")):
        times = pa.array([19844, 0], pa.int32()).cast(pa.date32()).cast(kind)
        path = parquet_of(tmp_path / "a.parquet", time=times)
        assert [time for _, _, time in rows_of(connection, path)] == [1714521600000, 0]


def test_sql_that_duckdb_quotes_is_no_line_of_the_file(connection: duckdb.DuckDBPyConnection) -> None:
    expected = r"a\.csv must be a whole csv file in UTF-8; got Conversion Error: "
    with pytest.raises(ValueError, match=expected) as caught, reading(Path("a.csv")):
        connection.execute("SELECT CAST(CAST('inf' AS DOUBLE) AS HUGEINT)")
    assert "line 1" not in str(caught.value) and "SELECT" not in str(caught.value)


@pytest.mark.parametrize(("content", "expected"), [
    (b"user,item,time\ru,a,1\ru,b,2\r",
     r"a\.csv line 1: lines must end in a line feed; got 'user,item,time.ru,a.*carriage returns alone; correct"),
    (b"user,item,time\r\nu,a,1\r\nu,b,2\nu,c,3\n", r"a\.csv line 3: all lines must end alike; got LF after CRLF; conv"),
    (b"user,item,time\nu,a,1\nu,b,2\r\n", r"a\.csv line 3: all lines must end alike; got CRLF after LF; convert"),
    (b"user,item,time\nu,a,1\ru,b,2\n", r"a\.csv line 2: all lines must end alike; got CR after LF; convert"),
    (b",user,item,time\n0,u,a,1\n", r"a\.csv line 1: .*got ',user,item,time', whose .*; write it with index=False"),
])
def test_line_ends_and_an_index_without_a_name(content: bytes, expected: str, tmp_path: Path,
                                               connection: duckdb.DuckDBPyConnection) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=expected) as caught:
        rows_of(connection, tmp_path / "a.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [
    ("a.csv", "user,item,time\nZoë,a,1\n"), ("a.jsonl", '{"user": "Zoë", "item": "a", "time": 1}\n')])
def test_a_mark_of_utf8_may_begin_a_file(name: str, text: str, tmp_path: Path,
                                         connection: duckdb.DuckDBPyConnection) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert rows_of(connection, tmp_path / name) == [("Zoë", "a", 1)]


@pytest.mark.parametrize(("name", "parts"), [("a.parquet", "a.parquet/*.parquet"), ("plays", "plays/*.parquet"),
                                             ("a.csv", "a.csv/*.csv")])
def test_a_folder_of_parts_is_no_missing_file(name: str, parts: str, tmp_path: Path,
                                              connection: duckdb.DuckDBPyConnection) -> None:
    (tmp_path / name).mkdir()
    for number in range(2):
        parquet_of(tmp_path / name / f"part-{number}.parquet")
    with pytest.raises(ValueError, match=rf"^{name} must be one file; got a folder; make .* by COPY ") as caught:
        rows_of(connection, tmp_path / name)
    assert f"(FROM '{parts}') TO 'one.parquet', and name that" in str(caught.value)
    if name == "a.parquet":  # what it says to do does it
        connection.execute(f"COPY (FROM '{tmp_path}/{parts}') TO '{tmp_path}/one.parquet'")
        assert len(rows_of(connection, tmp_path / "one.parquet")) == 4


def test_text_of_parquet_without_a_mark(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    def raw(*texts: str) -> pa.Array:
        return pa.array([text.encode() for text in texts], pa.binary())

    events = parquet_of(tmp_path / "a.parquet", user=raw("Zoë", "v"), item=raw("a", "b"), time=raw("2024-05-01", "2024"
                                                                                                   "-05-02"))
    assert rows_of(connection, events) == [("Zoë", "a", 1714521600000), ("v", "b", 1714608000000)]
    tags = pa.array([["Fünf".encode(), b"x"], []], pa.list_(pa.binary()))
    pq.write_table(pa.table({"id": raw("a", "b"), "name": raw("Café", "Bar"), "tags": tags}), tmp_path / "i.parquet")
    table = TableConfig(interactions="a.parquet", user="user", item="item", rating=None, timestamp="time",
                        items="i.parquet", item_id="id", title="name", categories="tags")
    found = load_dataset(DataConfig(name="table", threads=1, table=table), tmp_path).items
    assert [(item.title, item.genres) for item in found] == [("Café", ("Fünf", "x")), ("Bar", ())]
    bad = parquet_of(tmp_path / "a.parquet", user=pa.array([b"u", b"Caf\xe9"], pa.binary()))
    with pytest.raises(ValueError, match=r"a\.parquet: the text must be UTF-8; got 'Caf.*xE9'; save it as") as caught:
        rows_of(connection, bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
def test_nan_is_a_missing_id(kind: pa.DataType, tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    path = parquet_of(tmp_path / "a.parquet", user=pa.array([7.0, float("nan")], kind))
    with pytest.raises(ValueError, match=r"a\.parquet row 2 .*user: a user id must not be empty; got 'nan'"):
        rows_of(connection, path)


@pytest.mark.parametrize("kind", [pa.float64(), pa.float32()])
def test_nan_is_a_missing_attribute(kind: pa.DataType, tmp_path: Path) -> None:
    nan = float("nan")
    parquet_of(tmp_path / "a.parquet")
    parquet_of(tmp_path / "i.parquet", year=pa.array([1999.0, nan], kind), price=pa.array([9.5, nan], kind),
               title=pa.array([nan, 7.5], kind), tag=pa.array([nan, 2.5], kind))
    parquet_of(tmp_path / "u.parquet", age=pa.array([nan, 30.5], kind))
    table = TableConfig(interactions="a.parquet", user="user", item="item", rating=None, timestamp="time",
                        items="i.parquet", item_id="item", year="year", categories="tag", details=("price",),
                        users="u.parquet", user_id="user", attributes=("age",))
    found = load_dataset(DataConfig(name="table", threads=1, table=table), tmp_path)
    assert [(item.title, item.year, item.genres, item.details) for item in found.items] == [
        ("a", 1999, (), (("price", "9.5"),)), ("7.5", None, ("2.5",), ())]
    assert [user.attributes for user in found.users] == [(), (("age", "30.5"),)]
    assert found.notes["items_without_title"] == 1


def test_decimal_ids_are_as_those_of_floats(tmp_path: Path, connection: duckdb.DuckDBPyConnection) -> None:
    numbers = ["7.00", "-2.50"]
    for column in (pa.array(map(Decimal, numbers), pa.decimal128(9, 2)), pa.array(map(float, numbers))):
        path = parquet_of(tmp_path / "a.parquet", user=column, item=column)
        assert [row[:2] for row in rows_of(connection, path)] == [("7", "7"), ("-2.5", "-2.5")]
    large = pa.array([Decimal("9" * 38), None], pa.decimal128(38, 0))
    with pytest.raises(ValueError, match=r"row 2 .*a user id must not be empty"):
        rows_of(connection, parquet_of(tmp_path / "a.parquet", user=large))
    assert connection.execute("SELECT user_id FROM raw LIMIT 1").fetchall() == [("9" * 38,)]
