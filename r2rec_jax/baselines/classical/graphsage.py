"""GraphSAGE: Hamilton et al., "Inductive representation learning on large graphs", NIPS 2017, on users and items.

    h_v^k = sigma(W^k [h_v^(k-1), mean of h_w^(k-1) over the neighbours w of v])          Algorithm 1, mean aggregator

with id embeddings as h^0, since the graph has no node features. W^k [a, b] is written as two matrices, one a side.

Departures: all neighbours take part, not a sample of them; no sigma after the last layer, since a dot product of rows
without negative entries could not rank below zero; the paper's division by the row's length is an option
(``normalize``); and the loss is that of pairs (BPR), as for the other recommenders, not that of random walks.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from r2rec_jax.baselines.classical.graph_model import GraphRecommender, Network
from r2rec_jax.baselines.classical.ngcf import GLOROT, unit
from r2rec_jax.config.baselines import GraphSAGEConfig


class GraphSAGENetwork(Network):
    """A matrix for a node's own row and one for the mean of its neighbours, each layer."""

    norm = "mean"

    def __init__(self, n_users: int, n_items: int, config: GraphSAGEConfig, rngs: nnx.Rngs) -> None:
        """Draw embeddings and weights."""
        super().__init__(n_users, n_items, config, rngs)
        shape = (config.layers, config.dim, config.dim)
        self.own = nnx.Param(GLOROT(rngs.params(), shape))
        self.neighbours = nnx.Param(GLOROT(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(shape[:2]))
        self.normalize = config.normalize

    def weights(self) -> list[Float[Array, "L ..."]]:
        """Both matrices and the bias."""
        return [self.own[...], self.neighbours[...], self.bias[...]]

    def update(self, layer: int, own: Float[Array, "N D"], received: Float[Array, "N D"], key: jax.Array | None,
               ) -> Float[Array, "N D"]:
        """One layer of Algorithm 1 for a set of nodes."""
        rows = own @ self.own[layer] + received @ self.neighbours[layer] + self.bias[layer]
        if layer + 1 < self.depth:
            rows = jax.nn.relu(rows)
        return unit(rows) if self.normalize else rows

    def combine(self, layers: Sequence[Float[Array, "N D"]]) -> Float[Array, "N D"]:
        """The last layer."""
        return layers[-1]


class GraphSAGE(GraphRecommender):
    """GraphSAGE over training edges."""

    name = "graphsage"
    layout = GraphSAGENetwork
