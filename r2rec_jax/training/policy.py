"""The policy as training sees it: a frozen backbone, and log-probabilities as a function of a LoRA tree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from r2rec_jax.config import BackboneConfig
from r2rec_jax.models.attention import AttentionBackend, check_backend
from r2rec_jax.models.backbone import resolve_dtype
from r2rec_jax.models.llama import merge_llama
from r2rec_jax.models.logprobs import CHUNK, row_logprobs
from r2rec_jax.parallel.mesh import row_shards
from r2rec_jax.tokens.examples import Batch


@dataclass(frozen=True)
class FrozenModel:
    """A backbone that is never trained; a policy is this and a LoRA tree.

    Attributes:
        graphdef: structure, from ``models.llama.split_llama``.
        base: its weights; always an argument of a compiled step, never a constant in it, and never donated.
        attention: backend.
        remat: recompute activations in the backward pass.
        mesh: where the base is placed; None for a single device.
    """

    graphdef: Any
    base: nnx.State
    attention: AttentionBackend = "auto"
    remat: bool = False
    mesh: Mesh | None = None

    @classmethod
    def from_config(cls, graphdef: Any, base: nnx.State, config: BackboneConfig, mesh: Mesh | None = None
                    ) -> FrozenModel:
        """With attention and remat as configured; ``remat: auto`` recomputes on GPU and TPU.

        Raises:
            ValueError: the configured attention does not run here.
        """
        check_backend(config.attention, resolve_dtype(config.dtype))
        remat = jax.default_backend() != "cpu" if config.remat == "auto" else config.remat == "on"
        return cls(graphdef, base, config.attention, remat, mesh)

    @property
    def row_shards(self) -> int:
        """A device pass holds a multiple of so many rows."""
        return row_shards(self.mesh)

    def score(
        self, lora: nnx.State, base: nnx.State, batch: Batch, temperature: float = 1.0
    ) -> tuple[Float[Array, "B C"], Float[Array, "B C"]]:
        """Log-probability of every target of the batch, and the entropy there, float32, in nats.

        Call it inside a jitted function that takes ``lora`` and ``base`` as arguments. Padded targets get the score
        of some real place; mask them by ``batch.target_weights``.
        """
        model = merge_llama(self.graphdef, lora, base)
        tokens, positions, segments, parents = map(
            jnp.asarray, (batch.tokens, batch.positions, batch.segments, batch.parents))
        hidden = model.hidden_states(tokens, positions, segments, parents, attention=self.attention, remat=self.remat)
        weight, vocab_first = model.stored_head()
        return row_logprobs(hidden, jnp.asarray(batch.target_index), jnp.asarray(batch.target_tokens), weight,
                            temperature, CHUNK * self.row_shards, vocab_first=vocab_first,
                            matmul_dtype=model.matmul_dtype)
