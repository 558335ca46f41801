"""Who is evaluated on what, and who is trained on what: targets are drawn, and each becomes a query with candidates.

What can be a target is decided in ``data/targets.py``, by ``data.split``. Here users are drawn from those who have one.

Departures: none from the paper's text. Where other users cannot give enough training queries, training targets of
evaluation users fill up, counted in :attr:`Queries.counts`; their test and validation targets stay unseen.

Every choice orders ids by a seeded hash, so 300 evaluation users are the first 300 of 1,000 drawn with the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.config import DataConfig
from r2rec_jax.data.candidates import (
    SAMPLERS,
    CandidateLists,
    ItemWeights,
    Negatives,
    check_room,
    check_sampler,
    draw_candidates,
    longest_lists,
)
from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.queries import EVALUATED, SPLITS, Query, Split
from r2rec_jax.data.randomness import fold, root_key
from r2rec_jax.data.targets import Targets, find_positives, find_targets, training_edges

__all__ = ["Queries", "Query", "Split", "draw_queries", "find_positives", "item_weights", "make_query",
           "training_edges"]


@dataclass(frozen=True)
class Queries:
    """The queries of every split, in drawing order, and how they came about.

    Attributes:
        by_split: with the candidates of ``data.negatives``.
        counts: what was counted.
        candidates: sampler -> the lists of every query that has one: all queries for ``data.negatives``, test and
            validation queries for the other samplers.
        left_out: sampler that these data cannot serve -> why.
    """

    by_split: Mapping[Split, list[Query]]
    counts: Mapping[str, int]
    candidates: Mapping[Negatives, CandidateLists] = field(default_factory=dict)
    left_out: Mapping[Negatives, str] = field(default_factory=dict)

    def all(self) -> list[Query]:
        """All queries: test, validation, sft, rl."""
        return [query for split in SPLITS for query in self.by_split[split]]


def item_weights(dataset: Dataset, training: NDArray[np.bool_]) -> ItemWeights:
    """Training edges of every item, which is what the ``popularity`` sampler draws by."""
    return ItemWeights(item_edges(dataset, training), training)


def item_edges(dataset: Dataset, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How many of the events in ``mask`` every item has, float64 [I]."""
    return np.bincount(dataset.interactions.item_idx[mask], minlength=len(dataset.items)).astype(np.float64)


def make_query(dataset: Dataset, config: DataConfig, split: Split, row: int, weights: ItemWeights) -> Query:
    """The query whose target is event ``row``; its candidates depend on nothing but seed, user and target."""
    events = dataset.interactions
    user_idx, target = int(events.user_idx[row]), int(events.item_idx[row])
    candidates = _candidates(dataset, config, user_idx, target, config.negatives, weights, split not in EVALUATED)
    user, item = str(dataset.users.ids[user_idx].as_py()), dataset.items.ids[target].as_py()
    user = user.replace("%", "%25").replace("-", "%2D")  # user 1-1 and item 9 are not user 1 and item 1-9
    query_id = f"{split}-{user}-{item}"
    return Query(query_id, split, user_idx, target, int(events.place[row]), candidates)


def _candidates(dataset: Dataset, config: DataConfig, user_idx: int, target: int, negatives: Negatives,
                weights: ItemWeights, trained_on: bool = False) -> tuple[int, ...]:
    return draw_candidates(dataset, user_idx, target, size=config.candidates, negatives=negatives,
                           positive_above=config.positive_above, weights=weights, split_seed=config.split_seed,
                           trained_on=trained_on)


def _shuffled(values: NDArray, seed: int, purpose: str, *keys: NDArray) -> NDArray:
    """``values`` in the order of a seeded hash of ``keys`` (the raw ids that they stand for)."""
    order = root_key(seed, purpose)
    for key in keys:
        order = fold(order, key)
    return values[np.argsort(order, kind="stable")]


def _training_rows(dataset: Dataset, config: DataConfig, rows: NDArray, wanted: int) -> NDArray[np.int64]:
    """The first ``wanted`` of ``rows`` in drawing order: one of each user first, then a second one, and so on.

    Args:
        rows: event rows of possible training targets.
        wanted: how many are enough (fewer come when there are fewer).
    """
    events = dataset.interactions
    key = fold(root_key(config.split_seed, "training users"), dataset.user_keys)
    users = np.unique(events.user_idx[rows])
    chosen = np.zeros(len(dataset.users), dtype=bool)
    chosen[users[np.argsort(key[users], kind="stable")][:wanted]] = True  # of more users than that, none has its turn
    rows = rows[chosen[events.user_idx[rows]]]
    user_key = key[events.user_idx[rows]]
    rows = rows[np.lexsort((fold(user_key, dataset.item_keys[events.item_idx[rows]]), user_key))]
    user = events.user_idx[rows]
    starts = np.flatnonzero(np.r_[True, user[1:] != user[:-1]]) if len(rows) else np.zeros(0, np.int64)
    turn = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    return rows[np.argsort(turn, kind="stable")][:wanted]


def _split_training(dataset: Dataset, config: DataConfig, targets: Targets, evaluated: NDArray[np.bool_],
                    ) -> tuple[NDArray, NDArray]:
    """Event rows of the SFT and the RL targets; those of ``evaluated`` users (bool [U]) are used last.

    No user has both, but for one where the counts make it so: an SFT example tells what else its user liked, in likes
    and chains, and GRPO would reward what was learned by heart there.
    """
    events = dataset.interactions
    wanted = config.sft_queries + config.rl_queries
    theirs = evaluated[events.user_idx[targets.teachable]]
    rows = _training_rows(dataset, config, targets.teachable[~theirs], wanted)
    if len(rows) < wanted:
        rows = np.concatenate([rows, _training_rows(dataset, config, targets.teachable[theirs], wanted - len(rows))])
    if len(rows) < wanted:
        after = " and two after" if config.split == "last-positive" else " and lie before the first cut"
        if len(rows) < 2:
            raise _no_training(dataset, config, len(rows), after)
        raise ValueError(f"data.sft_queries + data.rl_queries must be <= {len(rows)}, the likes of eligible users of "
                         f"{dataset.name} that have at least {config.min_history} likes before them{after}; "
                         f"got {config.sft_queries} + {config.rl_queries}; lower them")
    user, item = events.user_idx[rows], events.item_idx[rows]
    key = fold(fold(root_key(config.split_seed, "sft or rl"), dataset.user_keys[user]), dataset.item_keys[item])
    _, first, who = np.unique(user, return_index=True, return_inverse=True)
    sft = np.zeros(len(rows), dtype=bool)  # users in the order of the keys of their first rows, until there are enough
    sft[np.argsort(key[first][who], kind="stable")[: config.sft_queries]] = True
    order = np.argsort(key, kind="stable")
    rows, sft = rows[order], sft[order]
    return rows[sft], rows[~sft]


def _no_training(dataset: Dataset, config: DataConfig, found: int, after: str) -> ValueError:
    """What to do where SFT and GRPO cannot have a query each, so that no smaller number would help."""
    who = (f"{config.min_history + 3} likes" if config.split == "last-positive" else
           f"{config.min_history + 1} likes before the first cut")
    lower = "lower data.min_history, or " if config.min_history > 1 else ""
    return ValueError(f"{dataset.name} must have two likes to train on, one for SFT and one for GRPO, that have at "
                      f"least {config.min_history} likes before them{after}; got {found}; {lower}bring users with at "
                      f"least {who}")


def _check_room(dataset: Dataset, config: DataConfig, rows: Mapping[Split, NDArray], training: NDArray[np.bool_],
                ) -> None:
    users = {split: dataset.interactions.user_idx[rows[split]] for split in SPLITS}
    longest = [longest_lists(dataset, users[split], config.negatives, config.positive_above,
                             None if split in EVALUATED else training) for split in SPLITS]
    check_room(dataset, np.concatenate(list(users.values())), np.concatenate(longest), config.candidates)


def _evaluation_rows(dataset: Dataset, config: DataConfig, rows: NDArray, wanted: int, field_name: str) -> NDArray:
    """The first ``wanted`` of the event rows of possible targets, by a seeded hash of their users."""
    if len(rows) < wanted:
        who = (f"with at least {config.min_positives} likes" if config.split == "last-positive" else
               f"whose first like behind the cut has {config.min_history} likes before it")
        if not len(rows):
            raise ValueError(f"{dataset.name} must have users {who}; none has; give more data, or lower "
                             "data.min_positives, data.min_history or data.positive_above (of a table, "
                             "data.table.positive_above)")
        raise ValueError(f"data.{field_name} must be <= {len(rows)}, the users of {dataset.name} {who}; got {wanted}; "
                         f"set data.{field_name} to {len(rows)} or less")
    users = dataset.interactions.user_idx[rows]
    return _shuffled(rows, config.split_seed, "evaluation users", dataset.user_keys[users])[:wanted]


def draw_queries(dataset: Dataset, config: DataConfig) -> Queries:
    """Draw the queries of all splits, and their candidates under every sampler.

    Args:
        dataset: all events.
        config: counts, rules and ``split_seed``, the only seed that enters.

    Raises:
        ValueError: fewer eligible users, or fewer training targets, than asked for, or data that cannot serve
            ``data.negatives``.
    """
    check_sampler(dataset, config.negatives, config.positive_above)
    targets = find_targets(dataset, config)
    test = _evaluation_rows(dataset, config, targets.test, config.eval_users, "eval_users")
    validation = _evaluation_rows(dataset, config, targets.validation, config.validation_users, "validation_users")
    evaluated = np.zeros(len(dataset.users), dtype=bool)
    evaluated[dataset.interactions.user_idx[np.concatenate([test, validation])]] = True
    sft, rl = _split_training(dataset, config, targets, evaluated)
    rows: dict[Split, NDArray] = {"test": test, "validation": validation, "sft": sft, "rl": rl}
    _check_room(dataset, config, rows, targets.training)
    weights = item_weights(dataset, targets.training)
    by_split: dict[Split, list[Query]] = {
        split: [make_query(dataset, config, split, int(row), weights) for row in rows[split]] for split in SPLITS
    }
    candidates: dict[Negatives, CandidateLists] = {}
    left_out: dict[Negatives, str] = {}
    for sampler in SAMPLERS:
        try:
            candidates[sampler] = _lists(dataset, config, by_split, sampler, weights)
        except ValueError as error:
            left_out[sampler] = str(error)
    return Queries(by_split, _count(dataset, targets, rows, evaluated), candidates, left_out)


def _count(dataset: Dataset, targets: Targets, rows: Mapping[Split, NDArray], evaluated: NDArray[np.bool_],
           ) -> dict[str, int]:
    counts = {"eligible_users": len(targets.test), "evaluation_users": len(rows["test"])}
    if targets.cuts is not None:
        counts |= {"eligible_validation_users": len(targets.validation), "validation_cut": targets.cuts[0],
                   "test_cut": targets.cuts[1]}
    for split in SPLITS:
        counts[f"{split}_queries"] = len(rows[split])
    for split in ("sft", "rl"):
        users = dataset.interactions.user_idx[rows[split]]
        counts[f"{split}_users"] = len(np.unique(users))
        counts[f"{split}_queries_of_evaluation_users"] = int(evaluated[users].sum())
    return counts


def _lists(dataset: Dataset, config: DataConfig, by_split: Mapping[Split, list[Query]], sampler: Negatives,
           weights: ItemWeights) -> CandidateLists:
    """The lists of one sampler: the queries' own for ``data.negatives``, else of test and validation queries."""
    if sampler == config.negatives:
        return {query.query_id: query.candidates for queries in by_split.values() for query in queries}
    check_sampler(dataset, sampler, config.positive_above)
    return {query.query_id: _candidates(dataset, config, query.user_idx, query.target, sampler, weights)
            for split in EVALUATED for query in by_split[split]}
