"""The one device mesh of a run: axes data, fsdp and tensor, over the devices of all processes.

Programs are written for one device and partitioned by the compiler from where their inputs lie (``sharding``); the axes
are of type Auto. On a single device there is no mesh at all (None), and nothing is placed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from r2rec_jax.config.parallel import AXES, ParallelConfig


def make_mesh(config: ParallelConfig, devices: Sequence[Any] | None = None) -> Mesh | None:
    """The mesh of a run; None for a single device.

    Args:
        config: sizes of the axes.
        devices: what to lay out; all devices of all processes when not given.

    Raises:
        ValueError: the axes do not make up the number of devices, or this is one of several hosts that were started
            without ``parallel.distributed``.
    """
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise ValueError(f"parallel.distributed must be 'auto' on a slice of several hosts (jax sees "
                         f"{jax.process_count()} processes); got 'off'")
    chosen = list(jax.devices() if devices is None else devices)
    sizes = config.sizes(len(chosen))
    if len(chosen) == 1:
        return None
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=chosen)


def row_shards(mesh: Mesh | None) -> int:
    """Parts that the rows of a batch are split into: data x fsdp, 1 without a mesh."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def in_host_memory() -> AbstractContextManager[Any]:
    """While this lasts, arrays that are placed nowhere else are made in the host's memory.

    Where ``JAX_PLATFORMS`` names an accelerator alone, jax has no CPU beside it, and they stay on that.
    """
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()
