"""Systems side by side: means over seeds, and tests between any two systems of a block.

Figures are means over a system's runs, with the standard deviation over runs beside them; tests pair the users
(:mod:`r2rec_jax.evaluation.significance`). Where a system has several training seeds on one ``split_seed``, a query's
value is their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from r2rec_jax.evaluation.blocks import Block, System
from r2rec_jax.evaluation.ranking import hit_values, ndcg_values, reciprocal_values
from r2rec_jax.evaluation.significance import bootstrap_columns, holm, wilcoxon_p
from r2rec_jax.evaluation.summary import by_popularity, by_position, summarize_ranks

ALPHA = 0.05

TESTED: Mapping[str, Callable[[ArrayLike], NDArray[np.float64]]] = {
    "hr@1": lambda ranks: hit_values(ranks, 1), "hr@3": lambda ranks: hit_values(ranks, 3),
    "ndcg@3": lambda ranks: ndcg_values(ranks, 3), "mrr": reciprocal_values,
}
"""Metrics that pairs of systems are tested on, as per-user values."""

METRICS = ("hr@1", "hr@3", "hr@5", "hr@10", "ndcg@3", "ndcg@10", "mrr", "full_hr@10", "full_ndcg@10", "valid_rate")


def role(system: str) -> str:
    """A system's name without how the words of a title were weighed: ``sft-likelihood-mean`` is an
    ``sft-likelihood``."""
    stem, likelihood, _ = system.partition("-likelihood")
    return stem + likelihood


@dataclass(frozen=True)
class PairTest:
    """Two systems of a block on one metric.

    Attributes:
        a, b: labels.
        metric: a key of :data:`TESTED`.
        difference, low, high: mean of ``a - b`` and its 95% percentile interval.
        p: of the paired bootstrap.
        p_holm: ``p`` after Holm's correction over all pairs of the block on this metric.
        wilcoxon, wilcoxon_holm: the same for Wilcoxon's signed-rank test.
        users: distinct users that were resampled.
        pairs: (split_seed, query) pairs.
        split_seeds: that both systems have.
    """

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    wilcoxon: float
    wilcoxon_holm: float
    users: int
    pairs: int
    split_seeds: tuple[int, ...]


def summarize_system(block: Block, system: System) -> dict[str, Any]:
    """A system's row: means over its runs, with the standard deviation over runs.

    Returns:
        ``system`` (the label), ``name`` (as result files call it), ``prompt``, ``folders``, ``dataset``,
        ``negatives``, ``split``, ``seed`` and ``split_seed`` (lists), ``runs``, ``users`` (a run), ``answers`` of each
        (the most of any run), every metric of :data:`METRICS` that all runs have, ``sd`` (metric -> sample standard
        deviation over runs, where there are two or more), ``by_position`` and ``by_popularity`` over the users of all
        runs.
    """
    rows = [summarize_ranks(run.records, system=run.system, dataset=run.dataset, negatives=run.negatives,
                            split=run.split, seed=run.seed) for run in system.runs]
    names = [name for name in METRICS if all(name in row for row in rows)]
    values = {name: np.array([row[name] for row in rows]) for name in names}
    records = [record for run in system.runs for record in run.records]
    counted = all(record.target_edges is not None for record in records)
    return {
        "system": system.label, "dataset": block.dataset, "negatives": block.negatives, "split": block.split,
        "seed": sorted({run.seed for run in system.runs}), "split_seed": list(system.split_seeds),
        "runs": len(rows), "users": round(float(np.mean([row["users"] for row in rows]))),
        "answers": max(row["answers"] for row in rows),
        **{name: float(value.mean()) for name, value in values.items()},
        "sd": {name: float(value.std(ddof=1)) for name, value in values.items()} if len(rows) > 1 else {},
        "by_position": by_position(records),
        **({"by_popularity": by_popularity(records)} if counted else {}),
        "folders": [run.folder for run in system.runs], "name": system.name, "prompt": system.runs[0].prompt,
    }


@dataclass(frozen=True)
class BlockReport:
    """What a comparison says about one block.

    Attributes:
        dataset, negatives, split: the conditions.
        rows: of :func:`summarize_system`, one a system.
        tests: of :func:`compare_systems`, every pair on every tested metric.
    """

    dataset: str
    negatives: str
    split: str
    rows: tuple[Mapping[str, Any], ...]
    tests: tuple[PairTest, ...]


def report_block(block: Block, *, draws: int = 10_000) -> BlockReport:
    """Rows and tests of a checked block."""
    return BlockReport(block.dataset, block.negatives, block.split,
                       tuple(summarize_system(block, system) for system in block.systems),
                       tuple(compare_systems(block, draws=draws)))


def compare_systems(block: Block, *, seed: int = 0, draws: int = 10_000) -> list[PairTest]:
    """Paired bootstrap and Wilcoxon between any two systems of a checked block, on every metric of :data:`TESTED`.

    Pairs on the same draws of candidates see the same resamples. Holm's correction takes all pairs of the block on
    one metric as the family.

    Args:
        block: from :func:`check_block`.
        seed: of the resampling.
        draws: bootstrap resamples. The smallest p is 2 / (draws + 1), so that with m pairs no corrected p can be
            below 2 m / (draws + 1).
    """
    values = {system.label: _values(system) for system in block.systems}
    users = _users(block)
    groups: dict[tuple[int, ...], list[tuple[str, str]]] = {}
    for first, second in combinations(block.systems, 2):
        shared = tuple(sorted(set(first.split_seeds) & set(second.split_seeds)))
        groups.setdefault(shared, []).append((first.label, second.label))
    raw: list[PairTest] = []
    for split_seeds, pairs in groups.items():
        keys = sorted(key for key in users if key[0] in split_seeds)
        owners = [users[key] for key in keys]
        stacked = {label: np.array([values[label][key] for key in keys]) for pair in pairs for label in pair}
        columns = np.concatenate([stacked[a] - stacked[b] for a, b in pairs], axis=1)
        results = iter(bootstrap_columns(columns, users=owners, seed=seed, draws=draws))
        for a, b in pairs:
            for column, metric in enumerate(TESTED):
                r = next(results)
                p = wilcoxon_p(stacked[a][:, column], stacked[b][:, column], users=owners)
                raw.append(PairTest(a, b, metric, r.difference, r.low, r.high, r.p, r.p, p, p, r.users, len(keys),
                                    split_seeds))
    return [test for metric in TESTED for test in _corrected([t for t in raw if t.metric == metric])]


def best_systems(rows: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Labels of the rows with the highest mean of a metric (all that tie), among two or more that were judged on the
    same draws of candidates: means over other draws differ by those too."""
    best = []
    for peers in _by_draws(rows).values():
        top = max(row[metric] for row in peers)
        best += [row["system"] for row in peers if len(peers) > 1 and row[metric] >= top - 1e-12]
    return best


def worse_than_best(rows: Sequence[Mapping[str, Any]], tests: Sequence[PairTest], metric: str) -> set[str]:
    """Labels that the best system on the same draws beats significantly: bootstrap, Holm-corrected p below 0.05."""
    best, draws = set(best_systems(rows, metric)), {row["system"]: row["split_seed"] for row in rows}
    return {
        other for test in tests if test.metric == metric and test.p_holm < ALPHA
        for other, top, lead in ((test.a, test.b, -test.difference), (test.b, test.a, test.difference))
        if top in best and other not in best and draws[other] == draws[top] and lead > 0
    }


def _by_draws(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, ...], list[Mapping[str, Any]]]:
    found: dict[tuple[int, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row["split_seed"]), []).append(row)
    return found


def _corrected(tests: list[PairTest]) -> list[PairTest]:
    bootstrap, wilcoxon = holm([t.p for t in tests]), holm([t.wilcoxon for t in tests])
    return [replace(t, p_holm=p, wilcoxon_holm=w) for t, p, w in zip(tests, bootstrap, wilcoxon, strict=True)]


def _values(system: System) -> dict[tuple[int, str], NDArray[np.float64]]:
    """(split_seed, query_id) -> values of every tested metric, averaged over training seeds."""
    gathered: dict[tuple[int, str], list[NDArray[np.float64]]] = {}
    for run in system.runs:
        ranks = [record.rank for record in run.records]
        columns = np.stack([value(ranks) for value in TESTED.values()], axis=1)
        for record, row in zip(run.records, columns, strict=True):
            gathered.setdefault((run.split_seed, record.query_id), []).append(row)
    return {key: np.mean(rows, axis=0) for key, rows in gathered.items()}


def _users(block: Block) -> dict[tuple[int, str], str]:
    return {(run.split_seed, record.query_id): record.user_id
            for system in block.systems for run in system.runs for record in run.records}
