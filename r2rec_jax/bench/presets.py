"""What each work computes, and its size in each preset: both sides are built from these numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from r2rec_jax.models.shapes import DEEPSEEK_8B, KNOWN, SMOLLM2_135M

WORKS = ("rollout", "sft", "grpo", "recommend", "load", "numerics")

TEMPERATURE, TOP_P = 0.6, 0.9
SEED = 0


@dataclass(frozen=True)
class Decoding:
    """P prompts of S tokens, G completions of exactly T tokens each."""

    prompts: int
    group: int
    prompt_tokens: int
    new_tokens: int

    @property
    def rows(self) -> int:
        """Completions."""
        return self.prompts * self.group


@dataclass(frozen=True)
class Sft:
    """LoRA updates on three kinds of data: equal lengths with few tokens trained, or all of them, and real lengths.

    Attributes:
        batch: examples of an update at equal lengths.
        prompt_tokens, new_tokens: S and T of each of them.
        mixed: examples of an update of real lengths, half of them rankings and half thoughts.
        micro: rows of one of our passes.
        pytorch_micro: examples of one of PyTorch's passes, sorted by length; of several sizes the fastest is taken for
            each kind of data.
    """

    batch: int
    prompt_tokens: int
    new_tokens: int
    mixed: int
    micro: int
    pytorch_micro: tuple[int, ...]


@dataclass(frozen=True)
class Grpo:
    """One step on ``decoding.prompts`` groups.

    Attributes:
        decoding: shape of the rollouts.
        micro_prompts: prompts of one of our passes.
        pytorch_micro: completions of one of trl's passes; of several sizes the fastest is taken.
    """

    decoding: Decoding
    micro_prompts: int
    pytorch_micro: tuple[int, ...]


@dataclass(frozen=True)
class Preset:
    """One size of the whole benchmark.

    Attributes:
        name: on the command line and in result rows.
        backbone: ``smollm2-135m`` (real weights), or a shape of :data:`SHAPES` with random weights.
        lengths: which recorded example lengths ``mixed`` takes (``recorded.json``).
        dtype: of the frozen weights and activations, on both sides.
        rank: LoRA rank, on all seven linears, alpha twice that.
        repeats: measurements of each side.
        rollout, sft, grpo, recommend: shapes.
        tolerance: largest mean difference of log-probabilities between the two paths, in nats a token.
    """

    name: str
    backbone: str
    lengths: Literal["smollm2", "llama3"]
    dtype: Literal["float32", "bfloat16"]
    repeats: int
    rollout: Decoding
    sft: Sft
    grpo: Grpo
    recommend: Decoding
    tolerance: float
    rank: int = 16

    def settings(self) -> dict[str, Any]:
        """Every number of the preset, for the result file."""
        return asdict(self) | {"temperature": TEMPERATURE, "top_p": TOP_P, "seed": SEED}


_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

SHAPES: Mapping[str, dict[str, Any]] = {
    "random-smoke": {**KNOWN[SMOLLM2_135M], **_SPECIAL, "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128,
                     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    "random-135m": {**KNOWN[SMOLLM2_135M], **_SPECIAL},
    "random-8b": {**KNOWN[DEEPSEEK_8B], **_SPECIAL},
}
"""config.json of the backbones that are drawn at random; ``random-8b`` is DeepSeek-R1-Distill-Llama-8B's shape."""

PRESETS: Mapping[str, Preset] = {preset.name: preset for preset in (
    Preset(
        "smoke", "random-smoke", "smollm2", "float32", 2, rollout=Decoding(1, 4, 16, 6),
        sft=Sft(2, 16, 6, 4, 1, (2,)), grpo=Grpo(Decoding(1, 4, 16, 6), 1, (1, 4)), recommend=Decoding(2, 1, 16, 6),
        tolerance=1e-3, rank=4),
    Preset(
        "cpu", "smollm2-135m", "smollm2", "float32", 3, rollout=Decoding(1, 8, 512, 64),
        sft=Sft(4, 512, 64, 6, 1, (1, 2)), grpo=Grpo(Decoding(1, 8, 512, 64), 1, (1, 8)),
        recommend=Decoding(8, 1, 512, 64), tolerance=1e-3),
    Preset(
        "gpu-135m", "random-135m", "smollm2", "bfloat16", 5, rollout=Decoding(16, 8, 1024, 256),
        sft=Sft(16, 768, 256, 32, 8, (4, 8, 16)), grpo=Grpo(Decoding(8, 8, 1024, 256), 8, (8, 16, 64)),
        recommend=Decoding(64, 1, 1024, 256), tolerance=5e-2),
    Preset(
        "gpu-8b", "random-8b", "llama3", "bfloat16", 3, rollout=Decoding(16, 8, 1024, 256),
        sft=Sft(16, 768, 256, 16, 4, (1, 2, 4)), grpo=Grpo(Decoding(8, 8, 1024, 256), 1, (1, 2, 4)),
        recommend=Decoding(64, 1, 1024, 256), tolerance=5e-2),
)}


def preset_named(name: str, repeats: int | None = None, weights: str | None = None) -> Preset:
    """A preset, with another number of repeats or other weights when given.

    Raises:
        ValueError: no such preset, or repeats below 1.
    """
    if name not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}; got {name!r}")
    if repeats is not None and repeats < 1:
        raise ValueError(f"--repeats must be >= 1; got {repeats}")
    preset = PRESETS[name]
    return replace(preset, repeats=repeats or preset.repeats, backbone=weights or preset.backbone)
