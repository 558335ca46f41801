"""Downloads of large files over HTTP, which go on where they stopped.

What has arrived lies in ``<name>.part``, with what identifies the remote file in ``<name>.part.json`` (its size, and
its ETag or date). The next attempt asks for the rest alone; where the remote file is another one by then, the server
sends it from the beginning. ``<name>`` itself appears by a rename, when the size is the announced one.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from r2rec_jax import progress
from r2rec_jax.files import write_json

TIMEOUT_S = 10.0
"""Longest wait for a connection, and for the next bytes on it."""

ATTEMPTS = 5
"""Attempts in a row that bring nothing, after which it is given up."""

_FIRST_WAIT_S = 1.0
_BLOCK = 1 << 20
_KB = 1000
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_GZIP = b"\x1f\x8b"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class Unreachable(ValueError):
    """A source that cannot be had now, with the reason."""


def safe_name(name: str) -> str:
    """``name``, when it can only be a file directly in the folder that it is put into.

    Raises:
        ValueError: it is empty or long, starts with a dot, or holds a separator or another odd character.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"a file's name must be letters, digits, '_', '.' and '-', not starting with a dot; "
                         f"got {name!r}; rename it")
    return name


def download(url: str, folder: Path, name: str) -> Path:
    """Fetch a file into a folder; a part that an earlier attempt left there is completed.

    Args:
        url: where it is.
        folder: is made when missing.
        name: of the file there; it must not leave the folder.

    Returns:
        The file, whose size is the one that the server announced; one named ``.gz`` begins like gzip.

    Raises:
        Unreachable: no connection, a refusal, or a connection that keeps breaking; the part stays. Or a page of HTML
            under the name of a ``.gz`` file, of which nothing stays.
        ValueError: the server does not tell the size, the disk has no room, or somebody else downloads the same file.
    """
    target = folder / safe_name(name)
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{name}.part")
    with _locked(part) as file:
        _fetch_all(url, target, file)
        _check_gzip(url, target, part)
        part.rename(target)
    _note_of(target).unlink(missing_ok=True)
    return target


def _check_gzip(url: str, target: Path, part: Path) -> None:
    """Delete what is no gzip under the name of one, so that the cache does not keep it."""
    if not target.name.endswith(".gz"):
        return
    with part.open("rb") as file:
        head = file.read(20)
    if head.startswith(_GZIP):
        return
    part.unlink()
    _note_of(target).unlink(missing_ok=True)
    raise Unreachable(f"{url}: a .gz file must begin with the bytes 1f 8b; got {head!r}, such as a page that asks to "
                      "sign in")


@contextmanager
def _locked(part: Path) -> Iterator[BinaryIO]:
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{part} must be written by one process; another downloads it now; wait for it") from None
        yield file


def _fetch_all(url: str, target: Path, file: BinaryIO) -> None:
    note = _read_note(target)
    if note is None:
        file.truncate(0)
    failures = 0
    while True:
        before = _size(file)
        try:
            if _fetch_some(url, target, file):
                return
            reason = f"the connection ended after {_size(file)} bytes"
        except (OSError, http.client.HTTPException) as error:
            reason = reason_of(error)
            passing = not isinstance(error, urllib.error.HTTPError) or error.code in _PASSING
            if not passing or (_size(file) == before and failures == 0 and not _answered(error)):
                raise Unreachable(f"{url}: {reason}") from None
        failures = failures + 1 if _size(file) <= before else 0
        if failures >= ATTEMPTS:
            raise Unreachable(f"{url}: {reason}, {failures} times in a row")
        progress.say(f"download {target.name}: {reason}; trying again")
        time.sleep(_FIRST_WAIT_S * 2**failures)


def _fetch_some(url: str, target: Path, file: BinaryIO) -> bool:
    """One request; whether the file is whole now."""
    note, have = _read_note(target), _size(file)
    headers = {"User-Agent": "r2rec_jax", "Accept-Encoding": "identity"}
    if have and note is not None:
        headers["Range"] = f"bytes={have}-"
        if note["validator"]:
            headers["If-Range"] = note["validator"]
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if note is not None and have == note["size"]:
            return True
        file.truncate(0)
        return False
    with response:
        start, total = _extent(response, url)
        if start != (have if response.status == 206 else 0) or (note is not None and start and total != note["size"]):
            file.truncate(0)
            return False
        if start == 0:
            file.truncate(0)
        tag = response.headers.get("ETag", "")
        validator = response.headers.get("Last-Modified", "") if tag.startswith("W/") or not tag else tag
        write_json(_note_of(target), {"url": url, "size": total, "validator": validator})
        _check_room(target, total - start)
        with progress.bar(f"download {target.name}", total=total // _KB, unit="kB", done=start // _KB) as bar:
            while block := response.read(_BLOCK):
                file.write(block)
                file.flush()
                bar.advance(_size(file) // _KB - bar.done)
    os.fsync(file.fileno())
    if _size(file) > total:
        file.truncate(0)
    return _size(file) == total


def _extent(response: Any, url: str) -> tuple[int, int]:
    """(first byte sent, size of the whole file)."""
    if response.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if found:
            return int(found[1]), int(found[2])
    elif response.headers.get("Content-Length", "").isdigit():
        return 0, int(response.headers["Content-Length"])
    raise Unreachable(f"the server of {url} must tell the size of the file; it does not; download it by other means "
                      "and set data.path")


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise ValueError(f"{target.parent} must have room for {needed / 1e9:.1f} GB more of {target.name}; it has "
                         f"{free / 1e9:.1f} GB; make room, or set data.cache_dir to another disk")


def _note_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.json")


def _read_note(target: Path) -> dict[str, Any] | None:
    try:
        note = json.loads(_note_of(target).read_text(encoding="utf-8"))
        return {"size": int(note["size"]), "validator": str(note["validator"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(file: BinaryIO) -> int:
    return file.seek(0, 2)


def _answered(error: BaseException) -> bool:
    """Whether a server was there at all, so that another attempt may help."""
    return isinstance(error, (urllib.error.HTTPError, http.client.HTTPException, ConnectionResetError, TimeoutError))


def reason_of(error: BaseException) -> str:
    """What a failed request says, on one line: an URLError speaks for the error inside it."""
    plain = isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError)
    return " ".join(str(getattr(error, "reason", error) if plain else error).split()) or type(error).__name__
