"""A tiny random Llama in float32, its adapter, and examples for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.config import LoraConfig
from r2rec_jax.models.llama import LlamaConfig, abstract_llama, split_llama
from r2rec_jax.tokens.examples import Example
from r2rec_jax.training.checkpoints import Checkpoints, Identity
from r2rec_jax.training.policy import FrozenModel

LORA = LoraConfig(rank=4, alpha=8.0)
VOCAB = 61


@pytest.fixture(scope="session")
def llama_config() -> LlamaConfig:
    return LlamaConfig(vocab_size=VOCAB, hidden_size=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8,
                       rms_eps=1e-5, rope_theta=1e4, rope_scaling=None, tied=True, max_positions=512)


@pytest.fixture(scope="session")
def tiny(llama_config: LlamaConfig) -> tuple[FrozenModel, Any]:
    """(frozen model, adapter with both factors non-zero). The embedding is large, so that an adapter can learn."""
    graphdef, lora, base = split_llama(abstract_llama(llama_config, LORA, jnp.float32))
    rng = np.random.default_rng(5)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "norm" in name:
            return jnp.asarray(rng.normal(1.0, 0.1, leaf.shape), jnp.float32)
        spread = 0.4 if "embed" in name else 0.1 if "lora" in name else leaf.shape[-2] ** -0.5
        return jnp.asarray(rng.normal(0, spread, leaf.shape), jnp.float32)

    lora, base = (jax.tree_util.tree_map_with_path(draw, tree) for tree in (lora, base))
    return FrozenModel(graphdef, base), lora


@pytest.fixture(scope="session")
def make_examples() -> Callable[..., list[Example]]:
    def make(count: int, seed: int = 0, prompt: tuple[int, int] = (4, 12), completion: tuple[int, int] = (2, 8)
             ) -> list[Example]:
        rng = np.random.default_rng(seed)
        return [Example(f"example-{i}", tuple(rng.integers(3, VOCAB, rng.integers(*prompt)).tolist()),
                        (*rng.integers(3, VOCAB, rng.integers(*completion)).tolist(), 2)) for i in range(count)]

    return make


@pytest.fixture
def checkpoints(tmp_path: Path) -> Callable[..., Checkpoints]:
    def make(stage: str = "sft", name: str = "checkpoints", **changes: Any) -> Checkpoints:
        facts = {"base_sha256": "b" * 64, "config_sha256": "c" * 64, "lora": LORA} | changes
        return Checkpoints(tmp_path / name, Identity(stage, **facts))

    return make


def _equal(a: Any, b: Any) -> bool:
    same = jax.tree.map(lambda x, y: bool(np.array_equal(np.asarray(x), np.asarray(y))), a, b)
    return all(jax.tree.leaves(same))


def _rows_without_seconds(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


@pytest.fixture(scope="session")
def trees_equal() -> Callable[[Any, Any], bool]:
    return _equal


@pytest.fixture(scope="session")
def without_seconds() -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return _rows_without_seconds


@pytest.fixture(scope="session")
def prompts(make_examples: Callable[..., list[Example]]) -> list[Example]:
    """Two, without completions."""
    return [replace(example, completion_ids=()) for example in make_examples(2, seed=10)]
