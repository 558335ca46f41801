"""Settings of the device mesh and of runs over several processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r2rec_jax.config.check import check

AXES = ("data", "fsdp", "tensor")
"""The mesh's axes, outermost first."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the devices are laid out. No result depends on it, so it enters no stage key: a run may go on elsewhere.

    Attributes:
        data: groups of devices that hold whole copies of the weights between them and work on different rows.
        fsdp: devices that share one copy of the weights and the optimiser, and work on different rows.
        tensor: devices that split every layer's products; keep it within one host.
        distributed: ``auto`` starts ``jax.distributed``, once in every process; what the next three settings leave open
            is found in the environment (Slurm, Open MPI, TPU, Kubernetes, ``JAX_COORDINATOR_ADDRESS``).
        coordinator: ``host:port`` of process 0, reachable from all.
        num_processes: processes of the run.
        process_id: this process, from 0. The first one writes everything.

    One axis may be -1: the devices that remain, of all processes together.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    distributed: Literal["off", "auto"] = "off"
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        for name in AXES:
            size = getattr(self, name)
            check(size == -1 or size >= 1, f"parallel.{name}", ">= 1, or -1 for the devices that remain", size)
        sizes = tuple(getattr(self, name) for name in AXES)
        check(sizes.count(-1) <= 1, "parallel", "-1 on at most one axis", dict(zip(AXES, sizes, strict=True)))
        given = {n: v for n in ("coordinator", "num_processes", "process_id") if (v := getattr(self, n)) is not None}
        check(not given or self.distributed == "auto", "parallel.distributed", "'auto' when they are given", given)
        host, _, port = ("host", "", "0") if self.coordinator is None else self.coordinator.rpartition(":")
        check(bool(host) and port.isdigit(), "parallel.coordinator", "host:port", self.coordinator)
        check(self.num_processes is None or self.num_processes >= 1, "parallel.num_processes", ">= 1 or null",
              self.num_processes)
        check(self.process_id is None or 0 <= self.process_id < (self.num_processes or 2**31), "parallel.process_id",
              "in 0..num_processes - 1, or null", self.process_id)

    def sizes(self, devices: int) -> dict[str, int]:
        """Devices on each axis.

        Args:
            devices: of all processes together.

        Returns:
            ``{"data": 4, "fsdp": 2, "tensor": 1}`` for 8 devices, ``data: -1`` and ``fsdp: 2``.

        Raises:
            ValueError: the axes do not make up that many devices.
        """
        sizes = {name: getattr(self, name) for name in AXES}
        fixed = 1
        for size in sizes.values():
            fixed *= max(size, 1)
        open_axis = next((name for name, size in sizes.items() if size == -1), None)
        if open_axis is not None:
            sizes[open_axis] = devices // fixed
        whole = devices % fixed == 0 and devices >= fixed if open_axis is not None else devices == fixed
        check(whole, "parallel.data x parallel.fsdp x parallel.tensor",
              f"the number of devices ({devices})" if open_axis is None else f"a divisor of the {devices} devices",
              fixed)
        return sizes
