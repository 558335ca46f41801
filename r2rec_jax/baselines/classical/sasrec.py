"""SASRec: self-attention over a user's history (Kang and McAuley, "Self-Attentive Sequential Recommendation", 2018).

Kept from the paper: learned embeddings of items and places, causal self-attention blocks with point-wise feed-forward
layers, dropout and residual connections, scores by inner products with the same item embeddings (Eq. 7).
Departures: layer normalisation comes before each of the two sub-layers for queries, keys and values alike (the paper
normalises queries only), no dropout on attention weights, places count from the first event of a window instead of
from the last, the first item is predicted too (from a start token), histories beyond the limit are cut into windows
instead of forgotten, and the loss is cross-entropy over the whole catalogue instead of one sampled negative.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from r2rec_jax.baselines.classical.sequences import Rows, SequenceModel, drop
from r2rec_jax.config.baselines import SASRecConfig
from r2rec_jax.models.attention import attend, segment_mask


class SASRecBlock(nnx.Module):
    """x + Attention(Norm(x)), then x + FeedForward(Norm(x)) with ReLU; dropout on both branches and inside the second.

    The layout of ``torch.nn.TransformerEncoderLayer(norm_first=True)``.
    """

    def __init__(self, config: SASRecConfig, rngs: nnx.Rngs) -> None:
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)
        self.feed_norm = nnx.LayerNorm(width, epsilon=1e-5, rngs=rngs)
        self.up = nnx.Linear(width, config.feed_forward, rngs=rngs)
        self.down = nnx.Linear(config.feed_forward, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], mask: Array, keys: Any) -> Float[Array, "B T D"]:
        """``mask`` bool [B, T, T]: what each position sees; ``keys``: three for dropout, or Nones."""
        q, k, v = jnp.split(self.qkv(self.attention_norm(x)).reshape(*x.shape[:2], 3 * self.heads, -1), 3, axis=2)
        x = x + drop(self.out(attend(q, k, v, mask).reshape(x.shape)), self.dropout, keys[0])
        inner = drop(jax.nn.relu(self.up(self.feed_norm(x))), self.dropout, keys[1])
        return x + drop(self.down(inner), self.dropout, keys[2])


class SASRecNetwork(nnx.Module):
    """Embeddings, blocks and a last normalisation; ``table`` is input and output embedding, the start token last."""

    def __init__(self, n_items: int, config: SASRecConfig, rngs: nnx.Rngs) -> None:
        normal = nnx.initializers.normal(0.02)
        self.dropout = config.dropout
        self.table = nnx.Param(normal(rngs.params(), (n_items + 1, config.width)))
        self.places = nnx.Param(normal(rngs.params(), (config.max_events, config.width)))
        self.disliked = nnx.Param(jnp.zeros(config.width)) if config.events == "all" else None
        self.blocks = nnx.List([SASRecBlock(config, rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(config.width, epsilon=1e-5, rngs=rngs)

    def hidden(self, rows: Rows, key: Array | None) -> Float[Array, "B T D"]:
        """States that predict the next item; with a ``key``, under dropout."""
        x = self.table[...][rows.items] + self.places[...][rows.positions]
        if self.disliked is not None:
            x = x + jnp.where(rows.liked[..., None], 0.0, self.disliked[...])
        keys = [None] * (1 + 3 * len(self.blocks)) if key is None else list(
            jax.random.split(key, 1 + 3 * len(self.blocks)))
        x = drop(x, self.dropout, keys[0])
        mask = segment_mask(rows.segments, jnp.zeros_like(rows.segments))
        for index, block in enumerate(self.blocks):
            x = block(x, mask, keys[1 + 3 * index:4 + 3 * index])
        return self.norm(x)


class SASRec(SequenceModel):
    """The recommender around :class:`SASRecNetwork`."""

    name: ClassVar[str] = "sasrec"

    def network(self, rngs: nnx.Rngs) -> SASRecNetwork:
        """A fresh network."""
        return SASRecNetwork(self.events.n_items, self.config, rngs)
