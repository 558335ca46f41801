"""GRPO on a tiny model, for tests of its loop: rollouts drawn without the policy, and a reward for some tokens."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import pytest

from r2rec_jax.config import GrpoConfig
from r2rec_jax.sampling.rollout import Rollout
from r2rec_jax.training.environment import Environment
from r2rec_jax.training.grpo import train_grpo
from r2rec_jax.training.metrics import JsonLines, MetricsWriter
from r2rec_jax.training.state import init_state, make_optimizer
from r2rec_jax.training.updates import Updates

CONFIG = GrpoConfig(epochs=6, group_size=4, prompts_per_step=2, micro_prompts=1, lr=1e-2, temperature=1.0, top_p=1.0,
                    max_new_tokens=8, beta=0.02, checkpoint_every=3)
WANTED = {str(token) for token in range(3, 25)}


def text_of(ids) -> str:
    return " ".join(map(str, ids))


def reward(texts, example_ids) -> dict[str, Any]:
    """The share of some tokens, and a second part that is logged."""
    share = np.array([np.mean([word in WANTED for word in text.split()]) if text else 0.0 for text in texts])
    return {"total": share, "rank": share, "words": np.array([len(text.split()) for text in texts])}


def fake_generate(lora, base, prompts, *, group, max_new_tokens, temperature, top_p, key, row_ids=None,
                  on_compile=None) -> Rollout:
    """Random tokens, half of the rows ended by token 2: a function of key and row ids alone."""
    shape = (len(prompts), group, max_new_tokens)
    rng = np.random.default_rng([*np.asarray(jax.random.key_data(key)).tolist(), *row_ids])
    tokens = rng.integers(3, 60, shape).astype(np.int32)
    lengths = rng.integers(1, max_new_tokens + 1, shape[:2]).astype(np.int32)
    finished = lengths < max_new_tokens
    for p, g in np.argwhere(finished):
        tokens[p, g, lengths[p, g] - 1] = 2
    real = np.arange(max_new_tokens) < lengths[:, :, None]
    return Rollout(tokens * real, lengths, np.where(real, -3.0, 0).astype(np.float32), finished)


FAKE = Environment(fake_generate, text_of, reward)


def run(tiny, prompts, tmp_path, checkpoints, name, config=CONFIG, environment=FAKE, held_out=()):
    model, lora = tiny
    own = checkpoints("grpo", name)
    trained = train_grpo(model, lora, prompts, config, environment, seed=1, held_out=held_out, checkpoints=own,
                         metrics=MetricsWriter(tmp_path / name, "grpo", tensorboard=False),
                         completions_log=JsonLines(tmp_path / name / "completions.jsonl"))
    state = own.restore(init_state(lora, make_optimizer(1e-2, "constant", 0, 6, 0, 1.0)))
    own.close()
    logs = [[json.loads(line) for line in (tmp_path / name / file).read_text().splitlines()]
            for file in ("metrics.jsonl", "completions.jsonl")]
    return trained, state, logs


@contextmanager
def stopped_after(monkeypatch, updates: int):
    """The run within is cut off when it begins its next update, and must be."""
    original, calls = Updates.run, []

    def stop(self, *args):
        calls.append(1)
        if len(calls) > updates:
            raise SystemExit
        return original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Updates, "run", stop)
        yield
