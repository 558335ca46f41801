"""The manifest of a prepared folder: what the folder holds, what it was made from, and whether that is still so.

    format       of the folder, see :data:`FORMAT`
    dataset, domain, rating_scale, notes       what the reader found
    config       settings that shaped the content: ``data`` (without where it lies), ``graph``, ``train_seed``
    sources      name -> sha256 of the files that were read
    counts       users, items, interactions, queries, chain coverage
    queries, candidates, chains                names of the frozen files, which carry their own hashes
    negatives_left_out                         sampler -> why these data cannot serve it
    files        name -> sha256 of every file of the folder but this one
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from r2rec_jax.config import TrainConfig, as_plain, dotted
from r2rec_jax.files import read_json, sha256_of
from r2rec_jax.stages.keys import WITHOUT_EFFECT

FORMAT = 2
MANIFEST = "manifest.json"
ENTRIES = ("format", "dataset", "domain", "rating_scale", "config", "sources", "notes", "counts", "queries",
           "candidates", "chains", "files")
RECORDED = ("sources", "counts", "queries", "candidates", "chains", "files")
"""Entries that the ``prepare`` stage reports, so that a run notices when its folder was replaced."""

_AGAIN = "delete the folder and prepare the data again"


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that shape a prepared folder; where the sources lie is none of them."""
    plain = as_plain(config)
    return {"data": {name: value for name, value in plain["data"].items() if name not in WITHOUT_EFFECT["data"]},
            "graph": plain["graph"], "train_seed": config.train_seed}


def sha256_of_member(path: Path) -> str:
    """Sha256 of a file of a prepared folder.

    Raises:
        ValueError: the file is missing.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} must be in {path.parent}; the file is missing; {_AGAIN}")
    return sha256_of(path)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        ValueError: it is damaged, of another format, or lacks entries (named).
    """
    manifest = read_json(path, _AGAIN)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"the format of {path} must be {FORMAT}; got {manifest.get('format')!r}; {_AGAIN}")
    missing = [name for name in ENTRIES if name not in manifest]
    if missing:
        raise ValueError(f"{MANIFEST} must have the entries {', '.join(ENTRIES)}; {path} lacks {', '.join(missing)}; "
                         f"{_AGAIN}")
    return manifest


def check_folder(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are all there, unchanged, and no others beside them.

    Hidden files (``.DS_Store`` and the like) are never read and stay unnoticed.

    Raises:
        ValueError: names the first file that is missing or was changed, or all that do not belong there.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} must hold a {MANIFEST}; the file is missing; prepare the data first "
                         "(python -m r2rec_jax.prepare)")
    manifest = read_manifest(path)
    files = manifest["files"]
    named = {manifest["queries"], manifest["chains"], *manifest["candidates"].values()}
    wrong = sorted({name for name in named if name not in files} | {name for name in files if Path(name).name != name})
    if wrong:
        raise ValueError(f"{MANIFEST} must give the sha256 of every file that it names, all of them in its own folder; "
                         f"{path} breaks this for {', '.join(wrong)}; {_AGAIN}")
    foreign = foreign_files(folder, files)
    for name, expected in files.items():
        found = sha256_of_member(folder / name)
        if found != expected:
            raise ValueError(f"the sha256 of {name} must be {expected[:16]}...; got {found[:16]}...: the file was "
                             f"changed; {_AGAIN} ({folder})")
    if foreign:
        raise ValueError(f"a prepared folder must hold what its {MANIFEST} lists and nothing else; {folder} also has "
                         f"{', '.join(foreign)}; move it away, or {_AGAIN}")
    return manifest


def foreign_files(folder: Path, files: Container[str]) -> list[str]:
    """What a folder has beside its manifest, the ``files`` that this lists, and hidden files."""
    return sorted(found.name for found in folder.iterdir()
                  if found.name not in files and found.name != MANIFEST and not found.name.startswith("."))


def check_replaceable(folder: Path) -> None:
    """Make sure that nothing but prepared data, of any format, is lost when ``folder`` is replaced.

    Raises:
        ValueError: it is a file, or holds anything else (named).
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output must be a folder; {folder} is a file; choose another")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"the output must be a new, an empty or a prepared folder; {folder} holds other files; "
                         "choose another")
    fix = "choose another output, or delete the folder"
    manifest = read_json(path, fix, files=dict)
    if "format" not in manifest:
        raise ValueError(f"{path} must have the format of a prepared folder; got none; {fix}")
    foreign = foreign_files(folder, manifest["files"])
    if foreign:
        raise ValueError(f"a prepared folder that is replaced must hold what its {MANIFEST} lists and nothing else; "
                         f"{folder} also has {', '.join(foreign)}; move it away, or choose another output")


def check_settings(manifest: Mapping[str, Any], config: TrainConfig, folder: Path) -> None:
    """Refuse a folder that was prepared with other settings than ``config``, naming them.

    Raises:
        ValueError: some setting differs.
    """
    _refuse(dotted(manifest["config"]), dotted(settings_of(config)), f"{folder} was prepared with other settings",
            f"restore the settings, or {_AGAIN}")


def check_recorded(manifest: Mapping[str, Any], recorded: Mapping[str, Any], folder: Path) -> None:
    """Refuse a folder that is not the one whose entries were ``recorded``, naming what differs.

    Raises:
        ValueError: a source, a count or a file differs.
    """
    names = [name for name in RECORDED if name in recorded]
    _refuse(dotted({name: manifest[name] for name in names}), dotted({name: recorded[name] for name in names}),
            f"{folder} is not the folder that this run prepared", "restore it, or run the prepare stage again")


def _refuse(found: Mapping[str, Any], expected: Mapping[str, Any], problem: str, remedy: str) -> None:
    changed = [name for name in dict.fromkeys([*expected, *found]) if found.get(name) != expected.get(name)]
    if changed:
        listed = "; ".join(f"{name} ({_short(found.get(name))} there, {_short(expected.get(name))} expected)"
                           for name in changed[:6])
        more = f"; and {len(changed) - 6} more" if len(changed) > 6 else ""
        raise ValueError(f"{problem}: {listed}{more}; {remedy}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
