"""Files that a reader sees whole or not at all: written beside their place, flushed to disk, and renamed; journals, of
which a reader sees whole lines; and locks, which only live processes hold."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

FETCH_AGAIN = "fetch the file again"
"""What to do about a broken file that came from elsewhere."""

_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text"}


def beside(path: Path, kind: str) -> Path:
    """The hidden name beside ``path`` under which it is written (``tmp``), locked (``lock``) or put away (``old``).

    Example:
        >>> str(beside(Path("export/peft"), "tmp"))
        'export/.peft.tmp'
    """
    return path.with_name(f".{path.name}.{kind}")


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """Give a temporary path; the file written there takes the place of ``path`` when the block ends well.

    Its bytes are on disk before it does, so that not even a power cut leaves half of it under the name. The folder is
    made when missing. A block that fails leaves ``path`` as it was.
    """
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(target, "tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until a folder is on disk: every file in it, and every folder's entries."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync(Path(place) / name)
        sync(Path(place))


@contextmanager
def held(lock: Path, what: str, fix: str, *, remove: bool = False) -> Iterator[None]:
    """Hold a lock file, which says who holds it; what a killed process left is not in the way.

    Args:
        lock: the file; its folder must exist.
        what: is held, for the refusal.
        fix: what to do when it is in use.
        remove: delete the file at the end.

    Raises:
        ValueError: another process holds it, or the file system has no locks.
    """
    while True:
        with open(lock, "a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                raise ValueError(f"{what} is in use by process {file.read().strip() or '?'}; {fix}") from None
            except OSError as error:
                raise ValueError(f"{what} must lie on a file system with locks; {lock} got {error.strerror}; use "
                                 "another place") from None
            if not lock.exists() or not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                continue  # its last holder deleted it before we had it
            file.truncate(0)
            file.write(f"{os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield
            finally:
                if remove:
                    lock.unlink(missing_ok=True)
            return


def write_text(path: str | Path, text: str) -> None:
    """Replace a file's content; the folder is made when missing."""
    with replaced(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any, indent: int = 1) -> None:
    """Replace a file by ``value`` as JSON.

    Raises:
        ValueError: a number that JSON does not have (NaN, infinity).
        TypeError: a value that JSON does not have.
    """
    write_text(path, json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a file by one JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def sha256_of(path: Path) -> str:
    """Sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | Path, fix: str, **members: type) -> dict[str, Any]:
    """A JSON file's object.

    Args:
        path: the file.
        fix: what to do about another one.
        **members: what it must have, and of which type: ``rows=list``.

    Raises:
        ValueError: it is no JSON, no object, or lacks a member; the reason ends with ``fix``.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON; {error}; {fix}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must be a JSON object; got {_KINDS.get(type(found), 'a value')}; {fix}")
    for name, kind in members.items():
        if not isinstance(found.get(name), kind):
            got = _KINDS.get(type(found[name]), "another value") if name in found else "none"
            raise ValueError(f"{path} must have {_KINDS[kind]} {name!r}; got {got}; {fix}")
    return found


class Journal(Generic[T]):
    """A JSON Lines file that only grows, and survives a kill at any moment.

    A process that dies while writing leaves a torn last line; it is ignored, and the file is cut back to the last whole
    line before the next append. A broken line elsewhere is damage that no crash of ours explains, and an error. One
    process writes at a time: an append to what another has written to meanwhile is refused.

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
        data = path.read_bytes() if path.exists() else b""
        self._size, self._left = 0, len(data)  # of whole lines, and of the file
        lines = data.split(b"\n")
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
        """Add lines. With ``sync`` they are on disk when this returns, without they survive a kill but no power cut.

        Raises:
            ValueError: the file is not as this journal read or left it.
        """
        block = b"".join(json.dumps(row, ensure_ascii=True).encode() + b"\n" for row in rows)
        if not block:
            return
        found = self._length()
        if found != self._left:
            raise ValueError(f"{self.path} must have the {self._left} bytes that were read or written last; it has "
                             f"{found}: another process writes to it; wait for it, then run the same command again")
        try:
            with open(self.path, "r+b" if self.path.exists() else "x+b") as file:
                file.truncate(self._size)
                file.seek(self._size)
                file.write(block)
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        except BaseException:
            self._left = self._length()  # the next append cuts off what there is of this one
            raise
        self._size += len(block)
        self._left = self._size

    def _length(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0
