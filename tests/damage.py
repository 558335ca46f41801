"""What disks, copies and people do to files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np


def truncate(path: Path) -> None:
    """Leave the first half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip_a_bit(path: Path) -> None:
    """Flip one bit, at a place drawn from the file's name and size."""
    data = bytearray(path.read_bytes())
    bit = int(np.random.default_rng([*path.name.encode(), len(data)]).integers(8 * max(1, len(data))))
    if data:
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def delete(path: Path) -> None:
    """Remove the file."""
    path.unlink()


DAMAGES = (truncate, flip_a_bit, delete)


def damaged_copies(folder: Path, part: str, scratch: Path) -> Iterator[tuple[str, Path]]:
    """Copies of ``folder``, each with one file under ``part`` damaged in one way; each is deleted before the next.

    Yields:
        What was done, as ``"delete params/manifest.ocdbt"``, and the copy.
    """
    for file in sorted(p.relative_to(folder) for p in (folder / part).rglob("*") if p.is_file()):
        for damage in DAMAGES:
            copy = scratch / "damaged"
            shutil.copytree(folder, copy)
            damage(copy / file)
            yield f"{damage.__name__} {file.relative_to(part)}", copy
            shutil.rmtree(copy)
