"""NGCF: Wang et al., "Neural graph collaborative filtering", SIGIR 2019.

    E^(l) = LeakyReLU((L + 1) E^(l-1) W1 + L E^(l-1) * E^(l-1) W2)    Eq. 7, L = D^-1/2 A D^-1/2, * by elements
    E = [E^(0), ..., E^(L)]                                           Eq. 9

Message dropout (on the rows that a layer gives) and node dropout (whole nodes send nothing) are section 3.4.2's.
Departures, which are those of the authors' program: biases beside W1 and W2, slope 0.2, and every layer's rows are
divided by their length in the concatenation. Node dropout drops nodes, as in the paper; the program drops edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from r2rec_jax.baselines.classical.graph_model import GraphRecommender, Network
from r2rec_jax.baselines.classical.sequences import drop
from r2rec_jax.config.baselines import NGCFConfig

GLOROT = nnx.initializers.glorot_uniform(batch_axis=0)
"""Draws stacked matrices [L, D, D]."""


class NGCFNetwork(Network):
    """Two weight matrices a layer, one for sums and one for products with the receiver."""

    def __init__(self, n_users: int, n_items: int, config: NGCFConfig, rngs: nnx.Rngs) -> None:
        """Draw embeddings and weights."""
        super().__init__(n_users, n_items, config, rngs)
        shape = (config.layers, config.dim, config.dim)
        self.sums = nnx.Param(GLOROT(rngs.params(), shape))
        self.products = nnx.Param(GLOROT(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(shape[:2]))
        self.node_dropout = config.node_dropout
        self.message_dropout = config.message_dropout
        self.normalize = config.normalize

    def weights(self) -> list[Float[Array, "L ..."]]:
        """W1, W2 and the bias. Eq. 7 has one LeakyReLU around both terms, so that one bias is enough; the authors'
        program has one of each a term."""
        return [self.sums[...], self.products[...], self.bias[...]]

    def update(self, layer: int, own: Float[Array, "N D"], received: Float[Array, "N D"], key: jax.Array | None,
               ) -> Float[Array, "N D"]:
        """Eq. 7 for a set of nodes."""
        rows = (received + own) @ self.sums[layer] + (received * own) @ self.products[layer] + self.bias[layer]
        return drop(jax.nn.leaky_relu(rows, 0.2), self.message_dropout, key)

    def combine(self, layers: Sequence[Float[Array, "N D"]]) -> Float[Array, "N E"]:
        """The concatenation over layers, E = (L + 1) D."""
        later = [unit(rows) for rows in layers[1:]] if self.normalize else layers[1:]
        return jnp.concatenate([layers[0], *later], axis=-1)


def unit(rows: Float[Array, "*N D"]) -> Float[Array, "*N D"]:
    """Rows divided by their length; a zero row stays zero, with a finite gradient."""
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.sum(rows**2, axis=-1, keepdims=True), 1e-12))


class NGCF(GraphRecommender):
    """NGCF over training edges."""

    name = "ngcf"
    layout = NGCFNetwork
