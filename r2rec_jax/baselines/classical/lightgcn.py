"""LightGCN: He et al., "LightGCN: simplifying and powering graph convolution network for recommendation", SIGIR 2020.

    E^(k+1) = D^-1/2 A D^-1/2 E^(k)                                   Eq. 3 and 8
    E = mean of E^(0), ..., E^(K)                                     Eq. 4, with the paper's alpha_k = 1/(K+1)

The id embeddings E^(0) are all that is learned, by BPR with L2 on the embeddings of each batch (Eq. 15).
Departures: larger batches than the paper's 2,048; see the settings.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from r2rec_jax.baselines.classical.graph_model import GraphRecommender, Network


class LightGCNNetwork(Network):
    """Linear propagation of the id embeddings."""

    def update(self, layer: int, own: Float[Array, "N D"], received: Float[Array, "N D"], key: jax.Array | None,
               ) -> Float[Array, "N D"]:
        """What is received replaces the row; there is no self-connection."""
        return received

    def combine(self, layers: Sequence[Float[Array, "N D"]]) -> Float[Array, "N D"]:
        """The mean over layers."""
        return sum(layers[1:], layers[0]) / len(layers)


class LightGCN(GraphRecommender):
    """LightGCN over training edges."""

    name = "lightgcn"
    layout = LightGCNNetwork
