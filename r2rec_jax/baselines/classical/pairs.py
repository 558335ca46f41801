"""Pairwise training on implicit feedback: pairs of a user and a liked item, negatives, and the losses over them.

Negatives are uniform over the items that the user has no training edge with, liked or not, drawn exactly and without
rejection: the r-th item that is missing from a user's sorted items s_0 < s_1 < ... is r + #{k : s_k - k <= r}.

    bpr              mean of -ln sigmoid(y_ui - y_uj)              Rendle et al., "BPR", UAI 2009, Eq. 4 and 5
    sampled_softmax  mean of -y_ui + ln sum over i and N items     Wu et al., "On the effectiveness of sampled softmax
                     drawn uniformly, one draw for a batch         loss for item recommendation", TOIS 2024

The draw that a batch shares under ``sampled_softmax`` may hold liked items of its users; only a pair's own positive is
left out, once. From N = I on it is the whole catalogue, and the loss the full softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32
from numpy.typing import NDArray

from r2rec_jax.baselines.events import Events
from r2rec_jax.data.randomness import generator

PairLoss = Literal["bpr", "sampled_softmax"]

_LEFT_OUT = -1e30
"""A logit without weight; finite, so that a row of nothing else has a finite gradient."""


@flax.struct.dataclass
class Pairs:
    """B pairs and their negatives.

    Attributes:
        user, positive: user_idx and item_idx, 0 in padding.
        negative: item_idx, [B, N] under ``bpr``, [N] for the whole batch under ``sampled_softmax``.
        weight: 1 for a pair, 0 for padding.
    """

    user: Int32[np.ndarray | Array, " B"]
    positive: Int32[np.ndarray | Array, " B"]
    negative: Int32[np.ndarray | Array, "*B N"]
    weight: Float[np.ndarray | Array, " B"]


class Missing:
    """Draws uniformly from the items that a user has no event with.

    Attributes:
        count: int64 [U], how many such items each user has.
    """

    def __init__(self, events: Events) -> None:
        """Index ``events``: all of a user's training edges."""
        pairs = np.unique(events.user_idx.astype(np.int64) * events.n_items + events.items)
        user, item = pairs // events.n_items, pairs % events.n_items
        held = np.bincount(user, minlength=events.n_users)
        self._starts = np.concatenate([[0], np.cumsum(held)])
        self._stride = events.n_items + 1
        self._keys = user * self._stride + item - (np.arange(len(pairs)) - self._starts[user])
        self.count = events.n_items - held

    def draw(self, users: NDArray, random: np.random.Generator, n: int) -> NDArray[np.int32]:
        """``n`` items for each of ``users``, with replacement, int32 [len(users), n].

        Every user needs ``count`` >= 1.
        """
        users = users.astype(np.int64)[:, None]
        place = (random.random((len(users), n)) * self.count[users]).astype(np.int64)
        before = np.searchsorted(self._keys, users * self._stride + place, side="right") - self._starts[users]
        return (place + before).astype(np.int32)


def pair_batches(positives: Events, missing: Missing, *, batch_size: int, negatives: int, loss: PairLoss, seed: int,
                 epoch: int) -> Iterator[Pairs]:
    """One epoch: every positive once, in a random order, in batches of equal size.

    Args:
        positives: the pairs to train on.
        missing: where negatives come from; users without any are left out under ``bpr``.
        batch_size: most pairs a batch; batches are made as even as they can be.
        negatives: N, a pair or a batch (see the module).
        loss: decides the form of the negatives.
        seed, epoch: of the draw; nothing else enters it.

    Yields:
        Batches of one static shape.
    """
    random = generator(seed, "pairs", epoch)
    user, item = positives.user_idx, positives.items
    if loss == "bpr":
        kept = missing.count[user] > 0
        user, item = user[kept], item[kept]
    if not len(user):
        return
    drawn = missing.draw(user, random, negatives) if loss == "bpr" else None
    order = random.permutation(len(user))
    batches = -(-len(user) // batch_size)
    size = -(-len(user) // batches)
    for start in range(0, len(user), size):
        rows = order[start:start + size]
        padding = (0, size - len(rows))
        if drawn is not None:
            negative = np.pad(drawn[rows], (padding, (0, 0)))
        elif negatives >= positives.n_items:
            negative = np.arange(positives.n_items, dtype=np.int32)
        else:
            negative = random.integers(0, positives.n_items, negatives, dtype=np.int32)
        yield Pairs(np.pad(user[rows], padding), np.pad(item[rows], padding), negative,
                    np.pad(np.ones(len(rows), np.float32), padding))


def pair_loss(users: Float[Array, "U D"], items: Float[Array, "I D"], batch: Pairs, loss: PairLoss) -> Float[Array, ""]:
    """The mean loss of a batch under scores y_ui = users_u . items_i; padding has no part in it."""
    user, positive, negative = users[batch.user], items[batch.positive], items[batch.negative]
    liked = jnp.sum(user * positive, axis=-1)
    if loss == "bpr":
        others = jnp.einsum("bd,bnd->bn", user, negative)
        values = jnp.mean(jax.nn.softplus(others - liked[:, None]), axis=-1)
    else:
        others = jnp.where(batch.negative[None, :] == batch.positive[:, None], _LEFT_OUT, user @ negative.T)
        values = jnp.logaddexp(liked, jax.nn.logsumexp(others, axis=-1)) - liked
    return _mean(values, batch)


def pair_norms(users: Float[Array, "U D"], items: Float[Array, "I D"], batch: Pairs) -> Float[Array, ""]:
    """Half the squared norm of the rows that a pair touches (user, positive, mean of its negatives), mean of a batch.

    This is the L2 term of LightGCN (Eq. 15) as its authors' program computes it, and NGCF's as its Eq. 11 has it, of
    the embeddings before propagation (the authors' program takes the propagated rows, and no weights).
    """
    others = jnp.sum(items[batch.negative] ** 2, axis=-1)
    if batch.negative.ndim == 2:
        others = jnp.mean(others, axis=-1)
    else:
        others = jnp.broadcast_to(jnp.mean(others), batch.user.shape)
    own = jnp.sum(users[batch.user] ** 2, axis=-1) + jnp.sum(items[batch.positive] ** 2, axis=-1)
    return 0.5 * _mean(own + others, batch)


def _mean(values: Float[Array, " B"], batch: Pairs) -> Float[Array, ""]:
    return jnp.sum(values * batch.weight) / jnp.maximum(jnp.sum(batch.weight), 1.0)
