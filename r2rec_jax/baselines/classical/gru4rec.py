"""GRU4Rec: a recurrent network over a user's history (Hidasi et al., "Session-based Recommendations with Recurrent
Neural Networks", ICLR 2016).

Kept from the paper: gated recurrent units over the items in order, state reset at the start of a history, scores of all
items from the state. Departures: items enter by an embedding that also scores them (the "constrained embedding" of
Hidasi and Karatzoglou, CIKM 2018) after a linear layer from state to embedding width, and the loss is cross-entropy
over the whole catalogue instead of BPR or TOP1 on the other items of a batch. Gates as in ``torch.nn.GRU``:

    r = sigmoid(W_r x + U_r h)   z = sigmoid(W_z x + U_z h)   n = tanh(W_n x + b_n + r * (U_n h + c_n))
    h' = (1 - z) * n + z * h
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from r2rec_jax.baselines.classical.sequences import Rows, SequenceModel, drop
from r2rec_jax.config.baselines import GRU4RecConfig

Gates = Float[Array, "B T 3*H"]


def _step(h: Any, gates: Any, opens: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
    """One step: the new state, and what the backward pass needs."""
    before = jnp.where(opens[:, None], 0.0, h)
    recurrent = before @ weight + bias
    x_r, x_z, x_n = jnp.split(gates, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(recurrent, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    return n + z * (before - n), before, r, z, n, h_n


@jax.custom_vjp
def run_gru(gates: Gates, opens: Bool[Array, "B T"], weight: Float[Array, "H 3*H"], bias: Float[Array, " 3*H"],
            ) -> Float[Array, "B T H"]:
    """States of a GRU along the rows.

    The backward scan only carries the state's gradient: the gradient of the recurrent weights is one product over all
    steps afterwards, not a sum of small ones.

    Args:
        gates: W x + b of the three gates, in the order r, z, n.
        opens: where a history starts: the state before it is zero.
        weight, bias: recurrent, of the three gates.
    """
    return _forward(gates, opens, weight, bias)[0]


def _forward(gates: Any, opens: Any, weight: Any, bias: Any) -> tuple[Any, tuple[Any, ...]]:
    def step(h: Any, inputs: tuple[Any, Any]) -> tuple[Any, tuple[Any, ...]]:
        new, *rest = _step(h, *inputs, weight, bias)
        return new, (new, *rest)

    start = jnp.zeros((gates.shape[0], weight.shape[0]), gates.dtype)
    _, outs = jax.lax.scan(step, start, (gates.swapaxes(0, 1), opens.swapaxes(0, 1)))
    return outs[0].swapaxes(0, 1), (opens, weight, *outs[1:])


def _backward(saved: tuple[Any, ...], grad: Any) -> tuple[Any, ...]:
    opens, weight, before, r, z, n, h_n = saved

    def step(carry: Any, inputs: tuple[Any, ...]) -> tuple[Any, tuple[Any, Any]]:
        d_out, opened, before, r, z, n, h_n = inputs
        d_h = carry + d_out
        d_n = d_h * (1 - z) * (1 - n * n)
        d_z = d_h * (before - n) * z * (1 - z)
        d_r = d_n * h_n * r * (1 - r)
        d_recurrent = jnp.concatenate([d_r, d_z, d_n * r], axis=-1)
        d_before = d_h * z + d_recurrent @ weight.T
        return jnp.where(opened[:, None], 0.0, d_before), (d_n, d_recurrent)

    inputs = (grad.swapaxes(0, 1), opens.swapaxes(0, 1), before, r, z, n, h_n)
    _, (d_n, d_recurrent) = jax.lax.scan(step, jnp.zeros_like(before[0]), inputs, reverse=True)
    width = weight.shape[0]
    d_gates = jnp.concatenate([d_recurrent[..., :2 * width], d_n], axis=-1).swapaxes(0, 1)
    flat = d_recurrent.reshape(-1, 3 * width)
    return d_gates, None, before.reshape(-1, width).T @ flat, flat.sum(axis=0)


run_gru.defvjp(_forward, _backward)


class GRULayer(nnx.Module):
    """One recurrent layer; weights laid out as in ``torch.nn.GRU``, transposed."""

    def __init__(self, d_in: int, width: int, rngs: nnx.Rngs) -> None:
        self.inputs = nnx.Linear(d_in, 3 * width, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        orthogonal = nnx.initializers.orthogonal()
        self.recurrent = nnx.Param(jnp.concatenate([orthogonal(rngs.params(), (width, width)) for _ in range(3)], 1))
        self.bias = nnx.Param(jnp.zeros(3 * width))

    def __call__(self, x: Float[Array, "B T E"], opens: Bool[Array, "B T"]) -> Float[Array, "B T H"]:
        """States after each token; zero before the tokens that ``opens`` marks."""
        return run_gru(self.inputs(x), opens, self.recurrent[...], self.bias[...])


class GRU4RecNetwork(nnx.Module):
    """Embedding, recurrent layers, and a linear layer back to the embedding's width."""

    def __init__(self, n_items: int, config: GRU4RecConfig, rngs: nnx.Rngs) -> None:
        self.dropout = config.dropout
        self.table = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (n_items + 1, config.width)))
        self.disliked = nnx.Param(jnp.zeros(config.width)) if config.events == "all" else None
        widths = [config.width] + [config.hidden] * config.layers
        self.layers = nnx.List([GRULayer(before, after, rngs) for before, after in pairwise(widths)])
        self.out = nnx.Linear(config.hidden, config.width, rngs=rngs)

    def hidden(self, rows: Rows, key: Array | None) -> Float[Array, "B T D"]:
        """States that predict the next item; with a ``key``, under dropout."""
        x = self.table[...][rows.items]
        if self.disliked is not None:
            x = x + jnp.where(rows.liked[..., None], 0.0, self.disliked[...])
        keys = [None] * (1 + len(self.layers)) if key is None else list(jax.random.split(key, 1 + len(self.layers)))
        x = drop(x, self.dropout, keys[0])
        for layer, layer_key in zip(self.layers, keys[1:], strict=True):
            x = drop(layer(x, rows.positions == 0), self.dropout, layer_key)
        return self.out(x)


class GRU4Rec(SequenceModel):
    """The recommender around :class:`GRU4RecNetwork`."""

    name: ClassVar[str] = "gru4rec"

    def network(self, rngs: nnx.Rngs) -> GRU4RecNetwork:
        """A fresh network."""
        return GRU4RecNetwork(self.events.n_items, self.config, rngs)
