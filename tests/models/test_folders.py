"""Folders that are replaced: the old one or the new one is there, whatever stops the writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from r2rec_jax.models.folders import check_new_folder, new_folder, sweep


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


@pytest.mark.parametrize("out", [".", "", "../here", "sub/..", "link"])
def test_the_current_folder_is_refused_by_name_before_anything_is_written(tmp_path: Path, out: str,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no name that another could stand beside, and its shell would be left in a deleted folder."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    made = {"sub/..": lambda: (here / "sub").mkdir(), "link": lambda: (tmp_path / "link").symlink_to(here)}
    made.get(out, lambda: None)()
    path = tmp_path / out if out == "link" else out
    refusal = rf"^the output must not be the current folder \({here}\)"
    with pytest.raises(ValueError, match=refusal):
        check_new_folder(path)
    with pytest.raises(ValueError, match=refusal), new_folder(path):
        pass
    assert {found.name for found in here.iterdir()} <= {"sub"}
    write(Path(path), "a run's own product")
    assert (here / "file").read_text() == "a run's own product"


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "disk" / "adapter", tmp_path / "adapter"
    write(target, "old")
    link.symlink_to(target)
    write(link, "new")
    write(tmp_path / "other" / "sub" / "..", "parent")
    assert link.is_symlink() and (target / "file").read_text() == "new"
    assert (tmp_path / "other" / "file").read_text() == "parent"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "disk", "other"]
