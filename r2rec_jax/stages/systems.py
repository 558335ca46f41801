"""How tables call the policies of a run, which of its checkpoints they are, and which stage trained those."""

from __future__ import annotations

from r2rec_jax.config import TrainConfig

CHECKPOINTS = {"base": "base", "pretrained": "base", "sft": "sft", "grpo": "grpo", "sft+grpo": "grpo"}
"""System -> checkpoint of the run. The policy before SFT is ``pretrained`` where the run trained its backbone, GRPO
with SFT before it is ``sft+grpo``; settings may say ``base`` for the first and know the second by either name."""


def system_name(config: TrainConfig, checkpoint: str) -> str:
    """How tables call a checkpoint of a run with these settings."""
    if checkpoint == "base":
        return "pretrained" if config.trains_backbone else "base"
    if checkpoint == "grpo":
        return "sft+grpo" if config.grpo.start == "sft" else "grpo"
    return checkpoint


def trained_by(system: str) -> str:
    """The stage whose product a system or a checkpoint is.

    Example: ``trained_by("sft+grpo")`` is ``"grpo"``, ``trained_by("base")`` is ``"pretrain"``.
    """
    checkpoint = CHECKPOINTS[system]
    return "pretrain" if checkpoint == "base" else checkpoint
