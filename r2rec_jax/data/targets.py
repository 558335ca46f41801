"""Which events are targets, and which any system may be trained on: the two ways to split events in time.

    last-positive   The paper's (section 4.1, its gaps filled). A user is eligible with at least ``min_positives``
                    likes. The last like is the test target, the one before it the validation target. Training edges
                    of an eligible user end before the validation target; other users give all their events.
    global-time     Two cut times, the same for everybody, at the shares ``validation_from`` and ``test_from`` of all
                    events. Training edges are the events before the first cut. A user's validation target is the
                    first like from the first cut on and before the second, the test target the first like from the
                    second cut on; either needs ``min_history`` likes before it. ``min_positives`` is not read: it
                    would choose users by what they do after their target.

Under both, a like with at least ``min_history`` likes before it can be a training target when it is a training edge
(and its user is eligible, under ``last-positive``).

With ``last-positive`` other users' edges may be later than a target: the leak that Ji et al. describe ("A Critical
Study on Data Leakage in Recommender System Offline Evaluation", TOIS 2023). With ``global-time`` every edge is earlier
than every validation and test target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.config import DataConfig
from r2rec_jax.data.interactions import Dataset


@dataclass(frozen=True, eq=False)
class Positives:
    """Every liked event, by user.

    Attributes:
        rows: int64 [N], event rows with a rating above ``positive_above``, in order.
        offsets: int64 [U+1], user u's are ``rows[offsets[u]:offsets[u+1]]``.
        eligible: bool [U], whether the user has ``min_positives`` of them.
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    eligible: NDArray[np.bool_]

    def from_the_end(self, user_idx: NDArray | int, back: int) -> NDArray[np.int64]:
        """Event rows of the last (``back`` 1), last but one (2), ... positive of users."""
        return self.rows[self.offsets[np.asarray(user_idx) + 1] - back]

    def after(self, counts: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(users, event rows) of the like that follows each user's first ``counts`` [U] likes, where there is one."""
        users = np.flatnonzero(counts < np.diff(self.offsets))
        return users, self.rows[self.offsets[users] + counts[users]]


@dataclass(frozen=True, eq=False)
class Targets:
    """The outcome of a split, before any user is drawn.

    Attributes:
        test, validation: int64, event rows, at most one a user, by user.
        teachable: int64, event rows that can be training targets, by user and place.
        training: bool [E], events that may be edges of the graph and training data of any system.
        cuts: the two cut times of ``global-time``, None otherwise.
    """

    test: NDArray[np.int64]
    validation: NDArray[np.int64]
    teachable: NDArray[np.int64]
    training: NDArray[np.bool_]
    cuts: tuple[int, int] | None = None


def find_positives(dataset: Dataset, config: DataConfig) -> Positives:
    """The positives of every user, and who is eligible."""
    events = dataset.interactions
    rows = np.flatnonzero(events.rating > config.positive_above)
    counts = np.bincount(events.user_idx[rows], minlength=len(dataset.users))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Positives(rows, offsets, counts >= config.min_positives)


def cut_times(dataset: Dataset, config: DataConfig) -> tuple[int, int]:
    """The two cut times of ``global-time``: events at or after a cut belong behind it, so ties never straddle one.

    Raises:
        ValueError: no event lies before the first cut, or none between the cuts.

    Example:
        Ten events at times 0..9 and the default shares .8 and .9 give the cuts 8 and 9: eight events are training
        edges, a like at 8 can be a validation target, one at 9 a test target.
    """
    times = dataset.interactions.timestamp
    places = [min(int(share * len(times)), len(times) - 1) for share in (config.validation_from, config.test_from)]
    ordered = np.partition(times, places)
    first, second = (int(ordered[place]) for place in places)
    if not int(times.min()) < first < second:
        raise ValueError(f"data.validation_from and data.test_from must cut the events of {dataset.name} at two times "
                         f"after the first event's; got {config.validation_from:g} and {config.test_from:g}, the times "
                         f"{first} and {second}; move them apart, or use data.split last-positive")
    return first, second


def find_targets(dataset: Dataset, config: DataConfig) -> Targets:
    """Targets and training edges under ``data.split``.

    Raises:
        ValueError: the events cannot be cut as ``global-time`` asks.
    """
    positives = find_positives(dataset, config)
    return (_last_positive if config.split == "last-positive" else _global_time)(dataset, config, positives)


def training_edges(dataset: Dataset, config: DataConfig) -> NDArray[np.bool_]:
    """Which events may be edges of the graph and training data of any system, bool [E].

    Example:
        Under ``last-positive`` a user with events like, dislike, LIKE, dislike, LIKE (the last two likes being
        validation and test targets) gives ``[True, True, False, False, False]``.
    """
    return find_targets(dataset, config).training


def _last_positive(dataset: Dataset, config: DataConfig, positives: Positives) -> Targets:
    events = dataset.interactions
    users = np.flatnonzero(positives.eligible)
    test, validation = (positives.from_the_end(users, back) for back in (1, 2))
    limit = np.full(len(dataset.users), np.iinfo(np.int32).max, dtype=np.int32)
    limit[users] = events.place[validation]
    training = events.place < limit[events.user_idx]
    teachable = _teachable(dataset, config, positives, training)
    return Targets(test, validation, teachable[positives.eligible[events.user_idx[teachable]]], training)


def _global_time(dataset: Dataset, config: DataConfig, positives: Positives) -> Targets:
    events = dataset.interactions
    cuts = cut_times(dataset, config)
    liked_times = events.timestamp[positives.rows]
    liked_users = events.user_idx[positives.rows]
    found = []
    for cut, end in zip(cuts, (cuts[1], None), strict=True):
        before = np.bincount(liked_users[liked_times < cut], minlength=len(dataset.users))
        users, rows = positives.after(before)
        wanted = before[users] >= config.min_history
        if end is not None:
            wanted &= events.timestamp[rows] < end
        found.append(rows[wanted])
    training = events.timestamp < cuts[0]
    return Targets(found[1], found[0], _teachable(dataset, config, positives, training), training, cuts)


def _teachable(dataset: Dataset, config: DataConfig, positives: Positives, training: NDArray[np.bool_],
               ) -> NDArray[np.int64]:
    """Likes among the training edges with ``min_history`` likes before them."""
    rank = np.arange(len(positives.rows)) - positives.offsets[dataset.interactions.user_idx[positives.rows]]
    return positives.rows[(rank >= config.min_history) & training[positives.rows]]
