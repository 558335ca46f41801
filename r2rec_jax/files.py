"""Files that a reader sees whole or not at all: written beside their place, flushed to disk, and renamed; and journals,
of which a reader sees whole lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def write_text(path: str | Path, text: str) -> None:
    """Replace a file's content; the folder is made when missing."""
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)


def write_json(path: str | Path, value: Any) -> None:
    """Replace a file by ``value`` as JSON.

    Raises:
        ValueError: a number that JSON does not have (NaN, infinity).
        TypeError: a value that JSON does not have.
    """
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file by one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_json(path: str | Path, fix: str) -> Any:
    """A JSON file's value.

    Raises:
        ValueError: it is not JSON; the reason ends with ``fix``.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON; {error}; {fix}") from None


class Journal(Generic[T]):
    """A JSON Lines file that only grows, and survives a kill at any moment.

    A process that dies while writing leaves a torn last line; it is ignored, and the file is cut back to the last whole
    line before the next append. A broken line elsewhere is damage that no crash of ours explains, and an error.

    Args:
        path: the file; created on the first append, its folder must exist.
        decode: a line's JSON value as a record; raises ValueError, KeyError or TypeError when it is none.
        what: what a line is, for errors.
        fix: what to do about a damaged file.

    Attributes:
        rows: what the file held when it was opened.

    Raises:
        ValueError: a line other than the last is damaged.
    """

    def __init__(self, path: Path, decode: Callable[[Any], T], *, what: str, fix: str) -> None:
        self.path = path
        self.rows: list[T] = []
        self._size = 0
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        for number, line in enumerate(lines[:-1], start=1):
            try:
                self.rows.append(decode(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines) - 1 and not lines[-1]:
                    break
                raise ValueError(f"every line of {path} must be {what}; line {number} is not "
                                 f"({type(error).__name__}); {fix}") from None
            self._size += len(line) + 1

    def append(self, rows: Iterable[Any], *, sync: bool = True) -> None:
        """Add lines. With ``sync`` they are on disk when this returns, without they survive a kill but no power cut."""
        block = b"".join(json.dumps(row, ensure_ascii=True).encode() + b"\n" for row in rows)
        if not block:
            return
        with open(self.path, "r+b" if self.path.exists() else "x+b") as file:
            file.truncate(self._size)
            file.seek(self._size)
            file.write(block)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        self._size += len(block)
