"""Twenty SFT and twenty GRPO steps and greedy decoding of a tiny model, on any layout of devices and processes.

    python -m tests.parallel.work layouts OUT.json
    python -m tests.parallel.work process OUT.npz --parallel.distributed auto --parallel.coordinator 127.0.0.1:1234 ...

``layouts`` (with 8 virtual CPU devices) writes how far each layout is from the single device; ``process`` writes the
numbers of this process's run.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np

from r2rec_jax.config import GrpoConfig, LoraConfig, ParallelConfig, SftConfig
from r2rec_jax.models.backbone import Backbone
from r2rec_jax.models.llama import LlamaConfig, abstract_llama, split_llama
from r2rec_jax.models.vocabulary import with_vocabulary
from r2rec_jax.parallel import distributed
from r2rec_jax.parallel.mesh import make_mesh
from r2rec_jax.parallel.sharding import place, to_host
from r2rec_jax.sampling.decoder import Buckets, Decoder
from r2rec_jax.sampling.rollout import Rollout
from r2rec_jax.tokens.examples import Example
from r2rec_jax.training.environment import Environment
from r2rec_jax.training.grpo import train_grpo
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.sft import train_sft
from r2rec_jax.training.updates import Updates

LAYOUTS = ((8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8))
STEPS = 20
CONFIG = LlamaConfig(vocab_size=64, hidden_size=32, ffn=64, layers=2, heads=8, kv_heads=2, head_dim=8, rms_eps=1e-5,
                     rope_theta=1e4, rope_scaling=None, tied=False, max_positions=512)
SFT = SftConfig(epochs=4, batch_size=8, micro_batch=1, lr=1e-3, thought_weight=0, buckets=(32,), eval_every=6,
                keep="best")
GRPO = GrpoConfig(epochs=10, group_size=4, prompts_per_step=8, micro_prompts=1, lr=1e-3, temperature=1.0, top_p=1.0,
                  max_new_tokens=8, beta=0.04, steps=STEPS)


@dataclass
class Numbers:
    """Losses [steps] and gradients [steps, parameters] of both loops, held-out losses [looks] and the adapter of the
    best, greedy tokens, weights with two tokens more."""

    sft_loss: np.ndarray
    sft_looks: np.ndarray
    sft_grads: np.ndarray
    grpo_loss: np.ndarray
    grpo_grads: np.ndarray
    sft_lora: np.ndarray
    greedy: np.ndarray
    grown: np.ndarray


class Log:
    """Takes the place of a metrics writer."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.looks: list[float] = []

    def write(self, step: int, values: Any, seconds: float) -> None:
        (self.looks if "eval_loss" in values else self.losses).append(values.get("eval_loss", values.get("loss")))

    def resume(self, step: int) -> None: ...
    def sync(self) -> None: ...
    def close(self) -> None: ...


def examples(count: int) -> list[Example]:
    rng = np.random.default_rng(3)
    return [Example(f"e{i}", tuple(rng.integers(3, 60, rng.integers(4, 16)).tolist()),
                    (*rng.integers(3, 60, rng.integers(2, 12)).tolist(), 2)) for i in range(count)]


def generate(lora: Any, base: Any, prompts: Any, *, group: int, max_new_tokens: int, row_ids: Any, **_: Any) -> Rollout:
    """Fixed rollouts: tokens that depend on the row ids alone."""
    shape = (len(prompts), group, max_new_tokens)
    rng = np.random.default_rng(list(row_ids))
    tokens = rng.integers(3, 60, shape).astype(np.int32)
    lengths = rng.integers(1, max_new_tokens + 1, shape[:2]).astype(np.int32)
    real = np.arange(max_new_tokens) < lengths[:, :, None]
    return Rollout(tokens * real, lengths, np.where(real, -3.0, 0).astype(np.float32), lengths < max_new_tokens)


def reward(texts: Any, example_ids: Any) -> dict[str, np.ndarray]:
    return {"total": np.array([np.mean([int(t) % 7 for t in text.split()] or [0]) for text in texts])}


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(x).reshape(-1) for x in jax.tree.leaves(to_host(tree))])


def run(parallel: ParallelConfig | None) -> Numbers:
    """Everything on one layout; None is a single device."""
    mesh = None if parallel is None else make_mesh(parallel)
    graphdef, lora, base = split_llama(abstract_llama(CONFIG, LoraConfig(rank=4, alpha=8.0), jnp.float32))
    rng = np.random.default_rng(5)

    def draw(path: Any, leaf: Any) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if "norm" in name:
            return rng.normal(1.0, 0.1, leaf.shape).astype(np.float32)
        spread = 0.5 if "embed" in name or "head" in name else 0.1 if "lora" in name else leaf.shape[-2] ** -0.5
        return rng.normal(0.0, spread, leaf.shape).astype(np.float32)

    lora, base = (jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(draw, tree)) for tree in (lora, base))
    model = FrozenModel(graphdef, place(base, mesh), mesh=mesh)
    gradients: list[np.ndarray] = []
    original = Updates.run

    def spy(self: Updates, *args: Any) -> Any:
        update = self.update
        self.update = lambda state, total: (gradients.append(flat(total["grads"])), update(state, total))[1]
        try:
            return original(self, *args)
        finally:
            self.update = update

    with patch.object(Updates, "run", spy):
        sft_log, grpo_log = Log(), Log()
        shown = examples(46)
        trained = train_sft(model, lora, shown[:40], SFT, seed=1, held_out=shown[40:], metrics=sft_log)
        assert len(sft_log.looks) == 5 and trained.kept == (0, 6, 12, 18, 20)[int(np.argmin(sft_log.looks))]
        sft_grads, gradients[:] = np.stack(gradients), []
        train_grpo(model, lora, examples(16), GRPO, Environment(generate, lambda ids: " ".join(map(str, ids)), reward),
                   seed=1, metrics=grpo_log)
    buckets = Buckets(prompt_tokens=8, prefill_tokens=32, segment=8, look_every=4, compact_rows=2)
    decoder = Decoder(graphdef, CONFIG, (2, 7, 11, 13, 17, 19), 0, buckets=buckets, mesh=mesh)
    prompts = [e.prompt_ids for e in examples(21)]
    drawn = decoder.generate(place(lora, mesh), model.base, prompts, group=2, max_new_tokens=16, temperature=0.0,
                             top_p=1.0, key=jax.random.key(0))
    grown = with_vocabulary(Backbone(graphdef, model.base, CONFIG, {}, "drawn", "", lora), {64: [3, 4], 65: [5]}, mesh)
    return Numbers(np.array(sft_log.losses), np.array(sft_log.looks), sft_grads, np.array(grpo_log.losses),
                   np.stack(gradients), flat(trained.params), drawn.tokens, flat(grown.base))


def apart(a: Numbers, b: Numbers) -> dict[str, float]:
    """Largest difference of each number; the lengths must be those of 20 steps."""
    assert len(a.sft_loss) == len(b.sft_loss) == len(a.grpo_loss) == len(b.grpo_loss) == STEPS
    return {name: float(np.abs(value - getattr(b, name)).max()) for name, value in vars(a).items()}


def main(mode: str, out: str, *arguments: str) -> None:
    if mode == "layouts":
        alone = run(None)
        assert len(np.unique(alone.greedy)) > 10 and np.abs(alone.sft_grads).max() > 1e-2
        found = {str(axes): apart(alone, run(ParallelConfig(*axes))) for axes in LAYOUTS}
        with open(out, "w") as file:
            json.dump(found, file)
        return
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    flags = {name.removeprefix("--parallel."): value for name, value in pairs}
    numbers = ("data", "fsdp", "tensor", "num_processes", "process_id")
    parallel = ParallelConfig(**{name: int(value) if name in numbers else value for name, value in flags.items()})
    distributed.start(parallel)
    np.savez(out, **vars(run(parallel)))


if __name__ == "__main__":
    main(*sys.argv[1:])
