"""Files that a reader sees whole or not at all: written beside their place, flushed to disk, and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


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
