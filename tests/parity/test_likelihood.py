"""Log-likelihoods of continuations against transformers, each scored in a row of its own there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from r2rec_jax.models.huggingface import load_backbone
from r2rec_jax.stages.likelihood import score_lines
from r2rec_jax.training.grpo import make_scoring
from r2rec_jax.training.policy import FrozenModel

VOCAB = 97


def test_sums_are_those_of_transformers(make_reference: Callable, torch_logits: Callable, tmp_path: Path) -> None:
    reference, folder = make_reference()
    backbone = load_backbone(folder, None, "float32")
    program = make_scoring(FrozenModel(backbone.graphdef, backbone.base), 1.0)
    rng = np.random.default_rng(0)
    prompts = [tuple(rng.integers(3, VOCAB, n).tolist()) for n in (23, 9, 40)]
    groups = [[tuple(rng.integers(3, VOCAB, rng.integers(1, 9)).tolist()) for _ in range(n)] for n in (5, 2, 7)]
    groups[2][6] = groups[2][1]
    ours = score_lines(prompts, groups, lambda b: program(backbone.lora, backbone.base, b)["logprobs"], rows=4)
    for prompt, lines, sums in zip(prompts, groups, ours, strict=True):
        for line, value in zip(lines, sums, strict=True):
            ids = np.array([[*prompt, *line]])
            logprobs = torch.log_softmax(torch.tensor(torch_logits(reference, ids)), -1)[0]
            places = range(len(prompt) - 1, len(prompt) + len(line) - 1)
            assert value == pytest.approx(sum(float(logprobs[p, ids[0, p + 1]]) for p in places), abs=2e-4)
    assert ours[2][6] == ours[2][1] and program.compilations == 1
