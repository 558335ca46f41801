"""One update from many device passes: gradients summed in float32, then one guarded optimiser step.

Each pass adds its gradient to a donated accumulator. The loss of a pass must already be its share of the update's loss
(weights normalised over the whole update), so the sum over passes is the gradient of one big batch.
"""

from __future__ import annotations

import math
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
        own = {"pass_squares": optax.tree.norm(grads, squared=True)} if "pass_squares" in total else {}
        return jax.tree.map(jnp.add, total, {"grads": grads, "loss": value, **aux, **own})

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
        pass_squares: sum up the squared norms of the passes' own gradients too, for :func:`signal_and_noise`.
    """

    def __init__(self, loss: LossFn, sums: Sequence[str], optimizer: optax.GradientTransformation,
                 report: Report = silent, what: str = "update", mesh: Mesh | None = None,
                 pass_squares: bool = False) -> None:
        sums = (*sums, "pass_squares") if pass_squares else sums

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


def signal_and_noise(grad_norm: float, pass_squares: float, counts: Sequence[int]) -> tuple[float, float] | None:
    """What of an update's squared gradient norm its examples have in common, and what is their scatter.

    Examples drawn alike add a vector of mean nu and total variance s each. A pass of m of them has the expected squared
    norm m^2 nu^2 + m s, the update of all K has K^2 nu^2 + K s: two equations, of which both estimates are unbiased.

    Args:
        grad_norm: of the whole update, before clipping.
        pass_squares: the sum of the passes' squared norms.
        counts: examples in each pass, the K together; passes whose numbers depend on what they hold would bias it.

    Returns:
        (K^2 nu^2, K s): the squared norm of the expected gradient, negative by chance where there is little of it, and
        the variance of the gradient. K times the second over the first is s / nu^2, the batch size at which they are
        equal: the simple noise scale of McCandlish et al., 2018 (An Empirical Model of Large-Batch Training, eq. 2.9,
        appendix A.1). None where a single pass has all examples, or a norm is not finite. Orthogonal passes
        ``(5, 25, [1, 1])`` give (0, 25), equal ones ``(2, 2, [1, 1])`` give (4, 0).
    """
    total = sum(counts)
    alone = sum(count * count for count in counts) / (total * total) if total else 1.0
    square = grad_norm * grad_norm
    if alone >= 1 or not math.isfinite(square - pass_squares):
        return None
    signal = (square - pass_squares) / (1 - alone)
    return signal, square - signal
