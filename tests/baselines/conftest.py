"""Small events with a planted pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from r2rec_jax.baselines.events import Contexts, Events


def make_events(histories: Sequence[Sequence[int]], n_items: int, disliked: Sequence[Sequence[int]] | None = None,
                ) -> Events:
    """Events of one history a user, oldest first; items of ``disliked`` are no likes of that user."""
    offsets = np.concatenate([[0], np.cumsum([len(history) for history in histories])]).astype(np.int64)
    items = np.array([item for history in histories for item in history], np.int32)
    not_liked = disliked or [()] * len(histories)
    liked = np.array([item not in not_liked[u] for u, history in enumerate(histories) for item in history], bool)
    return Events(len(histories), n_items, offsets, items, liked)


def make_contexts(users: Sequence[int], histories: Sequence[Sequence[int]]) -> Contexts:
    """Contexts of liked items, oldest first."""
    events = make_events(histories, 1 << 30)
    return Contexts(np.array(users, np.int32), events.offsets, events.items, events.liked)


@dataclass(frozen=True)
class Planted:
    """Items come in pairs (2p, 2p + 1): whoever likes the first likes the second next.

    Attributes:
        events: training edges; the last one of every user is the first item of a pair.
        contexts: one query a user, its training edges.
        targets: int64 [Q], the other item of that pair, which the user has no training edge with.
    """

    events: Events
    contexts: Contexts
    targets: np.ndarray


@pytest.fixture(scope="session")
def planted() -> Planted:
    pairs, users, taken = 12, 72, 4
    rng = np.random.default_rng(3)
    histories, targets = [], []
    for _ in range(users):
        chosen = rng.permutation(pairs)[:taken]
        history = [item for pair in chosen for item in (2 * pair, 2 * pair + 1)]
        histories.append(history[:-1])
        targets.append(history[-1])
    events = make_events(histories, 2 * pairs)
    return Planted(events, make_contexts(range(users), histories), np.array(targets))
