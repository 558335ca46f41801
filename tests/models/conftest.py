"""A tiny backbone, and its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from r2rec_jax.config import LoraConfig, TinyConfig
from r2rec_jax.models.backbone import Backbone, random_backbone, tiny_hf_config
from r2rec_jax.models.huggingface import save_merged

BUILT: dict[str, Backbone] = {}
"""Backbones by their settings: building one takes a second, and nothing may change one."""

TINY = TinyConfig(vocab_size=300, hidden_size=24, layers=2, heads=4, kv_heads=2, ffn=40, max_positions=128)


@pytest.fixture
def hf_config() -> dict[str, Any]:
    return tiny_hf_config(TINY, vocab_size=97, bos_id=0, eos_id=1, pad_id=2)


@pytest.fixture
def make_backbone(hf_config) -> Callable[..., Backbone]:
    """``make(lora=..., dtype=..., seed=..., **config)``."""

    def make(lora: LoraConfig | None = None, dtype: str = "float32", seed: int = 0, **overrides: Any) -> Backbone:
        key = repr((lora, dtype, seed, sorted(overrides.items())))
        if key not in BUILT:
            BUILT[key] = random_backbone({**hf_config, **overrides}, lora, dtype, seed)
        return BUILT[key]

    return make


@pytest.fixture
def folder(make_backbone, tmp_path: Path) -> Path:
    """The tiny backbone as an HF folder with an untied head."""
    return save_merged(make_backbone(tie_word_embeddings=False), None, tmp_path / "folder")


@pytest.fixture
def random_lora() -> Callable[[Backbone], nnx.State]:
    def draw(backbone: Backbone, seed: int = 0) -> nnx.State:
        leaves, treedef = jax.tree.flatten(backbone.lora)
        keys = jax.random.split(jax.random.key(seed), len(leaves))
        return jax.tree.unflatten(treedef, [jax.random.normal(k, x.shape, jnp.float32)
                                            for k, x in zip(keys, leaves, strict=True)])

    return draw
