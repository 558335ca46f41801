"""The token ids that both sides are given: drawn at random from a seed, at exact or recorded lengths.

Speed depends on lengths, not on which tokens they are (the exact top-p search is slowest on flat distributions, which
random prompts give). ``recorded.json`` holds the lengths of real SFT examples, written by ``launch/record_lengths.py``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from r2rec_jax.bench.presets import SEED, Decoding, Preset

FIRST_ID = 3
"""Ids below are special tokens in every shape."""


@dataclass(frozen=True)
class Pair:
    """A prompt and a completion, as token ids."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.completion)


def recorded_lengths(which: str) -> dict[str, list[tuple[int, int]]]:
    """(prompt, completion) lengths in tokens of real examples: ``ranking`` and ``thought``."""
    text = resources.files("r2rec_jax.bench").joinpath("recorded.json").read_text(encoding="utf-8")
    return {kind: [(int(p), int(c)) for p, c in pairs] for kind, pairs in json.loads(text)["lengths"][which].items()}


def prompts(shape: Decoding, vocab: int, name: str) -> list[list[int]]:
    """P prompts of S tokens."""
    rng = _stream(name)
    return rng.integers(FIRST_ID, vocab, (shape.prompts, shape.prompt_tokens)).tolist()


def equal_pairs(preset: Preset, vocab: int) -> list[Pair]:
    """The SFT update at equal lengths."""
    return _pairs([(preset.sft.prompt_tokens, preset.sft.new_tokens)] * preset.sft.batch, vocab, "sft equal")


def trained_throughout(pairs: Sequence[Pair]) -> list[Pair]:
    """The same rows with every token but the first trained on."""
    return [Pair(pair.prompt[:1], pair.prompt[1:] + pair.completion) for pair in pairs]


def mixed_pairs(preset: Preset, vocab: int) -> list[Pair]:
    """The SFT update of real lengths: as many rankings as thoughts, evenly spaced among the recorded ones."""
    recorded = recorded_lengths(preset.lengths)
    half = preset.sft.mixed // 2
    lengths = [kind[i * len(kind) // half] for kind in (recorded["ranking"], recorded["thought"]) for i in range(half)]
    if preset.backbone == "random-smoke":
        lengths = [(p // 32, c // 32 + 1) for p, c in lengths]
    return _pairs(lengths, vocab, "sft mixed")


def sft_data(preset: Preset, vocab: int) -> dict[str, list[Pair]]:
    """The three kinds of SFT update by name."""
    equal = equal_pairs(preset, vocab)
    return {"equal": equal, "throughout": trained_throughout(equal), "mixed": mixed_pairs(preset, vocab)}


def _pairs(lengths: Sequence[tuple[int, int]], vocab: int, name: str) -> list[Pair]:
    rng = _stream(name)
    return [Pair(tuple(rng.integers(FIRST_ID, vocab, p).tolist()), tuple(rng.integers(FIRST_ID, vocab, c).tolist()))
            for p, c in lengths]


def _stream(name: str) -> np.random.Generator:
    return np.random.default_rng([SEED, *name.encode()])


def text_of(ids: Sequence[int]) -> str:
    """Ids as words, one a token: ``[5, 17] -> "t5 t17"``; what rewards read on both sides."""
    return " ".join(f"t{i}" for i in ids)


def reward(completions: Sequence[str]) -> list[float]:
    """Share of words with an even number: cheap, and spread within a group."""
    return [float(np.mean([int(word[1:]) % 2 == 0 for word in text.split()] or [0.0])) for text in completions]
