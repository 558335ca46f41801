"""Reading delimited text strictly: every complaint names the file and the line.

Lines end at a line feed only (``str.splitlines`` would also cut latin-1 titles at byte 0x85). A file must end with a
line break: a last line without one is how a copy that was cut off looks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

_SHOWN = 60


def shown(text: str) -> str:
    """``text`` as one short quoted line for an error message."""
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def row_error(path: Path, line: int, problem: str) -> ValueError:
    """The error for one bad row."""
    return ValueError(f"{path.name} line {line}: {problem}; correct the row or get the file again ({path})")


def encoding_error(path: Path, line: int, got: str) -> ValueError:
    """The error for a line that is not UTF-8."""
    return ValueError(f"{path.name} line {line}: the text must be UTF-8; got {got}; save it as UTF-8, or get the file "
                      f"again ({path})")


def read_lines(path: Path, encoding: str) -> tuple[list[str], str]:
    """The lines of a whole file, blank ones at its end left out, and the file's sha256.

    Raises:
        ValueError: the file is missing, empty, cut off in its last line, or not in the encoding.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} must be in {path.parent}; the file is missing; "
                         "copy it there or correct data.path")
    raw = path.read_bytes()
    if not raw.strip():
        raise ValueError(f"{path.name} must hold at least one row; got an empty file ({len(raw)} bytes); "
                         f"get the file again ({path})")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise row_error(path, line, f"the text must be {encoding}; got byte 0x{raw[error.start]:02x}") from None
    if not text.endswith("\n"):
        line = text.count("\n") + 1
        raise ValueError(f"{path.name} line {line}: the file must end with a line break; it ends in "
                         f"{shown(text[text.rfind(chr(10)) + 1:])} and looks truncated; get the file again, or add "
                         f"the line break if nothing is missing ({path})")
    if "\r" in text:
        text = text.replace("\r\n", "\n")
    return text.rstrip("\n").split("\n"), hashlib.sha256(raw).hexdigest()


def split_rows(path: Path, lines: Sequence[str], separator: str, fields: int, first: int = 1,
               ) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every line.

    Raises:
        ValueError: a line with another number of fields.
    """
    for number, line in enumerate(lines, first):
        row = line.split(separator)
        if len(row) != fields:
            raise row_error(path, number, f"a row must have {fields} fields separated by {separator!r}; got {len(row)} "
                                          f"in {shown(line)}")
        yield number, row


def parse_whole(path: Path, line: int, what: str, text: str) -> int:
    """A whole number, written as ``3`` or ``3.0``."""
    try:
        value = float(text)
        whole = int(text) if text.strip().lstrip("+-").isdigit() else int(value)
    except (ValueError, OverflowError):
        raise row_error(path, line, f"{what} must be a whole number; got {shown(text)}") from None
    if whole != value or abs(whole) >= 2**53:
        raise row_error(path, line, f"{what} must be a whole number; got {shown(text)}")
    return whole
