"""Checkpoints of a run on a mesh: process 0 alone touches the files, every process saves and restores together.

Adapters are small, and whole backbones rare, so trees are gathered to the host to be written and handed out again when
read. A checkpoint therefore knows nothing of the layout, and a run goes on on another mesh or with another number of
processes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from r2rec_jax.parallel.distributed import is_first, on_first, several
from r2rec_jax.parallel.sharding import place, to_host
from r2rec_jax.training.checkpoints import Checkpoints, Identity, Restored
from r2rec_jax.training.state import TrainState


class SharedCheckpoints:
    """The checkpoints of one stage, for :class:`~r2rec_jax.training.session.Session`.

    Args:
        folder: made when missing.
        identity: what they belong to.
        mesh: where restored states are placed.
    """

    def __init__(self, folder: Path, identity: Identity, mesh: Mesh) -> None:
        self._mesh = mesh
        self._files: Checkpoints | None = None

        def make() -> None:
            self._files = Checkpoints(folder, identity)

        on_first(make)

    def save(self, step: int, state: TrainState, loader_state: Any) -> None:
        """Write a checkpoint; see :meth:`Checkpoints.save`."""
        whole = to_host(state)
        on_first(self._call(lambda files: files.save(step, whole, loader_state)))

    @property
    def latest_step(self) -> int | None:
        """Step of the newest checkpoint; None when there is none."""
        return on_first(self._call(lambda files: files.latest_step))

    def restore(self, template: TrainState) -> Restored | None:
        """The newest checkpoint that can be read, placed on the mesh; None when there is none."""
        empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
        found: list[Restored | None] = [None]

        def read(files: Checkpoints) -> list[Any] | None:
            found[0] = files.restore(empty)
            return None if found[0] is None else [found[0].step, found[0].loader_state]

        facts = on_first(self._call(read))
        if facts is None:
            return None
        state = empty if found[0] is None else to_host(found[0].state)
        if several():
            state = multihost_utils.broadcast_one_to_all(state)
        return Restored(facts[0], place(state, self._mesh), facts[1])

    def close(self) -> None:
        """Release the folder."""
        on_first(self._call(lambda files: files.close()))

    def _call(self, work: Callable[[Checkpoints], Any]) -> Callable[[], Any]:
        def with_files() -> Any:
            assert self._files is not None and is_first()
            return work(self._files)

        return with_files
