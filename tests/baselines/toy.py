"""A recommender of one matrix whose loss, batches and validation a test can steer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from r2rec_jax.baselines.events import Contexts
from tests.baselines.conftest import make_events


@dataclass(frozen=True)
class ToyConfig:
    lr: float = 0.1
    epochs: int = 6
    patience: int = 3


class Toy:
    """Fits ``w`` to noisy targets, with noise of the step's key, so that a wrong stream shows."""

    name = "toy"

    def __init__(self, config: ToyConfig | None = None, before_batch: Callable[[int, int], None] | None = None,
                 weight: Callable[[int, int], float] = lambda epoch, number: 1.0) -> None:
        self.config = config or ToyConfig()
        self.events = make_events([[0, 1], [1, 2]], 3)
        self.epochs, self.patience = self.config.epochs, self.config.patience
        self.constants = {"goal": np.arange(3, dtype=np.float32)}
        self._before, self._weight = before_batch, weight
        self.traces = 0

    def init(self, *, key: jax.Array) -> Any:
        return {"w": jax.random.normal(key, (3,)), "inner": {"b": jnp.zeros(())}}

    def batches(self, *, seed: int, epoch: int) -> Iterator[Any]:
        rng = np.random.default_rng([seed, epoch])
        for number in range(5):
            if self._before is not None:
                self._before(epoch, number)
            yield {"x": rng.normal(size=(4, 3)).astype(np.float32), "weight": np.float32(self._weight(epoch, number))}

    def loss(self, params: Any, batch: Any, *, constants: Any, key: jax.Array) -> jax.Array:
        self.traces += 1
        noise = 0.01 * jax.random.normal(key, (3,))
        error = batch["x"] @ (params["w"] - constants["goal"] + noise) + params["inner"]["b"]
        return batch["weight"] * jnp.mean(error**2)

    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.config.lr)

    def score(self, params: Any, contexts: Contexts) -> np.ndarray:
        return np.broadcast_to(np.asarray(params["w"], np.float32), (len(contexts), 3)).copy()


def closeness(params: Any) -> float:
    """Higher is better."""
    return -float(np.abs(np.asarray(params["w"]) - np.arange(3)).sum())


def die_at(epoch: int, number: int) -> Callable[[int, int], None]:
    """End the process without a word before a batch."""
    def before(now: int, at: int) -> None:
        if (now, at) == (epoch, number):
            os._exit(9)

    return before
