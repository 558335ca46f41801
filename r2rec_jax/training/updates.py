"""One update from many device passes: gradients summed in float32, then one guarded optimiser step.

Each pass adds its gradient to a donated accumulator. The loss of a pass must already be its share of the update's loss
(weights normalised over the whole update), so the sum over passes is the gradient of one big batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from r2rec_jax.parallel.compiling import Report, silent
from r2rec_jax.training.programs import Program
from r2rec_jax.training.state import TrainState, apply_or_skip

LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
"""``loss(params, frozen, *inputs) -> (its share of the loss, sums to log)``: pure."""


def make_add_gradient(loss: LossFn) -> Callable[..., dict[str, Any]]:
    """``add_gradient(params, total, frozen, *inputs)``: ``total`` plus a pass's gradient, loss and sums."""
    def add_gradient(params: Any, total: dict[str, Any], frozen: Any, *inputs: Any) -> dict[str, Any]:
        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, frozen, *inputs)
        return jax.tree.map(jnp.add, total, {"grads": grads, "loss": value, **aux})

    return add_gradient


class Updates:
    """The compiled programs of a stage's update.

    Args:
        loss: see :data:`LossFn`.
        sums: names of the sums it returns.
        optimizer: made by ``state.make_optimizer``.
        report: told of every compilation.
        what: names the programs in reports.
        mesh: where everything is placed; None for a single device.
    """

    def __init__(self, loss: LossFn, sums: Sequence[str], optimizer: optax.GradientTransformation,
                 report: Report = silent, what: str = "update", mesh: Mesh | None = None) -> None:
        def zeros(params: Any) -> dict[str, Any]:
            grads = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
            return {"grads": grads, **{name: jnp.zeros((), jnp.float32) for name in ("loss", *sums)}}

        def update(state: TrainState, total: dict[str, Any]) -> tuple[TrainState, dict[str, jax.Array]]:
            state, values = apply_or_skip(state, total["grads"], total["loss"], optimizer)
            return state, values | {name: total[name] for name in ("loss", *sums)}

        self.zeros = Program(f"{what}: accumulator", zeros, mesh=mesh)
        self.gradient = Program(f"{what}: gradient", make_add_gradient(loss), donate=(1,), report=report, mesh=mesh)
        self.update = Program(f"{what}: optimiser", update, donate=(0,), report=report, mesh=mesh)

    def run(self, state: TrainState, frozen: Any, passes: Iterable[Sequence[Any]]
            ) -> tuple[TrainState, dict[str, float]]:
        """One update.

        Args:
            state: before it; donated, do not use it again.
            frozen: handed to the loss beside the trained tree; never donated.
            passes: the loss's further inputs, one sequence a device pass.

        Returns:
            The state after it, and as Python floats: ``loss``, the sums, ``grad_norm``, ``skipped``,
            ``skipped_in_a_row``.
        """
        total = self.zeros(state.params)
        for inputs in passes:
            total = self.gradient(state.params, total, frozen, *inputs)
        state, values = self.update(state, total)
        return state, {name: float(value) for name, value in jax.device_get(values).items()}

    @property
    def compilations(self) -> int:
        """Programs compiled so far, over all shapes."""
        return self.zeros.compilations + self.gradient.compilations + self.update.compilations
