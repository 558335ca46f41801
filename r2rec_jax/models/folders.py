"""Folders that appear whole or not at all: written beside their place under another name, flushed to disk, renamed.

    .NAME.tmp     being written
    .NAME.old     what a rename has just put away
    .NAME.lock    held by the process that writes

A process that is killed leaves some of them. The next one that writes to the same place deletes them; a run folder is
swept as a whole when a run starts (:func:`sweep`). A folder under its own name is always whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from r2rec_jax.files import beside, held, sync, sync_tree
from r2rec_jax.progress import say

_LEFT = (".tmp", ".old", ".gone", ".lock")


def place_of(out: str | Path) -> Path:
    """Where a folder that the user names is written: an absolute path without links.

    Raises:
        ValueError: it is the current folder; whoever stands in it would be left in a deleted one.
    """
    path = Path(out).expanduser().resolve()
    if path == Path.cwd():
        raise ValueError(f"the output must not be the current folder ({path}), which a rename replaces; name another, "
                         "or start elsewhere")
    return path


def check_new_folder(out: str | Path) -> Path:
    """The path of a folder that may be written: absent or empty.

    Raises:
        ValueError: it holds something, is a file, or the current folder.
    """
    path = place_of(out)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        kind = "a folder with files in it" if path.is_dir() else "a file"
        raise ValueError(f"the output folder must be new or empty; {path} is {kind}; choose another or remove it")
    return path


@contextmanager
def new_folder(out: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder to write in; it becomes ``out`` when the block ends well and vanishes when it fails.

    Its files are on disk before it is renamed, and the rename is when the block has been left.

    Args:
        out: the final place; must be absent or empty, unless ``replace``.
        replace: a folder that lies there goes when the new one is whole, and stays when the block fails.

    Raises:
        ValueError: ``out`` is not to be replaced and holds something or is the current folder, or another process is
            writing it.
    """
    path = Path(out).expanduser().resolve() if replace else check_new_folder(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = beside(path, "tmp"), beside(path, "old")
    with held(beside(path, "lock"), str(path), "wait for it or choose another place", remove=True):
        _put_back(old, path)  # killed between the two renames below
        for left in (temporary, old):
            if left.exists():
                say(f"{path}: an earlier write was interrupted; deleting {left.name}")
                shutil.rmtree(left)
        temporary.mkdir()
        try:
            yield temporary
            sync_tree(temporary)
            if path.exists():
                os.rename(path, old)
            os.rename(temporary, path)
            sync(path.parent)
        finally:
            _put_back(old, path)  # stopped between them
            for left in (temporary, old):
                shutil.rmtree(left, ignore_errors=True)


def _put_back(old: Path, path: Path) -> None:
    """Give a folder that was put away its name again, if nothing has taken its place."""
    if old.exists() and not path.exists():
        os.rename(old, path)


def delete_folder(folder: Path) -> None:
    """Delete a folder, which is never seen half deleted under its name; no folder is no error."""
    if folder.exists():
        gone = beside(folder, "gone")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(folder, gone)
        shutil.rmtree(gone)


def sweep(folder: Path, depth: int = 2) -> None:
    """Delete what killed writers left in a folder, and say so; what a live process is writing stays, and a folder that
    was put away, and that nothing has taken the place of, has its name again.

    Args:
        folder: nobody else writes single files into it.
        depth: levels of folders below it that are looked into.
    """
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") and path.suffix in _LEFT:
            try:
                with held(path.with_suffix(".lock"), str(path), "wait for it", remove=True):
                    _delete_left(path)
            except ValueError:
                continue
        elif depth and path.is_dir() and not path.is_symlink():
            sweep(path, depth - 1)


def _delete_left(path: Path) -> None:
    if path.suffix == ".lock" or not path.exists():
        return
    place = path.with_name(path.stem.removeprefix("."))
    if path.suffix == ".old" and not place.exists():
        say(f"{path.parent}: an earlier write was interrupted; {place.name} is the one before it")
        _put_back(path, place)
        return
    say(f"{path.parent}: an earlier write was interrupted; deleting {path.name}")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
