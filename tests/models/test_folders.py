"""Folders that are replaced: the old one or the new one is there, whatever stops the writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from r2rec_jax.models.folders import new_folder, sweep


def write(path: Path, text: str) -> None:
    with new_folder(path, replace=True) as folder:
        (folder / "file").write_text(text)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("number", [1, 2])
def test_the_old_folder_stays_when_a_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int,
                                                  stop: type[BaseException]) -> None:
    path = tmp_path / "adapter"
    write(path, "old")
    calls, rename = [], os.rename

    def stopped(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == number:
            raise stop
        rename(source, target)

    monkeypatch.setattr(os, "rename", stopped)
    with pytest.raises(stop):
        write(path, "new")
    monkeypatch.undo()
    assert (path / "file").read_text() == "old" and list(tmp_path.iterdir()) == [path]
    write(path, "new")
    assert (path / "file").read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for before in ([], [path]):
        with pytest.raises(RuntimeError), new_folder(path, replace=True) as folder:
            (folder / "file").write_text("half")
            raise RuntimeError
        assert list(tmp_path.iterdir()) == before
        write(path, "whole")


def test_sweeping_after_a_kill_between_two_renames_keeps_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "sft" / "adapter"
    write(path, "old")
    os.rename(path, path.with_name(".adapter.old"))
    path.with_name(".adapter.tmp").mkdir()
    sweep(tmp_path)
    assert (path / "file").read_text() == "old" and list(path.parent.iterdir()) == [path]
    path.with_name(".adapter.old").mkdir()
    sweep(tmp_path)
    assert (path / "file").read_text() == "old" and list(path.parent.iterdir()) == [path]
