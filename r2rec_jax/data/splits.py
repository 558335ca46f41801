"""Who is evaluated on what, who is trained on what, and which events the graph may hold.

The protocol (section 4.1 of the paper, with its gaps filled): a user is eligible with at least ``min_positives``
ratings above ``positive_above``. The last positive is the test target, the one before it the validation target.
Earlier positives with at least ``min_history`` positives before them can be training targets.

Departures: none from the paper's text. Where other users cannot give enough training queries, earlier positives of
evaluation users fill up, counted in :attr:`Queries.counts`; their test and validation targets stay unseen.

Every choice orders ids by a seeded hash, so 300 evaluation users are the first 300 of 1,000 drawn with the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.config import DataConfig
from r2rec_jax.data.candidates import draw_candidates
from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.queries import SPLITS, Query, Split
from r2rec_jax.data.randomness import fold, root_key

__all__ = ["Queries", "Query", "Split", "draw_queries", "find_positives", "make_query", "training_edges"]


@dataclass(frozen=True)
class Positives:
    """Every liked event, by user.

    Attributes:
        rows: int64 [N], event rows with a rating above ``positive_above``, in order.
        offsets: int64 [U+1], user u's are ``rows[offsets[u]:offsets[u+1]]``.
        eligible: bool [U].
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    eligible: NDArray[np.bool_]

    def from_the_end(self, user_idx: NDArray | int, back: int) -> NDArray[np.int64]:
        """Event rows of the last (``back`` 1), last but one (2), ... positive of users."""
        return self.rows[self.offsets[np.asarray(user_idx) + 1] - back]


@dataclass(frozen=True)
class Queries:
    """The queries of every split, in drawing order, and how they came about."""

    by_split: Mapping[Split, list[Query]]
    counts: Mapping[str, int]

    def all(self) -> list[Query]:
        """All queries: test, validation, sft, rl."""
        return [query for split in SPLITS for query in self.by_split[split]]


def find_positives(dataset: Dataset, config: DataConfig) -> Positives:
    """The positives of every user, and who is eligible."""
    events = dataset.interactions
    rows = np.flatnonzero(events.rating > config.positive_above)
    counts = np.bincount(events.user_idx[rows], minlength=len(dataset.users))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return Positives(rows, offsets, counts >= config.min_positives)


def training_edges(dataset: Dataset, config: DataConfig) -> NDArray[np.bool_]:
    """Which events may be edges of the graph and training data of any system, bool [E].

    Of an eligible user the events before the validation target, so neither target nor anything after it; of other
    users all events.

    Example:
        A user with events like, dislike, LIKE, dislike, LIKE (the last two likes being validation and test targets)
        gives ``[True, True, False, False, False]``.
    """
    events = dataset.interactions
    positives = find_positives(dataset, config)
    limit = np.full(len(dataset.users), np.iinfo(np.int32).max, dtype=np.int32)
    users = np.flatnonzero(positives.eligible)
    limit[users] = events.place[positives.from_the_end(users, 2)]
    return events.place < limit[events.user_idx]


def make_query(dataset: Dataset, config: DataConfig, split: Split, row: int, weights: NDArray) -> Query:
    """The query whose target is event ``row``; its candidates depend on nothing but seed, user and target."""
    events = dataset.interactions
    user_idx, target = int(events.user_idx[row]), int(events.item_idx[row])
    candidates = draw_candidates(dataset, user_idx, target, size=config.candidates, negatives=config.negatives,
                                 positive_above=config.positive_above, weights=weights, split_seed=config.split_seed)
    query_id = f"{split}-{dataset.users[user_idx].user_id}-{dataset.items[target].item_id}"
    return Query(query_id, split, user_idx, target, int(events.place[row]), candidates)


def _shuffled(values: NDArray, seed: int, purpose: str, *keys: NDArray) -> NDArray:
    """``values`` in the order of a seeded hash of ``keys`` (the raw ids that they stand for)."""
    order = root_key(seed, purpose)
    for key in keys:
        order = fold(order, key)
    return values[np.argsort(order, kind="stable")]


def _training_rows(dataset: Dataset, config: DataConfig, positives: Positives, users: NDArray) -> NDArray[np.int64]:
    """Event rows that can be training targets of ``users``: one of each user first, then a second one, and so on."""
    events = dataset.interactions
    rank = np.arange(len(positives.rows)) - positives.offsets[events.user_idx[positives.rows]]
    left = positives.offsets[events.user_idx[positives.rows] + 1] - positives.offsets[events.user_idx[positives.rows]]
    wanted = np.isin(events.user_idx[positives.rows], users)
    rows = positives.rows[wanted & (rank >= config.min_history) & (rank < left - 2)]
    user, item = events.user_idx[rows], events.item_idx[rows]
    user_key = fold(root_key(config.split_seed, "training users"), dataset.user_keys[user])
    rows = rows[np.lexsort((fold(user_key, dataset.item_keys[item]), user_key))]
    user = events.user_idx[rows]
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]]) if len(rows) else np.zeros(0, np.int64)
    turn = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    return rows[np.argsort(turn, kind="stable")]


def _split_training(dataset: Dataset, config: DataConfig, positives: Positives, evaluated: NDArray,
                    ) -> tuple[NDArray, NDArray]:
    """Event rows of the SFT and the RL targets, disjoint."""
    events = dataset.interactions
    others = np.setdiff1d(np.flatnonzero(positives.eligible), evaluated, assume_unique=True)
    rows = np.concatenate([_training_rows(dataset, config, positives, others),
                           _training_rows(dataset, config, positives, evaluated)])
    wanted = config.sft_queries + config.rl_queries
    if len(rows) < wanted:
        raise ValueError(f"data.sft_queries + data.rl_queries must be <= {len(rows)}, the likes of eligible users of "
                         f"{dataset.name} that have at least {config.min_history} likes before them and two after; "
                         f"got {config.sft_queries} + {config.rl_queries}; lower them")
    rows = rows[:wanted]
    keys = dataset.user_keys[events.user_idx[rows]], dataset.item_keys[events.item_idx[rows]]
    rows = _shuffled(rows, config.split_seed, "sft or rl", *keys)
    return rows[: config.sft_queries], rows[config.sft_queries:]


def draw_queries(dataset: Dataset, config: DataConfig) -> Queries:
    """Draw the queries of all splits.

    Args:
        dataset: all events.
        config: counts, rules and ``split_seed``, the only seed that enters.

    Raises:
        ValueError: fewer eligible users, or fewer training targets, than asked for.
    """
    events = dataset.interactions
    positives = find_positives(dataset, config)
    eligible = np.flatnonzero(positives.eligible)
    if len(eligible) < config.eval_users:
        raise ValueError(f"data.eval_users must be <= {len(eligible)}, the users of {dataset.name} with at least "
                         f"{config.min_positives} ratings above {config.positive_above:g}; got {config.eval_users}; "
                         f"set data.eval_users to {len(eligible)} or less")
    evaluated = _shuffled(eligible, config.split_seed, "evaluation users",
                          dataset.user_keys[eligible])[: config.eval_users]
    sft, rl = _split_training(dataset, config, positives, evaluated)
    rows: dict[Split, NDArray] = {
        "test": positives.from_the_end(evaluated, 1),
        "validation": positives.from_the_end(evaluated[: config.validation_users], 2),
        "sft": sft,
        "rl": rl,
    }
    weights = item_edges(dataset, training_edges(dataset, config))
    by_split: dict[Split, list[Query]] = {
        split: [make_query(dataset, config, split, int(row), weights) for row in rows[split]] for split in SPLITS
    }
    counts = {"eligible_users": len(eligible), "evaluation_users": len(evaluated)}
    for split in SPLITS:
        counts[f"{split}_queries"] = len(rows[split])
    for split in ("sft", "rl"):
        users = events.user_idx[rows[split]]
        counts[f"{split}_users"] = len(np.unique(users))
        counts[f"{split}_queries_of_evaluation_users"] = int(np.isin(users, evaluated).sum())
    return Queries(by_split, counts)


def item_edges(dataset: Dataset, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How many of the events in ``mask`` every item has, float64 [I]."""
    return np.bincount(dataset.interactions.item_idx[mask], minlength=len(dataset.items)).astype(np.float64)
