"""One update of a recommender: loss, gradient, optimiser, as a pure function of state, batch and key.

An update whose loss or gradient is not finite leaves everything as it was and is counted; after three in a row every
further update is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from r2rec_jax.baselines.model import Batch, Params, Recommender

MAX_SKIPPED_IN_A_ROW = 3


@flax.struct.dataclass
class LoopState:
    """What an update changes; donated to it whole.

    Attributes:
        params, opt_state: the model's and the optimiser's.
        step: updates done, skipped ones included.
        skipped, skipped_in_a_row: updates that were not finite; the second stays once it has reached the limit.
        loss_sum: sum of the finite losses of this epoch.
        losses: how many they are.
    """

    params: Params
    opt_state: Any
    step: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array
    loss_sum: jax.Array
    losses: jax.Array


Update = Callable[[LoopState, Batch, Any, jax.Array], LoopState]
"""``update(state, batch, constants, key)``; the key is the run's, and folded with the step inside."""


def first_state(model: Recommender, optimizer: optax.GradientTransformation, key: jax.Array) -> LoopState:
    """The state before the first update; it owns copies of the model's arrays."""
    params = jax.tree.map(jnp.asarray, model.init(key=key))
    zero = jnp.zeros((), jnp.int32)
    state = LoopState(params=params, opt_state=optimizer.init(params), step=zero, skipped=zero,
                      skipped_in_a_row=zero, loss_sum=jnp.zeros(()), losses=zero)
    return jax.tree.map(lambda x: jnp.array(x, copy=True), state)


def make_update(model: Recommender, optimizer: optax.GradientTransformation) -> Update:
    """The update of a model, to be jitted with its state donated."""

    def update(state: LoopState, batch: Batch, constants: Any, key: jax.Array) -> LoopState:
        key = jax.random.fold_in(key, state.step)
        loss, grads = jax.value_and_grad(model.loss)(state.params, batch, constants=constants, key=key)
        good = jnp.isfinite(loss) & jnp.isfinite(optax.global_norm(grads))
        stopped = state.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW
        good &= ~stopped
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(good, new, old), (params, opt_state),
                                         (state.params, state.opt_state))
        bad = 1 - good.astype(jnp.int32)
        in_a_row = jnp.where(stopped, state.skipped_in_a_row, (state.skipped_in_a_row + 1) * bad)
        return LoopState(params, opt_state, state.step + 1, state.skipped + bad, in_a_row,
                         state.loss_sum + jnp.where(good, loss, 0.0), state.losses + 1 - bad)

    return update
