"""Checkpoints of a training stage: trained tree, optimiser, counts, the data iterator's state, and the best tree so far
where that is kept.

The files themselves are those of :mod:`r2rec_jax.checkpoints`. A checkpoint of another base, adapter shape or
configuration is refused by name.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from r2rec_jax.checkpoints import KEEP, TreeCheckpoints
from r2rec_jax.config import LoraConfig, as_plain
from r2rec_jax.training.state import TrainState

_LABELS = {"stage": "another stage", "base_sha256": "another base model", "lora": "another LoRA configuration",
           "config_sha256": "another configuration"}


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
        state: trained tree, optimiser, counts, best tree.
        loader_state: of the data iterator, as it was handed in.
    """

    step: int
    state: TrainState
    loader_state: Any


class Checkpoints(TreeCheckpoints):
    """The checkpoints of one stage in one folder.

    Args:
        folder: made when missing.
        identity: what they belong to.
        keep: how many of the newest are kept.
    """

    def __init__(self, folder: Path, identity: Identity, keep: int = KEEP) -> None:
        super().__init__(folder, identity.stage, as_plain(identity), _LABELS, keep)

    def save(self, step: int, state: TrainState, loader_state: Any) -> None:
        """Write a checkpoint; a step that is there already is left alone.

        Raises:
            OSError: in one line, when it could not be written; the checkpoint before it is untouched.
        """
        counts = {name: int(getattr(state, name)) for name in ("step", "skipped", "skipped_in_a_row")}
        self.save_trees(step, _trees(state), {"loader": _encode(loader_state), "counts": counts})

    def restore(self, template: TrainState) -> Restored | None:
        """The newest checkpoint that can be read; None when the folder holds none.

        Args:
            template: a state of the same structure (its values are not used).

        Raises:
            ValueError: when it belongs to another base, adapter or configuration, naming which; or when there are
                checkpoints and none can be read.
        """
        stored = self.restore_trees(_trees(template))
        if stored is None:
            return None
        counts = {name: jnp.asarray(value, jnp.int32) for name, value in stored.meta["counts"].items()}
        state = TrainState(stored.trees["params"], stored.trees["optimizer"], **counts, best=stored.trees.get("best"))
        return Restored(stored.step, state, _decode(stored.meta["loader"]))


def _trees(state: TrainState) -> dict[str, Any]:
    """What of a state is stored as trees."""
    best = {} if state.best is None else {"best": state.best}
    return {"params": state.params, "optimizer": state.opt_state, **best}


def _encode(loader_state: Any) -> dict[str, Any]:
    if isinstance(loader_state, bytes):
        return {"bytes": base64.b64encode(loader_state).decode("ascii")}
    return {"value": loader_state}


def _decode(stored: dict[str, Any]) -> Any:
    return base64.b64decode(stored["bytes"]) if "bytes" in stored else stored["value"]
