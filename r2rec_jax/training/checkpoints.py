"""Checkpoints of a training stage, by Orbax: trained tree, optimiser, counts, and the data iterator's state.

A checkpoint is written under a temporary name and renamed, so a save that fails or is cut off leaves the one before it
as it was; the last two are kept. Trees are stored as flat ``{path: array}`` dictionaries beside a small JSON with their
shapes and checksums, so nothing is pickled, and a checkpoint of another base, adapter shape or configuration is refused
by name before an array is read. No PRNG key is stored: streams are functions of the seed and the step.
"""

from __future__ import annotations

import base64
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from r2rec_jax.config import LoraConfig, as_plain
from r2rec_jax.progress import say
from r2rec_jax.training.state import TrainState

KEEP = 2
OVERHEAD_BYTES = 1 << 20
"""Room for Orbax's own metadata beside the arrays."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint belongs to; one of another identity is refused.

    Attributes:
        stage: ``pretrain``, ``sft`` or ``grpo``.
        base_sha256: of the frozen backbone's weights.
        config_sha256: fingerprint of every setting the stage's result depends on.
        lora: the adapter's shape; None when the base itself is trained.
    """

    stage: str
    base_sha256: str
    config_sha256: str
    lora: LoraConfig | None = None


@dataclass(frozen=True)
class Restored:
    """A checkpoint read back.

    Attributes:
        step: the loop's step it was saved after.
        state: trained tree, optimiser, counts.
        loader_state: of the data iterator, as it was handed in.
    """

    step: int
    state: TrainState
    loader_state: Any


class Checkpoints:
    """The checkpoints of one stage in one folder.

    Args:
        folder: made when missing.
        identity: what they belong to.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, identity: Identity, keep: int = KEEP) -> None:
        self.folder, self.identity = Path(folder).absolute(), identity
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; None when there is none."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, loader_state: Any) -> None:
        """Write a checkpoint; a step that is there already is left alone.

        Raises:
            OSError: in one line, when it could not be written; the checkpoint before it is untouched.
        """
        before = self.latest_step
        if before == step:
            return
        trees = {"params": flatten(state.params), "optimizer": flatten(state.opt_state)}
        meta = {
            "identity": as_plain(self.identity), "step": step, "loader": _encode(loader_state),
            "counts": {name: int(getattr(state, name)) for name in ("step", "skipped", "skipped_in_a_row")},
            "arrays": {name: describe(tree) for name, tree in trees.items()},
        }
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        try:
            self._reserve(sum(x.nbytes for tree in trees.values() for x in tree.values()) + OVERHEAD_BYTES)
            with _quiet_orbax():
                self._manager.save(step, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items))
        except Exception as error:  # tensorstore reports a full disk as ValueError, orbax as several others
            self._discard(step)
            there = "there is none before it" if before is None else f"the one of step {before} is untouched"
            raise OSError(f"the {self.identity.stage} checkpoint of step {step} could not be written to {self.folder} "
                          f"({one_line(error)}); {there}; free disk space and start again to go on from it") from None

    def restore(self, template: TrainState) -> Restored | None:
        """The newest checkpoint that can be read; None when the folder holds none.

        Args:
            template: a state of the same structure (its values are not used).

        Raises:
            ValueError: when it belongs to another base, adapter or configuration, naming which; or when there are
                checkpoints and none can be read.
        """
        reasons = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                with _quiet_orbax():
                    meta = self._read_meta(step)
            except Exception as error:
                reasons.append(f"step {step}: {one_line(error)}")
                continue
            self._check_identity(step, meta["identity"])
            try:
                with _quiet_orbax():
                    restored = self._read(step, meta, template)
            except Exception as error:
                reasons.append(f"step {step}: {one_line(error)}")
                continue
            for reason in reasons:
                say(f"{self.identity.stage}: checkpoint of {reason}; going on from step {step}")
            for broken in [s for s in self._manager.all_steps() if s > step]:
                self._manager.delete(broken)
            return restored
        if reasons:
            raise ValueError(f"no {self.identity.stage} checkpoint in {self.folder} can be read "
                             f"({'; '.join(reasons)}); delete the folder to start the stage anew")
        return None

    def restore_params(self, template: Any) -> Any:
        """Only the trained tree of the newest checkpoint, shaped like ``template``.

        Raises:
            ValueError: when there is none, or it belongs to something else.
        """
        step = self.latest_step
        if step is None:
            raise ValueError(f"there must be a {self.identity.stage} checkpoint in {self.folder}; got none; "
                             f"run the {self.identity.stage} stage first")
        meta = self._read_meta(step)
        self._check_identity(step, meta["identity"])
        return self._read_tree(step, "params", template, meta["arrays"]["params"])

    def close(self) -> None:
        """Release the folder."""
        self._manager.close()

    def _read_meta(self, step: int) -> dict[str, Any]:
        restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        return restored["meta"]

    def _read(self, step: int, meta: dict[str, Any], template: TrainState) -> Restored:
        params = self._read_tree(step, "params", template.params, meta["arrays"]["params"])
        opt_state = self._read_tree(step, "optimizer", template.opt_state, meta["arrays"]["optimizer"])
        counts = {name: jnp.asarray(value, jnp.int32) for name, value in meta["counts"].items()}
        return Restored(meta["step"], TrainState(params, opt_state, **counts), _decode(meta["loader"]))

    def _read_tree(self, step: int, name: str, template: Any, described: dict[str, list[Any]]) -> Any:
        wanted = {path: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
                  for path, x in flatten(template).items()}
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
        names = {"stage": "another stage", "base_sha256": "another base model", "lora": "another LoRA configuration",
                 "config_sha256": "another configuration"}
        own = as_plain(self.identity)
        for field, text in names.items():
            if stored.get(field) != own[field]:
                raise ValueError(f"the checkpoint of step {step} in {self.folder} was made with {text} ({field} "
                                 f"{stored.get(field)}, now {own[field]}); use another run_dir or delete the folder")

    def _reserve(self, size: int) -> None:
        """Fail before anything is written when the file system has no room for ``size`` bytes."""
        probe = self.folder / ".space-probe"
        try:
            with probe.open("wb") as file:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                elif shutil.disk_usage(self.folder).free < size:
                    raise OSError(f"no space left: {size} bytes are needed")
        finally:
            probe.unlink(missing_ok=True)

    def _discard(self, step: int) -> None:
        for path in self.folder.glob(f"{step}*"):
            if path.name == str(step) or path.name.startswith(f"{step}."):
                shutil.rmtree(path, ignore_errors=True)


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


def checksum(array: Any) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(np.asarray(array)).view(np.uint8).data)


def one_line(error: BaseException, limit: int = 240) -> str:
    """An error's message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def is_alive(tree: Any) -> bool:
    """Whether no array of the tree was donated away."""
    return not any(x.is_deleted() for x in jax.tree.leaves(tree) if isinstance(x, jax.Array))


def _encode(loader_state: Any) -> dict[str, Any]:
    if isinstance(loader_state, bytes):
        return {"bytes": base64.b64encode(loader_state).decode("ascii")}
    return {"value": loader_state}


def _decode(stored: dict[str, Any]) -> Any:
    return base64.b64decode(stored["bytes"]) if "bytes" in stored else stored["value"]
