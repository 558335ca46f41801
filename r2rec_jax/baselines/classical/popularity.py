"""Popularity: every user gets the items with the most training edges."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from r2rec_jax.baselines.events import Contexts, Events
from r2rec_jax.baselines.model import ClosedForm, Params
from r2rec_jax.config.baselines import PopularityConfig


class Popularity(ClosedForm):
    """Scores an item by its number of training edges, the same for all users.

    Args:
        config: which edges count.
        events: training edges.
    """

    name = "popularity"

    def __init__(self, config: PopularityConfig, events: Events) -> None:
        self.config, self.events = config, events

    def init(self, *, key: jax.Array) -> Params:
        """``{"edges": float32 [I]}``; the key is not used."""
        events = self.events if self.config.events == "all" else self.events.liked_only()
        return {"edges": np.bincount(events.items, minlength=events.n_items).astype(np.float32)}

    def score(self, params: Any, contexts: Contexts) -> NDArray[np.float32]:
        """The edges of every item, float32 [Q, I]."""
        edges = np.asarray(params["edges"])
        return np.broadcast_to(edges, (len(contexts), len(edges))).copy()
