"""Named trees of arrays in a folder of checkpoints, by Orbax: written whole or not at all, read back bit for bit.

A checkpoint is written under a temporary name and renamed, so a save that fails or is cut off leaves the one before it
as it was; the last ones are kept, and a save returns when its bytes are on disk. Trees are stored as flat
``{path: array}`` dictionaries beside a JSON with their shapes and checksums, so nothing is pickled, and a checkpoint of
something else is refused by name before an array is read. No PRNG key is stored: streams are functions of the seed and
the step.

    7/                  Orbax's files of step 7
    7.files.json        {file: [bytes, CRC-32]}: what is damaged is named before a reader of its format sees it

A process killed between the two leaves a whole checkpoint without a list; when its arrays have been read and checked,
it gets one.
"""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from r2rec_jax.files import read_json, sync, sync_tree, write_json
from r2rec_jax.progress import say
from r2rec_jax.reasons import one_line

KEEP = 2
_BLOCK = 1 << 20
OVERHEAD_BYTES = 1 << 20
"""Room for Orbax's own metadata beside the arrays."""


@dataclass(frozen=True)
class Stored:
    """A checkpoint read back.

    Attributes:
        step: the loop's step it was saved after.
        trees: by name, in the structure of the templates.
        meta: the JSON values saved with it.
    """

    step: int
    trees: dict[str, Any]
    meta: dict[str, Any]


class TreeCheckpoints:
    """Checkpoints in one folder.

    Args:
        folder: made when missing.
        what: names them in messages: a stage, a model.
        identity: JSON values of what they belong to; a checkpoint with another value is refused.
        labels: how messages word each entry of ``identity``: ``{"base_sha256": "another base model"}``.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, what: str, identity: Mapping[str, Any], labels: Mapping[str, str],
                 keep: int = KEEP) -> None:
        self.folder, self.what = Path(folder).absolute(), what
        self._identity, self._labels = dict(identity), dict(labels)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._probe.unlink(missing_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True, create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(), active_processes={jax.process_index()}))
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; None when there is none."""
        return self._manager.latest_step()

    def save_trees(self, step: int, trees: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        """Write a checkpoint; a step that is there already is left alone.

        Args:
            step: a number above those saved before.
            trees: pytrees of arrays by name; ``meta`` is no name.
            meta: JSON values; ``identity``, ``step`` and ``arrays`` are added to them.

        Raises:
            OSError: in one line, when it could not be written; the checkpoint before it is untouched.
        """
        before = self.latest_step
        if before == step:
            return
        flat = {name: flatten(tree) for name, tree in trees.items()}
        meta = {"identity": self._identity, "step": step, **meta,
                "arrays": {name: describe(tree) for name, tree in flat.items()}}
        items = {name: ocp.args.StandardSave(tree) for name, tree in flat.items()}
        try:
            self._reserve(sum(x.nbytes for tree in flat.values() for x in tree.values()) + OVERHEAD_BYTES)
            with _quiet_orbax():
                self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items))
            sync_tree(self.folder / str(step))
            self._write_list(step)
        except Exception as error:  # tensorstore reports a full disk as ValueError, orbax as several others
            self._discard(step)
            there = "there is none before it" if before is None else f"the one of step {before} is untouched"
            raise OSError(f"the {self.what} checkpoint of step {step} could not be written to {self.folder} "
                          f"({one_line(error)}); {there}; free disk space and start again to go on from it") from None

    def restore_trees(self, templates: Mapping[str, Any]) -> Stored | None:
        """The newest checkpoint that can be read; None when the folder holds none.

        Args:
            templates: pytrees of the same structure and shapes by name (their values are not used).

        Raises:
            ValueError: when it belongs to something else, naming what; or when there are checkpoints and none can be
                read.
            MemoryError, PermissionError, JaxRuntimeError: there is no room, or no leave, to read one that may be whole.
        """
        reasons = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                stored = self._read(step, templates)
            except (_OfSomethingElse, MemoryError, PermissionError):
                raise
            except Exception as error:  # of the many libraries below Orbax, each has its own for a damaged file
                if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
                    raise  # the device has no room, the file may be whole
                reasons.append(f"step {step}: {one_line(error)}")
                continue
            for reason in reasons:
                say(f"{self.what}: checkpoint of {reason}; going on from step {step}")
            if not self._list(step).exists():
                self._write_list(step)
            for broken in [s for s in self._manager.all_steps() if s > step]:
                self._list(broken).unlink(missing_ok=True)
                self._manager.delete(broken)
            return stored
        if reasons:
            raise ValueError(f"no {self.what} checkpoint in {self.folder} can be read "
                             f"({'; '.join(reasons)}); delete the folder to start anew")
        return None

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()

    def _list(self, step: int) -> Path:
        return self.folder / f"{step}.files.json"

    def _write_list(self, step: int) -> None:
        """List a step's files, and forget the lists of steps that are gone."""
        sync(self.folder)
        write_json(self._list(step), list_files(self.folder / str(step)))
        kept = {self._list(one) for one in self._manager.all_steps()}
        for path in set(self.folder.glob("*.files.json")) - kept:
            path.unlink()

    def _check_files(self, step: int) -> None:
        """Hold a step's files against their list.

        Raises:
            ValueError: one is missing or damaged, or the list is.
        """
        if not self._list(step).exists():
            return
        wanted = read_json(self._list(step), "the list of its files is damaged")
        found = list_files(self.folder / str(step))
        for name, entry in wanted.items():
            if name not in found:
                raise ValueError(f"its file {name} is missing")
            if found[name][0] != entry[0]:
                raise ValueError(f"its file {name} must have {entry[0]} bytes; got {found[name][0]}")
            if found[name] != entry:
                raise ValueError(f"the checksum of its file {name} does not match: the file is damaged")

    @property
    def _probe(self) -> Path:
        return self.folder / ".space-probe"

    def _read(self, step: int, templates: Mapping[str, Any]) -> Stored:
        with _quiet_orbax():
            self._check_files(step)
            meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            self._check_identity(step, meta["identity"])
            trees = {name: self._read_tree(step, name, template, meta["arrays"][name])
                     for name, template in templates.items()}
        return Stored(step, trees, meta)

    def _read_tree(self, step: int, name: str, template: Any, described: dict[str, list[Any]]) -> Any:
        wanted = {path: _shape_of(x) for path, x in flatten(template).items()}
        shapes = {path: [list(x.shape), str(x.dtype)] for path, x in wanted.items()}
        stored = {path: entry[:2] for path, entry in described.items()}
        if shapes != stored:
            odd = sorted(p for p in shapes.keys() | stored.keys() if shapes.get(p) != stored.get(p))[0]
            raise ValueError(f"the stored {name} must have the shapes of this model; {odd} is {stored.get(odd)} there "
                             f"and {shapes.get(odd)} here")
        args = {name: ocp.args.StandardRestore(wanted)}
        flat = self._manager.restore(step, args=ocp.args.Composite(**args))[name]
        damaged = [path for path, entry in described.items() if checksum(flat[path]) != entry[2]]
        if damaged:
            raise ValueError(f"the checksum of {name} {damaged[0]} does not match: the file is damaged")
        return unflatten(template, flat)

    def _check_identity(self, step: int, stored: dict[str, Any]) -> None:
        for field, text in self._labels.items():
            if stored.get(field) != self._identity[field]:
                raise _OfSomethingElse(f"the checkpoint of step {step} in {self.folder} was made with {text} ({field} "
                                       f"{stored.get(field)}, now {self._identity[field]}); use another folder or "
                                       "delete this one")

    def _reserve(self, size: int) -> None:
        """Fail before anything is written when the file system has no room for ``size`` bytes."""
        try:
            with self._probe.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                elif shutil.disk_usage(self.folder).free < size:
                    raise OSError(f"no space left: {size} bytes are needed")
        finally:
            self._probe.unlink(missing_ok=True)

    def _discard(self, step: int) -> None:
        self._list(step).unlink(missing_ok=True)
        for path in self.folder.glob(f"{step}*"):
            if path.name == str(step) or path.name.startswith(f"{step}."):
                shutil.rmtree(path, ignore_errors=True)


class _OfSomethingElse(ValueError):
    """A whole checkpoint, but not of this run."""


@contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Orbax logs every failed thread with a traceback; the error itself is raised and reported in one line."""
    log = logging.getLogger("absl")
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


def flatten(tree: Any) -> dict[str, Any]:
    """A tree as ``{path: array}``, e.g. ``layers/q/lora_a``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def unflatten(template: Any, flat: dict[str, Any]) -> Any:
    """The inverse of :func:`flatten`, in the structure of ``template``."""
    return jax.tree.unflatten(jax.tree.structure(template), [flat[path] for path in flatten(template)])


def describe(flat: dict[str, Any]) -> dict[str, list[Any]]:
    """Shape, dtype and checksum of every array."""
    return {path: [list(x.shape), str(x.dtype), checksum(x)] for path, x in flat.items()}


def list_files(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and CRC-32 of every file of a folder, by its path in it."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        crc, size = 0, 0
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                crc, size = zlib.crc32(block, crc), size + len(block)
        found[path.relative_to(folder).as_posix()] = [size, crc]
    return found


def checksum(array: Any) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(np.asarray(array)).view(np.uint8).data)


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))


def let_go(tree: Any) -> Any:
    """Free a tree's arrays; what is left are their shapes, types and places, for a tree that is read in their place."""
    shapes = jax.tree.map(_shape_of, tree)
    for array in jax.tree.leaves(tree):
        if isinstance(array, jax.Array) and not array.is_deleted():
            array.delete()
    return shapes


def is_alive(tree: Any) -> bool:
    """Whether no array of the tree was donated away."""
    return not any(x.is_deleted() for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))
