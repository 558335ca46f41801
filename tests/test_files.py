"""Journals: whole lines, of one writer at a time. JSON files: objects with the members that are needed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from r2rec_jax.files import Journal, read_json


def journal(path: Path) -> Journal[int]:
    return Journal(path, lambda row: row["k"], what="a row", fix="delete it")


def rows(path: Path) -> list[int]:
    return [json.loads(line)["k"] for line in path.read_bytes().splitlines()]


def test_what_another_has_written_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first, second = journal(path), journal(path)
    first.append([{"k": 1}, {"k": 2}])
    with pytest.raises(ValueError, match=r"have the 0 bytes that were read or written last; it has 18: another"):
        second.append([{"k": 1}])
    first.append([{"k": 3}])
    assert rows(path) == [1, 2, 3] == journal(path).rows
    path.unlink()
    with pytest.raises(ValueError, match=r"have the 27 bytes .* it has 0"):
        first.append([{"k": 4}])
    assert not path.exists()


def test_a_torn_end_is_cut_off_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"k": 1}\n{"k": 2')
    found, other = journal(path), journal(path)
    assert found.rows == [1]
    for number in (2, 3):
        found.append([{"k": number}])
    assert rows(path) == [1, 2, 3]
    with pytest.raises(ValueError, match="have the 16 bytes"):
        other.append([{"k": 7}])
    assert rows(path) == [1, 2, 3]


def test_an_append_after_one_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    found = journal(path)
    found.append([{"k": 1}])

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        found.append([{"k": 2}, {"k": 3}])
    monkeypatch.undo()
    found.append([{"k": 4}])
    assert rows(path) == [1, 4]


@pytest.mark.parametrize(("text", "reason"), [
    ("{", "be JSON; Expecting"), ("[]", "be a JSON object; got a list"), ("3", "be a JSON object; got a value"),
    ("{}", "have an object 'config'; got none"), ('{"config": []}', "have an object 'config'; got a list"),
    ('{"config": {}}', "have a list 'rows'; got none"),
    ('{"config": {}, "rows": null}', "have a list 'rows'; got another value"),
])
def test_a_json_file_of_another_shape_is_named(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json must {reason}.*; delete it$"):
        read_json(path, "delete it", config=dict, rows=list)
    path.write_text('{"config": {}, "rows": [1], "more": 2}')
    assert read_json(path, "delete it", config=dict, rows=list)["rows"] == [1]
