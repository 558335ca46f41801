"""The flags of ``--plan``, apart from what reads them, so that ``--help`` imports no jax."""

from __future__ import annotations

from typing import Any, Literal

Device = Literal["all", "cpu", "a100-40g", "a100-80g", "h100", "h200", "v5e", "v6e"]


def add_plan_arguments(parser: Any) -> None:
    """``--plan`` and what belongs to it."""
    parser.add_argument("--plan", action="store_true",
                        help="print the memory that the run would take, phase by phase, and stop; no device is touched "
                        "and config.json is all that is read of the backbone")
    parser.add_argument("--plan_device", type=Device, default="all",
                        help="cpu plans for this machine and asks the compiled programs")
    parser.add_argument("--plan_devices", type=int | None, default=None,
                        help="number of devices; without it the product of the parallel axes, -1 counting as 1")
    parser.add_argument("--plan_lengths", type=tuple[int, int] | None, default=None,
                        help="[prompt, completion]: longest of each in tokens; without it the configured limits")
    parser.add_argument("--plan_items", type=int | None, default=None,
                        help="number of items, where backbone.item_tokens or backbone.tiny.item_tokens gives each a "
                        "token: prepare/ says how many; without it their rows of the embedding are left out")
