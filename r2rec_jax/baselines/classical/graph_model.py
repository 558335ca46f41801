"""What the three graph models share: embeddings of all nodes, layers of message passing, pairwise training, scoring.

A model is an NNX module that says how a node's row changes when it receives its neighbours' (:meth:`Network.update`)
and how the rows of all layers become one (:meth:`Network.combine`). The score of an item is the dot product of the
final rows of user and item. The whole graph takes part in every step: batches are large, so that an epoch needs few
propagations. Layers are unrolled: as a ``lax.scan`` they compile faster, and run half as fast on a CPU.

A user without training edges is embedded from the history that its query shows: it starts from the mean row of the
trained users and receives, layer by layer, what its history's items would send it. Users with training edges are not
changed by what a query shows beyond them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from numpy.typing import NDArray

from r2rec_jax.baselines.classical.pairs import Missing, Pairs, pair_batches, pair_loss, pair_norms
from r2rec_jax.baselines.classical.propagation import Graph, Norm, build_graph, propagate, scales
from r2rec_jax.baselines.classical.sequences import drop
from r2rec_jax.baselines.classical.sparse import context_matrix, query_chunks
from r2rec_jax.baselines.events import Contexts, Events
from r2rec_jax.baselines.model import NetworkModel
from r2rec_jax.config.baselines import GraphModelConfig


class Network(nnx.Module):
    """Id embeddings of users and items, and what the layers do with them.

    Attributes:
        norm: how received rows are normalised.
        users, items: [U, D] and [I, D].
        depth: L, the number of layers.
        node_dropout: share of the nodes that send nothing to a layer, in training.
    """

    norm: ClassVar[Norm] = "symmetric"

    def __init__(self, n_users: int, n_items: int, config: Any, rngs: nnx.Rngs) -> None:
        """Draw the embeddings from N(0, ``init_std``^2)."""
        draw = nnx.initializers.normal(config.init_std)
        self.users = nnx.Param(draw(rngs.params(), (n_users, config.dim), jnp.float32))
        self.items = nnx.Param(draw(rngs.params(), (n_items, config.dim), jnp.float32))
        self.depth = config.layers
        self.node_dropout = 0.0

    def weights(self) -> list[Float[Array, "L ..."]]:
        """What the L2 term covers beside the embeddings."""
        return []

    def update(self, layer: int, own: Float[Array, "N D"], received: Float[Array, "N D"], key: jax.Array | None,
               ) -> Float[Array, "N D"]:
        """Nodes' rows after ``layer`` (0-based); ``key`` is given in training only."""
        raise NotImplementedError

    def combine(self, layers: Sequence[Float[Array, "N D"]]) -> Float[Array, "N E"]:
        """The final row of each node from its rows at layers 0 to L."""
        raise NotImplementedError

    def layers(self, graph: Graph, key: jax.Array | None = None) -> list[Float[Array, "N D"]]:
        """Rows of all nodes, users first, at layers 0 to L."""
        rows = [jnp.concatenate([self.users[...], self.items[...]])]
        for layer in range(self.depth):
            drops = (None, None) if key is None else jax.random.split(jax.random.fold_in(key, layer))
            sent = rows[-1] * drop(jnp.ones((len(rows[-1]), 1)), self.node_dropout, drops[0])
            rows.append(self.update(layer, rows[-1], propagate(graph, sent, self.norm), drops[1]))
        return rows


class GraphRecommender(NetworkModel):
    """A recommender around a :class:`Network`; ``history`` is the edges of the graph and the positive pairs.

    Attributes:
        layout: the class of the network.
    """

    name: ClassVar[str]
    layout: ClassVar[type[Network]]

    def __init__(self, config: GraphModelConfig, events: Events) -> None:
        """Keep ``events``; the graph is built when it is first needed."""
        super().__init__(config, events)
        self._embed = jax.jit(self._layers_and_rows)

    def network(self, rngs: nnx.Rngs) -> Network:
        """A fresh network."""
        return self.layout(self.events.n_users, self.events.n_items, self.config, rngs)

    @cached_property
    def constants(self) -> Graph:
        """The graph, on the device."""
        return jax.tree.map(jnp.asarray, build_graph(self.history))

    @cached_property
    def _missing(self) -> Missing:
        return Missing(self.events)

    def _layers_and_rows(self, params: nnx.State, graph: Graph) -> tuple[list[Array], Array]:
        network = self.merge(params)
        layers = network.layers(graph)
        return layers, network.combine(layers)

    def batches(self, *, seed: int, epoch: int) -> Iterator[Pairs]:
        """Every edge once, with negatives (:func:`~r2rec_jax.baselines.classical.pairs.pair_batches`)."""
        return pair_batches(self.history, self._missing, batch_size=self.config.batch_size,
                            negatives=self.config.negatives, loss=self.config.loss, seed=seed, epoch=epoch)

    def loss(self, params: nnx.State, batch: Pairs, *, constants: Graph, key: jax.Array) -> Float[Array, ""]:
        """Pairwise loss over final rows, plus l2 times half the squared norms of the embeddings that the batch touches
        and of the weights."""
        network = self.merge(params)
        rows = network.combine(network.layers(constants, key))
        norms = pair_norms(network.users[...], network.items[...], batch)
        norms += 0.5 * sum(jnp.sum(weight**2) for weight in network.weights())
        n_users = self.events.n_users
        return pair_loss(rows[:n_users], rows[n_users:], batch, self.config.loss) + self.config.l2 * norms

    def optimizer(self) -> optax.GradientTransformation:
        """Adam."""
        return optax.adam(self.config.lr)

    def score(self, params: nnx.State, contexts: Contexts) -> NDArray[np.float32]:
        """Dot products of final rows, [Q, I]."""
        layers, rows = self._embed(params, self.constants)
        users, items = np.split(np.asarray(rows), [self.events.n_users])
        degree = np.append(np.diff(self.history.offsets), 0)
        inside = (contexts.user_idx >= 0) & (contexts.user_idx < self.events.n_users)
        place = np.where(inside, contexts.user_idx, self.events.n_users)
        known = degree[place] > 0
        scores = np.empty((len(contexts), self.events.n_items), np.float32)
        for part in query_chunks(len(contexts), self.events.n_items):
            if known[part].all():
                own = users[place[part]]
            else:
                own = self._embed_unknown(params, layers, contexts.part(part.start, part.stop))
                own[known[part]] = users[place[part][known[part]]]
            np.matmul(own, items.T, out=scores[part])
        return scores

    def _embed_unknown(self, params: nnx.State, layers: Sequence[Float[Array, "N D"]], contexts: Contexts,
                       ) -> NDArray:
        """Final rows [Q, E] of new users who have nothing but the history of their query."""
        network, n_users, degree = self.merge(params), self.events.n_users, self.constants.degree
        history = context_matrix(self.visible(contexts), self.events.n_items)
        _, kept = scales(np.diff(history.indptr).astype(np.float32), network.norm)
        sent, _ = scales(degree[n_users:], network.norm)
        trained = (degree[:n_users] > 0)[:, None]
        mean = jnp.sum(layers[0][:n_users] * trained, axis=0) / jnp.maximum(jnp.sum(trained), 1)
        rows = [jnp.tile(mean, (len(contexts), 1))]
        for layer in range(network.depth):
            received = jnp.asarray(history @ np.asarray(layers[layer][n_users:] * sent)) * kept
            rows.append(network.update(layer, rows[-1], received, None))
        return np.array(network.combine(rows))
