"""Columns that read like rows: laws against plain Python lists, and what is refused."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.data.randomness import digest, id_keys
from r2rec_jax.data.tables import Item, ItemTable, User, UserTable, id_order

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NAMES = ("age", "town", "job")


@st.composite
def draw_users(draw: st.DrawFn) -> list[User]:
    ids = draw(st.lists(TEXT, max_size=12, unique=True))
    return [User(i, tuple((name, draw(TEXT)) for name in NAMES if draw(st.booleans()))) for i in ids]


@st.composite
def draw_items(draw: st.DrawFn) -> list[Item]:
    ids = draw(st.lists(TEXT, max_size=12, unique=True))
    years = st.none() | st.integers(-2000, 3000)
    return [Item(i, draw(TEXT), draw(years), tuple(draw(st.lists(TEXT, max_size=3))),
                 tuple((name, draw(TEXT)) for name in NAMES if draw(st.booleans()))) for i in ids]


def in_column_order(rows: list[tuple[tuple[str, str], ...]]) -> list[tuple[tuple[str, str], ...]]:
    names = list(dict.fromkeys(name for row in rows for name, _ in row))
    return [tuple(sorted(row, key=lambda pair: names.index(pair[0]))) for row in rows]


@settings(max_examples=60, deadline=None)
@given(rows=draw_users())
def test_users_read_like_the_list(rows: list[User]) -> None:
    table = UserTable.from_rows(rows)
    expected = [User(row.user_id, pairs)
                for row, pairs in zip(rows, in_column_order([r.attributes for r in rows]), strict=True)]
    assert list(table) == expected == [table[i] for i in range(len(table))]
    assert UserTable.from_rows(table) is table and UserTable.from_rows(list(table)) == table
    assert table.keys().tolist() == [digest(row.user_id) for row in rows]


@settings(max_examples=60, deadline=None)
@given(rows=draw_items(), start=st.integers(-3, 14), stop=st.integers(-3, 14), step=st.sampled_from([1, 2, -1]))
def test_items_are_taken_sliced_and_found(rows: list[Item], start: int, stop: int, step: int) -> None:
    table = ItemTable.from_rows(rows)
    plain = list(table)
    assert [(i.item_id, i.title, i.year, i.genres) for i in plain] == [(i.item_id, i.title, i.year, i.genres)
                                                                      for i in rows]
    for keyed in (False, True):
        if keyed:
            table.keys()
        part = table[start:stop:step]
        assert list(part) == plain[start:stop:step]
        assert part.keys().tolist() == [digest(item.item_id) for item in part]
        assert list(table.take(range(len(rows))[::-1])) == plain[::-1]
    asked = [row.item_id for row in rows] + ["no such id", *(row.item_id for row in rows[:1])]
    ids = [row.item_id for row in rows]
    expected = [ids.index(raw) if raw in ids else None for raw in asked]
    assert [table.find(raw) for raw in asked] == expected
    assert table.find_all(asked).tolist() == [-1 if index is None else index for index in expected]
    assert table.find_all([]).tolist() == []


def test_equal_keys_are_told_apart_by_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r2rec_jax.data.tables.digest", lambda raw: 7)
    table = UserTable(["a", "b", "c"], keys=np.full(3, 7, np.uint64))
    assert [table.find(raw) for raw in "abcd"] == [0, 1, 2, None]


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.text("0123456789", min_size=1, max_size=25), unique=True, max_size=12) | st.lists(
    TEXT, unique=True, max_size=12))
def test_index_order_is_numeric_where_all_are_numbers(ids: list[str]) -> None:
    numeric = all(raw.isascii() and raw.isdigit() for raw in ids)
    order = id_order(pa.array(ids, pa.large_string()))
    found = ids if order is None else [ids[i] for i in order]
    assert found == sorted(ids, key=lambda raw: (int(raw) if numeric else 0, raw))


def test_keys_do_not_depend_on_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [f"id-{i}-é" for i in range(10)]
    expected = [digest(raw) for raw in ids]
    monkeypatch.setattr("r2rec_jax.data.randomness._HASHED_AT_ONCE", 3)
    for column in (ids, pa.array(ids), pa.array(ids, pa.large_string()), pa.array(["x", *ids]).slice(1)):
        assert id_keys(column).tolist() == expected
    assert expected[0] == 12018130603242049062  # the same in every process and release: frozen draws hang on it


def test_arrow_and_numpy_columns_are_taken_as_they_come() -> None:
    table = ItemTable(pa.chunked_array([["b"], ["a"]]), pa.array(["B", "A"]).dictionary_encode(),
                      np.array([1990, 2001]), pa.array([["x"], None]), [("author", pa.array([None, "W"]))])
    assert list(table) == [Item("b", "B", 1990, ("x",)), Item("a", "A", 2001, (), (("author", "W"),))]
    assert list(ItemTable(["1"], ["T"])) == [Item("1", "T", None, ())]
    assert table.ids.type == table.title.type == pa.large_string() and table.year.type == pa.int32()
    assert table != UserTable(["b", "a"]) and table != table[:1] and table[-1].item_id == "a"
    with pytest.raises(IndexError):
        table[2]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: UserTable(["1", "2"], [("age", ["3"])]), "one value a row"),
    (lambda: UserTable(["1", None]), "ids must not be null; 1 of 2"),
    (lambda: ItemTable(["1"], [None]), "title must not be null"),
    (lambda: UserTable(["1"], [("age", ["3"]), ("age", ["4"])]), "must be unique"),
    (lambda: UserTable.from_rows([User("1", (("age", "3"), ("age", "4")))]), "row 0 has 'age' twice"),
])
def test_bad_columns_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
