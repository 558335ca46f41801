"""Folders that appear whole or not at all: written beside their place under another name, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_new_folder(out: str | Path) -> Path:
    """The path of a folder that may be written: absent or empty.

    Raises:
        ValueError: it holds something, or is a file.
    """
    path = Path(out).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        kind = "a folder with files in it" if path.is_dir() else "a file"
        raise ValueError(f"the output folder must be new or empty; {path} is {kind}; choose another or remove it")
    return path


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Give a temporary folder to write in; it becomes ``out`` when the block ends well and vanishes when it fails.

    Args:
        out: the final place; must be absent or empty.

    Raises:
        ValueError: ``out`` holds something.
    """
    path = check_new_folder(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rmdir()
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
