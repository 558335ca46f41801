"""One row of a result table from per-user ranks, with its breakdowns: position bias and popularity of the target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from r2rec_jax.evaluation.ranking import hit_ratio, mrr, ndcg
from r2rec_jax.evaluation.ranks import RankRecord

HIT_CUTS = (1, 3, 5, 10)
NDCG_CUTS = (3, 10)
BUCKETS = 5


def ranking_metrics(ranks: ArrayLike) -> dict[str, float]:
    """HitRatio@1/3/5/10, NDCG@3/10 and MRR over all users, as a result row names them.

    Example:
        >>> ranking_metrics([1, 2])["hr@1"]
        0.5
    """
    return {
        **{f"hr@{k}": hit_ratio(ranks, k) for k in HIT_CUTS},
        **{f"ndcg@{k}": ndcg(ranks, k) for k in NDCG_CUTS},
        "mrr": mrr(ranks),
    }


def summarize_ranks(
    records: Sequence[RankRecord], *, system: str, dataset: str, negatives: str, split: str, seed: int,
) -> dict[str, Any]:
    """One row of a result table: means over all users, invalid answers counted as misses.

    Args:
        records: of one system, as many of every query.
        system: its name in the table.
        dataset: name of the data set.
        negatives: how the other candidates were drawn.
        split: which interactions are targets: ``last-positive`` or ``global-time`` for the test queries.
        seed: of the run.

    Returns:
        The row: ``users``, ``questions`` where they were asked several (training queries), ``answers`` to each,
        metrics of :func:`ranking_metrics` over all answers, ``valid_rate``, ``by_position`` (:func:`by_position`);
        ``by_popularity`` where every target's edges are known; ``full_hr@10`` and ``full_ndcg@10`` where the system
        ranked the whole catalogue for every user.

    Raises:
        ValueError: no records, an answer twice, queries with different numbers of answers, or records of another
            system.
    """
    others = sorted({record.system for record in records} - {system})
    answers = Counter(record.query_id for record in records)
    distinct = {(record.query_id, record.answer) for record in records}
    if not records or others or len(distinct) != len(records) or len(set(answers.values())) != 1:
        raise ValueError("a row must summarise at least one record, all of one system, each another answer and as many "
                         f"of every query; got {len(records)} records of {[system, *others]}, {len(distinct)} answers "
                         f"to {len(answers)} queries")
    users = len({record.user_id for record in records})
    row: dict[str, Any] = {
        "system": system, "dataset": dataset, "negatives": negatives, "split": split, "seed": seed,
        "users": users, **({"questions": len(answers)} if users != len(answers) else {}),
        "answers": len(records) // len(answers),
        **ranking_metrics([record.rank for record in records]),
        "valid_rate": float(np.mean([record.valid for record in records])),
    }
    full = [record.full_rank for record in records if record.full_rank is not None]
    if len(full) == len(records):
        row |= {"full_hr@10": hit_ratio(full, 10), "full_ndcg@10": ndcg(full, 10)}
    row["by_position"] = by_position(records)
    if all(record.target_edges is not None for record in records):
        row["by_popularity"] = by_popularity(records)
    return row


def by_position(records: Sequence[RankRecord]) -> list[dict[str, Any]]:
    """Position bias: hit rates by the target's number in the candidate list, as the prompt counts it (from 1).

    A system that reads the list without regard to order has equal rates but for the draw of users. Numbers at which no
    target stands are left out.

    Returns:
        ``[{"number": 1, "users": 52, "hr@1": 0.31, "hr@3": 0.6}, ...]``; of several runs that ask the same people about
        the same lists ``users`` counts answers, and ``questions`` beside it what they answer.
    """
    positions = np.array([record.position for record in records])
    ranks = np.array([record.rank for record in records])
    asked: dict[int, set[tuple[str, str]]] = {}
    for record in records:
        asked.setdefault(record.position, set()).add(_question(record))
    return [{"number": place + 1, **_rates(ranks[positions == place], len(asked[place]))} for place in sorted(asked)]


def by_popularity(records: Sequence[RankRecord], buckets: int = BUCKETS) -> list[dict[str, Any]]:
    """Hit rates by popularity of the target: buckets of equal numbers of users, from rare targets to popular ones.

    Questions are ordered by their target's training edges (ties by target, then by query, so that every system gets the
    same buckets, however many answers it gave) and cut into ``buckets`` parts whose sizes differ by one at most. Fewer
    questions than buckets give one bucket each.

    Returns:
        ``[{"bucket": 1, "edges": [0, 41], "users": 200, "hr@1": 0.1, "hr@3": 0.3}, ...]``; ``edges`` are the fewest
        and the most training edges of a target in the bucket, ``users`` as in :func:`by_position`.
    """
    asked: dict[tuple[str, str], list[RankRecord]] = {}
    for record in records:
        asked.setdefault(_question(record), []).append(record)
    ordered = sorted(asked.values(), key=lambda own: (own[0].target_edges, own[0].target, own[0].query_id))
    parts = np.array_split(np.arange(len(ordered)), min(buckets, len(ordered)))
    return [
        {"bucket": number, "edges": [ordered[part[0]][0].target_edges, ordered[part[-1]][0].target_edges],
         **_rates(np.array([record.rank for place in part for record in ordered[place]]), len(part))}
        for number, part in enumerate(parts, start=1)
    ]


def position_p(entries: Sequence[Mapping[str, Any]]) -> float | None:
    """Could the hit rates of :func:`by_position` be equal? Pearson's chi-squared test of homogeneity on hits@1.

    A question that several runs answer counts once, with the mean of its hits: their answers are not independent.

    Returns:
        The p-value: small when the target's place decides whether it is found. None where there is nothing to test: a
        single number, no hits, or hits only.

    Example:
        >>> entries = [{"number": 1, "users": 40, "hr@1": 0.9}, {"number": 2, "users": 40, "hr@1": 0.1}]
        >>> position_p(entries) < 0.001
        True
    """
    from scipy.stats import chi2_contingency

    users = np.array([entry.get("questions", entry["users"]) for entry in entries], dtype=np.float64)
    hits = users * [entry["hr@1"] for entry in entries]
    if len(entries) < 2 or not 0 < hits.sum() < users.sum():
        return None
    result: Any = chi2_contingency(np.stack([hits, users - hits]), correction=False)
    return float(result.pvalue)


def _question(record: RankRecord) -> tuple[str, str]:
    return record.query_id, record.candidates_sha


def _rates(ranks: NDArray[np.float64], questions: int) -> dict[str, Any]:
    several = {"questions": questions} if questions != len(ranks) else {}
    return {"users": len(ranks), "hr@1": hit_ratio(ranks, 1), "hr@3": hit_ratio(ranks, 3), **several}
