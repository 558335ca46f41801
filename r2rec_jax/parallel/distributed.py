"""Runs over several processes: ``jax.distributed``, one process a host (or a GPU), all with the same command.

Every process runs the same program on the same global batches; only its own rows reach its devices.
"""

from __future__ import annotations

import jax

from r2rec_jax.config.parallel import ParallelConfig

HEARTBEAT_S = 30
"""A process that has not been heard of for so long is dead, and its end ends the others."""

START_S = 300
"""How long a process waits at the start for the others."""


def start(config: ParallelConfig) -> None:
    """Join the run's processes; nothing for a run of one. Call it before anything asks for a device.

    Raises:
        ValueError: the environment does not say what the settings leave open, or not all processes came.
    """
    if config.distributed == "off" or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(
            config.coordinator, config.num_processes, config.process_id, initialization_timeout=START_S,
            heartbeat_timeout_seconds=HEARTBEAT_S)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"parallel.distributed 'auto' could not start {_place(config)} "
                         f"({' '.join(str(error).split())[:300]}); set parallel.coordinator, parallel.num_processes "
                         "and parallel.process_id, and start every process") from None


def _place(config: ParallelConfig) -> str:
    if config.coordinator is None:
        return "from the environment"
    return f"process {config.process_id} of {config.num_processes} with coordinator {config.coordinator}"


def is_first() -> bool:
    """Whether this is process 0, which alone writes."""
    return jax.process_index() == 0
