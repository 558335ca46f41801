"""Caser: convolutions over the latest events (Tang and Wang, "Personalized Top-N Sequential Recommendation via
Convolutional Sequence Embedding", WSDM 2018).

Kept from the paper: the latest L events as an image [L, D], horizontal filters of every height with a maximum over time
(Eq. 4-6), vertical filters as weighted sums over the events (Eq. 7-8), a fully connected layer, and scores from its
output beside the user's embedding, by output embeddings and biases of their own (Eq. 9-10), dropout before the fully
connected layer. Departures: one target a window instead of the next three, and cross-entropy over the whole catalogue
instead of sampled binary cross-entropy. Places before a user's first event hold a learned filler. A user without
training events has the zero vector for an embedding, so only the latest events speak.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from numpy.typing import NDArray

from r2rec_jax.baselines.classical.sequences import drop
from r2rec_jax.baselines.classical.softmax import catalogue_loss
from r2rec_jax.baselines.events import Contexts
from r2rec_jax.baselines.model import NetworkModel
from r2rec_jax.config.baselines import CaserConfig

SCORE_BATCH = 256
"""Contexts a scoring pass."""


class Instances(NamedTuple):
    """What one loss is taken over.

    Attributes:
        items: int32 [B, L], the latest events, the newest last; I where there is none.
        liked: bool [B, L], true where there is none.
        users: int32 [B], U for a user without an embedding.
        targets: int32 [B].
        count: int32 [], how many leading rows are real.
    """

    items: Any
    liked: Any
    users: Any
    targets: Any
    count: Any


class CaserNetwork(nnx.Module):
    """Item and user embeddings, both kinds of filters, the fully connected layer and the output embeddings."""

    def __init__(self, n_users: int, n_items: int, config: CaserConfig, rngs: nnx.Rngs) -> None:
        length, width = config.max_events, config.width
        normal = nnx.initializers.normal(1.0 / width)
        self.n_users, self.dropout = n_users, config.dropout
        self.items = nnx.Param(normal(rngs.params(), (n_items + 1, width)))
        self.users = nnx.Param(normal(rngs.params(), (n_users, width)))
        self.disliked = nnx.Param(jnp.zeros(width)) if config.events == "all" else None
        self.horizontal = nnx.List([nnx.Linear(height * width, config.horizontal, rngs=rngs)
                                    for height in range(1, length + 1)])
        self.vertical = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (length, config.vertical)))
        self.full = nnx.Linear(config.horizontal * length + config.vertical * width, width, rngs=rngs)
        self.table = nnx.Param(normal(rngs.params(), (n_items, 2 * width)))
        self.bias = nnx.Param(jnp.zeros(n_items))

    def hidden(self, batch: Instances, key: Array | None) -> Float[Array, "B 2*D"]:
        """[z, P_u] of Eq. 10; with a ``key``, under dropout."""
        x = self.items[...][batch.items]
        if self.disliked is not None:
            x = x + jnp.where(batch.liked[..., None], 0.0, self.disliked[...])
        features = drop(jnp.concatenate([self.across(x), self.down(x)], axis=-1), self.dropout, key)
        z = jax.nn.relu(self.full(features))
        known = batch.users < self.n_users
        user = jnp.where(known[:, None], self.users[...][jnp.where(known, batch.users, 0)], 0.0)
        return jnp.concatenate([z, user], axis=-1)

    def across(self, x: Float[Array, "B L D"]) -> Float[Array, "B F"]:
        """Horizontal filters: of every height h, the largest ReLU(<F, x[i:i+h]> + b) over i."""
        found = []
        for height, layer in enumerate(self.horizontal, start=1):
            places = x.shape[1] - height + 1
            slices = jnp.concatenate([x[:, k:k + places] for k in range(height)], axis=-1)
            found.append(jax.nn.relu(layer(slices)).max(axis=1))
        return jnp.concatenate(found, axis=-1)

    def down(self, x: Float[Array, "B L D"]) -> Float[Array, "B N*D"]:
        """Vertical filters: weighted sums of the L events, one a filter."""
        return jnp.einsum("BLD,LN->BND", x, self.vertical[...]).reshape(x.shape[0], -1)


class Caser(NetworkModel):
    """The recommender around :class:`CaserNetwork`."""

    name: ClassVar[str] = "caser"

    def network(self, rngs: nnx.Rngs) -> CaserNetwork:
        """A fresh network."""
        return CaserNetwork(self.events.n_users, self.events.n_items, self.config, rngs)

    def optimizer(self) -> optax.GradientTransformation:
        """Adam with weight decay."""
        return optax.adamw(self.config.lr, weight_decay=self.config.weight_decay)

    def batches(self, *, seed: int, epoch: int) -> Iterator[Instances]:
        """Every liked training event once, in random order, with the events before it; the last batch is padded."""
        history, size, length = self.history, self.config.batch_size, self.config.max_events
        order = np.random.default_rng((seed, epoch)).permutation(np.flatnonzero(history.liked))
        for start in range(0, len(order), size):
            events = np.resize(order[start:start + size], size)
            users = history.user_idx[events]
            before = events[:, None] - np.arange(length, 0, -1)
            inside = before >= history.offsets[users][:, None]
            before = np.where(inside, before, 0)
            yield Instances(np.where(inside, history.items[before], history.n_items).astype(np.int32),
                            ~inside | history.liked[before], users, history.items[events],
                            np.int32(min(size, len(order) - start)))

    def loss(self, params: Any, batch: Instances, *, constants: Any, key: Array) -> Float[Array, ""]:
        """Mean cross-entropy over the catalogue."""
        net = self.merge(params)
        return catalogue_loss(net.hidden(batch, key), batch.targets, batch.count, net.table[...], net.bias[...])

    def score(self, params: Any, contexts: Contexts) -> NDArray[np.float32]:
        """Scores of the catalogue after each context, float32 [Q, I]."""
        contexts = self.visible(contexts)
        met = np.append(np.diff(self.history.offsets) > 0, False)
        scores = np.zeros((len(contexts), self.events.n_items), np.float32)
        for start in range(0, len(contexts), SCORE_BATCH):
            part = contexts.part(start, start + SCORE_BATCH)
            items, likes, mask = part.latest(self.config.max_events)
            users = np.clip(part.user_idx, 0, self.events.n_users)
            users = np.where(met[users] & (part.user_idx >= 0), users, self.events.n_users)
            batch = _pad(np.where(mask, items, self.events.n_items), likes, users, SCORE_BATCH)
            scores[start:start + len(part)] = np.asarray(self._scores(params, batch))[:len(part)]
        return scores

    @partial(jax.jit, static_argnums=0)
    def _scores(self, params: Any, batch: Instances) -> Float[Array, "B I"]:
        net = self.merge(params)
        return net.hidden(batch, None) @ net.table[...].T + net.bias[...]


def _pad(items: NDArray[Any], liked: NDArray[np.bool_], users: NDArray[Any], size: int) -> Instances:
    more = size - len(users)
    return Instances(np.pad(items, ((0, more), (0, 0))).astype(np.int32), np.pad(liked, ((0, more), (0, 0))),
                     np.pad(users, (0, more)).astype(np.int32), np.zeros(size, np.int32), np.int32(len(users)))
