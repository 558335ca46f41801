"""``python -m r2rec_jax.train --plan``: what a run will hold, phase by phase, and which devices have room for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax

from r2rec_jax.config import TrainConfig
from r2rec_jax.config.parallel import AXES
from r2rec_jax.files import FETCH_AGAIN, read_json
from r2rec_jax.models.shapes import KNOWN, SMOLLM2_135M
from r2rec_jax.stages.memory import formula
from r2rec_jax.stages.memory.compiled import gradient_temporaries
from r2rec_jax.stages.workspace import SMOLLM2

GIB = 2**30

DEVICES: dict[str, float] = {
    "a100-40g": 39.4, "a100-80g": 79.1, "h100": 79.1, "h200": 139.8, "v5e": 15.75, "v6e": 31.25,
}
"""Memory of a device as its driver reports it, GiB."""

USABLE = 0.95
"""Share of a device that a run may fill; the rest is the context, kernels and fragmentation."""

GPU_DEFAULT = 0.75
"""Share of a GPU that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""

HOST_PROCESS = 1_000_000_000
"""Resident memory of the process itself on a CPU: interpreter, libraries, XLA's compiler and its programs
(``launch/measure_plan.py``)."""


@dataclass(frozen=True)
class Phase:
    """One phase of a run on one device.

    Attributes:
        name: the stage and what it does there, as ``sft: update, 4 x 1472 tokens a device``.
        basis: where temporaries come from: ``formula``, or ``compiled`` for this CPU.
        parts: bytes by kind.
    """

    name: str
    basis: str
    parts: Mapping[str, int]

    @property
    def peak(self) -> int:
        """All of it, bytes."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class Lengths:
    """The longest prompt and the longest completion that are planned for, in tokens."""

    prompt: int
    completion: int


@dataclass(frozen=True)
class Plan:
    """A run's memory.

    Attributes:
        backbone: ``backbone.source``.
        device: what was planned for: ``cpu`` or ``accelerator``.
        parameters, trained: numbers in the backbone and in the adapter.
        mesh: devices on each axis.
        dtype, quantize: of the backbone.
        phases: in the order of the run.
    """

    backbone: str
    device: str
    parameters: int
    trained: int
    mesh: Mapping[str, int]
    dtype: str
    quantize: str
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> int:
        """Of the largest phase, bytes a device."""
        return max(phase.peak for phase in self.phases)

    def fits(self, device: str) -> bool:
        """Whether every phase fits a named device."""
        return self.peak <= USABLE * DEVICES[device] * GIB

    def as_json(self, devices: Sequence[str]) -> dict[str, Any]:
        """For ``--json``: bytes, and whether each device has room."""
        phases = [{**asdict(phase), "peak": phase.peak} for phase in self.phases]
        fits = {name: self.fits(name) for name in devices}
        return {**asdict(self), "phases": phases, "peak": self.peak, "fits": fits}


def find_config(source: str) -> dict[str, Any]:
    """config.json of a backbone, its weights left alone: a folder, a GGUF file, or a published or cached hub id.

    Raises:
        ValueError: there is none at hand.
    """
    path = Path(source).expanduser()
    if (path / "config.json").is_file():
        return read_json(path / "config.json", FETCH_AGAIN)
    if path.is_file():
        from r2rec_jax.models.gguf import read_gguf

        return read_gguf(path)[0]
    name = SMOLLM2_135M if source == SMOLLM2 else source
    if name in KNOWN:
        return KNOWN[name]
    cached = _cached(name) if name.count("/") == 1 and not path.exists() else None
    if cached is None:
        raise ValueError(f"a plan needs the backbone's config.json; {source!r} is no folder or file with one, is not "
                         f"in the hub's cache, and is none of {', '.join(KNOWN)}; give a folder with its config.json")
    return read_json(cached, FETCH_AGAIN)


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, "config.json")
    return Path(found) if isinstance(found, str) else None


def tiny_config(config: TrainConfig) -> dict[str, Any]:
    """config.json of the ``tiny`` backbone, before it has been trained."""
    from r2rec_jax.models.backbone import tiny_hf_config

    tiny = config.backbone.tiny
    return tiny_hf_config(tiny, vocab_size=tiny.vocab_size, bos_id=None, eos_id=0, pad_id=None)


def make_plan(config: TrainConfig, hf_config: Mapping[str, Any], devices: int, on_cpu: bool,
              lengths: Lengths | None = None) -> Plan:
    """Plan a run.

    Args:
        config: the run's.
        hf_config: the backbone's config.json.
        devices: of all processes together.
        on_cpu: the run's device is this machine's CPU; temporaries are then those of the compiled gradient programs.
        lengths: of the longest example; None takes the configured limits, which no run exceeds.

    Raises:
        ValueError: the mesh does not make up the devices.
    """
    sizes = config.parallel.sizes(devices)
    shapes = formula.make_shapes(hf_config, config, sizes, on_cpu)
    limits = Lengths(config.prompts.max_tokens, config.sft.max_completion)
    sft, grpo = lengths or limits, lengths or Lengths(limits.prompt, config.grpo.max_new_tokens)
    full = replace(config, backbone=replace(config.backbone, quantize="none"))
    full_shapes = formula.make_shapes(hf_config, full, sizes, on_cpu)
    phases = [
        *_pretraining(full_shapes, config),
        _training(shapes, config, "sft", formula.sft_row(config, sft.prompt, sft.completion), config.sft.micro_batch),
        _rollout(shapes, config, "grpo: rollout", config.grpo.prompts_per_step, config.grpo.group_size, grpo),
        _training(shapes, config, "grpo", formula.grpo_row(config, grpo.prompt, grpo.completion),
                  config.grpo.micro_prompts),
        _rollout(shapes, config, "evaluate", config.evaluate.batch_size, config.evaluate.answers,
                 lengths or Lengths(limits.prompt, config.evaluate.max_new_tokens)),
    ]
    parameters = formula.count(full_shapes.base)
    return Plan(config.backbone.source, "cpu" if on_cpu else "accelerator", parameters, formula.count(shapes.lora),
                sizes, str(shapes.dtype), config.backbone.quantize, tuple(phases))


def _host(shapes: formula.Shapes) -> dict[str, int]:
    return {"process": HOST_PROCESS} if shapes.on_cpu else {}


def _pretraining(shapes: formula.Shapes, config: TrainConfig) -> list[Phase]:
    """Pretraining, where there is any: a whole batch in one pass."""
    if not config.trains_backbone:
        return []
    return [_training(shapes, config, "pretrain", formula.pretrain_row(config),
                      -(-config.pretrain.batch_size // shapes.row_shards))]


def _training(shapes: formula.Shapes, config: TrainConfig, stage: str, row: Any, rows: int) -> Phase:
    if stage == "pretrain":
        kept, shapes = formula.held_whole(shapes), formula.widened(shapes)
    else:
        kept = formula.held(shapes, _adapters(config, stage))
    held = _host(shapes) | kept
    name = f"{stage}: update, {rows} x {row.length} tokens a device"
    if shapes.on_cpu and all(size == 1 for size in shapes.sizes.values()):
        return Phase(name, "compiled", held | {
            "temporaries": gradient_temporaries(shapes, config, stage, row, rows)})
    remat = formula.recomputes(config, shapes.on_cpu)
    return Phase(name, "formula", held | formula.training_temporaries(shapes, row, rows, remat))


def _adapters(config: TrainConfig, stage: str) -> int:
    """LoRA trees alive in SFT or GRPO; see :func:`~r2rec_jax.stages.memory.formula.held`."""
    grpo = stage == "grpo"
    return 3 + grpo + ((config.grpo.keep if grpo else config.sft.keep) == "best")


def _rollout(shapes: formula.Shapes, config: TrainConfig, name: str, prompts: int, group: int, lengths: Lengths
             ) -> Phase:
    """A rollout: GRPO's, beside the optimiser's state, or the evaluation's."""
    learning = name.startswith("grpo")
    held = _host(shapes) | formula.held(shapes, _adapters(config, "grpo") if learning else 3) | {"gradients": 0}
    if not learning:
        held |= {"optimiser": 0}
    parts = formula.rollout_parts(shapes, config, prompts, group, lengths.prompt, lengths.completion)
    return Phase(f"{name}, {prompts} x {group} rows", "formula", held | parts)


def show(plan: Plan, devices: Sequence[str]) -> str:
    """The plan as text, GiB a device."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan.mesh.items())
    lines = [f"backbone {plan.backbone}: {plan.parameters:,} parameters in {plan.dtype}"
             + (f", linears in {plan.quantize}" if plan.quantize != "none" else "")
             + f"; adapter {plan.trained:,}; mesh {mesh}", "GiB a device"]
    for phase in plan.phases:
        parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in phase.parts.items() if size)
        lines.append(f"  {phase.name} ({phase.basis}): {phase.peak / GIB:.2f} = {parts}")
    lines.append(f"peak {plan.peak / GIB:.2f}" + (
        " resident on this CPU" if plan.device == "cpu" else ""))
    for name in devices:
        share = plan.peak / GIB / DEVICES[name]
        told = "does not fit" if not plan.fits(name) else "fits"
        if plan.fits(name) and not name.startswith("v") and share > GPU_DEFAULT:
            told += f", with XLA_PYTHON_CLIENT_MEM_FRACTION={USABLE}"
        lines.append(f"  {name}: {told} ({share:.0%} of {DEVICES[name]:g})")
    return "\n".join(lines)


def run_plan(config: TrainConfig, arguments: Any) -> dict[str, Any]:
    """Plan, print, and return it for ``--json``.

    Raises:
        ValueError: no config.json at hand, lengths or items below 1, items without a token, or a mesh that does not
            make up the devices.
    """
    jax.config.update("jax_platforms", "cpu")
    source, asked = config.backbone.source, arguments["plan_device"]
    hf_config = tiny_config(config) if source == "tiny" else find_config(source)
    fixed = math.prod(max(1, getattr(config.parallel, axis)) for axis in AXES)
    lengths = arguments["plan_lengths"] and Lengths(*arguments["plan_lengths"])
    if lengths and min(lengths.prompt, lengths.completion) < 1:
        raise ValueError(f"--plan_lengths must be two lengths >= 1; got {arguments['plan_lengths']}")
    tokens, items = config.backbone.has_item_tokens, arguments["plan_items"]
    if items is not None and (items < 1 or not tokens):
        raise ValueError(f"--plan_items must be >= 1, and items must be tokens; got {items}"
                         + " without item_tokens" * (not tokens))
    count = arguments["plan_devices"]
    hf_config = {**hf_config, "vocab_size": hf_config["vocab_size"] + (items or 0)}
    plan = make_plan(config, hf_config, fixed if count is None else count, asked == "cpu", lengths)
    devices = list(DEVICES) if asked == "all" else [] if asked == "cpu" else [asked]
    print(show(plan, devices))
    if tokens and items is None:
        print("the items' tokens are left out; --plan_items N counts them")
    return plan.as_json(devices)
