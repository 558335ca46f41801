"""EASE: a linear item-item model with a zero diagonal, in closed form.

Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, Eq. 8, over binary events X [U, I]:

    P = (X'X + lambda 1)^-1      B_ij = -P_ij / P_jj off the diagonal, 0 on it      score(q) = x_q B

X stays sparse; its Gram matrix and B are dense [I, I].
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from r2rec_jax.baselines.classical.sparse import context_matrix, event_matrix, query_chunks
from r2rec_jax.baselines.events import Contexts, Events
from r2rec_jax.baselines.model import ClosedForm, Params
from r2rec_jax.config.baselines import EASEConfig


class EASE(ClosedForm):
    """EASE over binary events.

    Args:
        config: lambda, which events.
        events: training edges.

    Raises:
        ValueError: more items than ``ease.max_items``.
    """

    name = "ease"

    def __init__(self, config: EASEConfig, events: Events) -> None:
        if events.n_items > config.max_items:
            raise ValueError(f"ease needs a dense item-by-item matrix, so items must be <= ease.max_items; got "
                             f"{events.n_items} items and {config.max_items}; raise it if there are "
                             f"{24 * events.n_items ** 2 / 1e9:.0f} GB of memory, or leave ease out")
        self.config, self.events = config, events

    def init(self, *, key: jax.Array) -> Params:
        """``{"weights": float32 [I, I]}``, B of the module's formula; the key is not used."""
        events = self.events if self.config.events == "all" else self.events.liked_only()
        matrix = event_matrix(events)
        gram = (matrix.T @ matrix).toarray().astype(np.float64)
        gram[np.diag_indices_from(gram)] += self.config.l2
        inverse = cho_solve(cho_factor(gram, overwrite_a=True), np.eye(events.n_items), overwrite_b=True)
        weights = inverse / -np.diag(inverse)
        weights[np.diag_indices_from(weights)] = 0.0
        return {"weights": weights.astype(np.float32)}

    def score(self, params: Any, contexts: Contexts) -> NDArray[np.float32]:
        """x_q B for every query, float32 [Q, I]."""
        weights = np.asarray(params["weights"])
        shown = context_matrix(contexts if self.config.events == "all" else contexts.liked_only(), len(weights))
        scores = np.empty((len(contexts), len(weights)), np.float32)
        for part in query_chunks(*scores.shape):
            scores[part] = shown[part] @ weights
        return scores
