"""Tiny reference models in torch, saved as HF folders, and what both sides need to be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from r2rec_jax.models.backbone import Backbone

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6, "rms_norm_eps": 1e-5, "max_position_embeddings": 256,
    "tie_word_embeddings": False, "initializer_range": 0.3, "attn_implementation": "eager",
}


@pytest.fixture
def make_reference(tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """``make(**config)``: (transformers model in float32, its HF folder); weights large enough to matter."""

    def make(*, seed: int = 0, shard: str = "5GB", **overrides: Any) -> tuple[Any, Path]:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **overrides})).float().eval()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" in name:
                    weight.add_(0.2 * torch.randn_like(weight))
        folder = tmp_path / f"reference-{len(list(tmp_path.iterdir()))}"
        model.save_pretrained(folder, max_shard_size=shard)
        return model, folder

    return make


@pytest.fixture
def our_logits() -> Callable[..., np.ndarray]:
    """``logits(backbone, lora, tokens[, segments, parents, positions])``: float32 [B, T, V]."""

    def logits(backbone: Backbone, lora: nnx.State | None, tokens: np.ndarray, *, segments: Any = None,
               parents: Any = None, positions: Any = None) -> np.ndarray:
        tokens = jnp.asarray(tokens)
        segments = jnp.ones_like(tokens) if segments is None else jnp.asarray(segments)
        parents = jnp.zeros_like(tokens) if parents is None else jnp.asarray(parents)
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)

        @jax.jit
        def run(adapter: nnx.State, base: nnx.State) -> jax.Array:
            model = nnx.merge(backbone.graphdef, adapter, base)
            hidden = model.hidden_states(tokens, jnp.asarray(positions), segments, parents)
            return hidden @ model.head()

        return np.asarray(run(backbone.lora if lora is None else lora, backbone.base))

    return logits


@pytest.fixture
def torch_logits() -> Callable[..., np.ndarray]:
    """``logits(model, tokens)``: float32 [B, T, V]."""

    def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.tensor(np.asarray(tokens), dtype=torch.long)).logits.float().numpy()

    return logits
