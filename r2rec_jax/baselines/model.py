"""The protocol of all classical recommenders: init, batches, loss, optimizer, score.

A model is made from its configuration and the training events. Its parameters are a pytree that the training loop owns;
nothing a model learns is kept on the model itself. Closed-form models solve in ``init`` and have no batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax
from flax import nnx
from numpy.typing import NDArray

from r2rec_jax.baselines.events import Contexts, Events

Params = Any
"""A pytree of arrays: dictionaries, lists or an ``nnx.State``."""

Batch = Any
"""A pytree of NumPy arrays; padding is masked inside it."""


@runtime_checkable
class Recommender(Protocol):
    """One recommender.

    Attributes:
        name: as on the command line and in the tables.
        config: a frozen dataclass of ``config/baselines.py``.
        events: the training edges; the only data that learning may read.
        epochs: most passes of the training loop; 0 for closed form.
        patience: epochs without a better validation value before the loop stops.
    """

    name: str
    config: Any
    events: Events

    @property
    def epochs(self) -> int:
        """Most passes of the training loop; 0 for closed form."""
        ...

    @property
    def patience(self) -> int:
        """Epochs without a better validation value before the loop stops."""
        ...

    @property
    def constants(self) -> Any:
        """Large fixed arrays (graphs) that ``loss`` reads, handed to the jitted step as an argument; {} without any."""
        ...

    def init(self, *, key: jax.Array) -> Params:
        """Fresh parameters; a closed-form model's are its solution.

        Args:
            key: typed PRNG key.
        """
        ...

    def batches(self, *, seed: int, epoch: int) -> Iterator[Batch]:
        """The batches of one epoch, of few static shapes: a function of events, config, seed and epoch only."""
        ...

    def loss(self, params: Params, batch: Batch, *, constants: Any, key: jax.Array) -> jax.Array:
        """The mean loss of a batch, float32 scalar; traced under ``jit``."""
        ...

    def optimizer(self) -> optax.GradientTransformation:
        """Made once a training run."""
        ...

    def score(self, params: Params, contexts: Contexts) -> NDArray[np.float32]:
        """Scores of the whole catalogue, float32 [Q, I], higher is better, always finite.

        Items that the user has seen are not excluded: the caller does that. Users and items beyond those of training
        and empty histories are scored too. Works in chunks, so that little but the result is in memory.
        """
        ...


class ClosedForm:
    """What the closed-form models share: nothing to iterate over, nothing to differentiate."""

    epochs = 0
    patience = 0

    @property
    def constants(self) -> Any:
        """No constants."""
        return {}

    def batches(self, *, seed: int, epoch: int) -> Iterator[Batch]:
        """No batches: ``init`` has solved it."""
        return iter(())

    def loss(self, params: Params, batch: Batch, *, constants: Any, key: jax.Array) -> jax.Array:
        """Never called.

        Raises:
            TypeError: always.
        """
        raise TypeError("a closed-form model has no loss; its init returns the solution")

    def optimizer(self) -> optax.GradientTransformation:
        """One that changes nothing."""
        return optax.set_to_zero()


class NetworkModel:
    """What the learned models share: their parameters are the state of a Flax network."""

    def __init__(self, config: Any, events: Events) -> None:
        self.config = config
        self.events = events
        self.graphdef = nnx.graphdef(nnx.eval_shape(lambda: self.network(nnx.Rngs(0))))

    @property
    def epochs(self) -> int:
        """Most passes of the training loop."""
        return self.config.epochs

    @property
    def patience(self) -> int:
        """Epochs without a better validation value before the loop stops."""
        return self.config.patience

    @property
    def constants(self) -> Any:
        """No constants."""
        return {}

    def network(self, rngs: nnx.Rngs) -> Any:
        """A fresh network."""
        raise NotImplementedError

    def merge(self, params: Params) -> Any:
        """The network with these parameters."""
        return nnx.merge(self.graphdef, params)

    def init(self, *, key: jax.Array) -> nnx.State:
        """Fresh parameters."""
        return nnx.state(self.network(nnx.Rngs(key)))

    @cached_property
    def history(self) -> Events:
        """The training edges that the model reads: all, or the likes."""
        return self.events.liked_only() if self.config.events == "liked" else self.events

    def visible(self, contexts: Contexts) -> Contexts:
        """What the model reads of the queries: all events of items that it has a row for, or the likes of them."""
        known = contexts.known(self.events.n_items)
        return known.liked_only() if self.config.events == "liked" else known
