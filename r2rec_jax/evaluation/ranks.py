"""Where the target stood for every user: the record that language models and score-based systems share.

    ranks-<split>-<negatives>.jsonl      one line an answer; the input of every paired test, table and breakdown
    ranks-<split>-<negatives>.json       of a run's policy: the settings that it answered under

A language model's records come from its predictions (:func:`from_predictions`), a score-based system's from its scores
of the whole catalogue (:func:`from_scores`). What is averaged, tested or broken down afterwards sees records only, so
no system is judged by code of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.queries import Query
from r2rec_jax.data.splits import item_edges
from r2rec_jax.evaluation.predictions import Prediction
from r2rec_jax.evaluation.ranking import MISS, rank_from_scores, rank_in_catalogue
from r2rec_jax.files import read_json, sha256_of, write_json, write_json_lines


@dataclass(frozen=True)
class RankRecord:
    """One system's result on one query, or one of several answers to it.

    Attributes:
        system: name as in the result tables.
        query_id: the frozen query.
        user_id: raw id of the user; paired tests resample users.
        target: raw item id of the target.
        position: 0-based position of the target in the candidate list, as every prompt shows it.
        rank: 1-based rank of the target among the candidates; :data:`~r2rec_jax.evaluation.ranking.MISS` when the
            answer is invalid.
        valid: the system named or scored at least one candidate.
        candidates_sha: :func:`candidates_sha` of the candidates.
        target_edges: training edges of the target, its popularity; None where nobody counted them.
        full_rank: 1-based rank among all items but the visible history; None where the system cannot score them all.
        answer: which of the query's answers, from 0; a file of a version that drew one has none.
    """

    system: str
    query_id: str
    user_id: str
    target: str
    position: int
    rank: float
    valid: bool
    candidates_sha: str
    target_edges: int | None = None
    full_rank: float | None = None
    answer: int = 0

    def to_plain(self) -> dict[str, Any]:
        """As JSON has it: an infinite rank is null."""
        plain = asdict(self)
        plain["rank"] = None if self.rank == MISS else int(self.rank)
        plain["full_rank"] = None if self.full_rank is None else int(self.full_rank)
        return plain

    @classmethod
    def from_plain(cls, plain: Any) -> RankRecord:
        """The inverse of :meth:`to_plain`.

        Raises:
            ValueError: fields are missing or unknown, or a number is out of range.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(plain, dict) or {*plain, "answer"} != names:
            got = sorted(plain) if isinstance(plain, dict) else type(plain).__name__
            raise ValueError(f"a rank record must have the fields {sorted(names)}; got {got}")
        values: dict[str, Any] = dict(plain)
        if values["rank"] is None:
            values["rank"] = MISS
        record = cls(**values)
        full = 1 if record.full_rank is None else record.full_rank
        if min(record.rank, full) < 1 or min(record.position, record.answer) < 0:
            raise ValueError(f"ranks must be >= 1, positions and answers >= 0; got rank {record.rank}, full_rank "
                             f"{record.full_rank}, position {record.position}, answer {record.answer}")
        return record


def candidates_sha(candidates: Iterable[str]) -> str:
    """Identity of a set of candidates, whatever their order: 16 hexadecimal digits of a sha256 over the sorted raw ids.

    Two systems may be compared on a query when theirs are equal.
    """
    return hashlib.sha256(json.dumps(sorted(candidates)).encode()).hexdigest()[:16]


def write_ranks(path: str | Path, records: Iterable[RankRecord], settings: Mapping[str, Any] | None = None) -> None:
    """Replace a file by one record a line, and the one beside it by the ``settings`` that were answered under."""
    write_json_lines(path, (record.to_plain() for record in records))
    if settings is not None:
        write_json(_settings_file(path), {"settings": settings, "ranks_sha256": sha256_of(Path(path))})


def read_settings_beside(path: str | Path) -> dict[str, Any] | None:
    """The settings under which a file's ranks were answered; None where nothing beside it says so of these ranks (an
    earlier version wrote them)."""
    file = _settings_file(path)
    beside = read_json(file, "delete it and evaluate the system again", settings=dict) if file.exists() else {}
    return beside["settings"] if beside.get("ranks_sha256") == sha256_of(Path(path)) else None


def _settings_file(path: str | Path) -> Path:
    return Path(path).with_suffix(".json")


def read_ranks(path: str | Path) -> list[RankRecord]:
    """All records of a file, in file order.

    Raises:
        ValueError: a line cannot be read (names file and line), an answer appears twice, or there is none.
    """
    found: dict[tuple[str, int], RankRecord] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        try:
            record = RankRecord.from_plain(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is no rank record ({error}); delete the file and evaluate the "
                             "system again") from None
        key = record.query_id, record.answer
        if key in found:
            raise ValueError(f"{path} must rank an answer once; line {number} repeats answer {key[1]} to {key[0]}")
        found[key] = record
    if not found:
        raise ValueError(f"{path} must hold at least one rank record; got none; evaluate the system again")
    return list(found.values())


def edges_of_targets(dataset: Dataset, training: NDArray[np.bool_], queries: Sequence[Query]) -> dict[str, int]:
    """Raw item id -> training edges of every query's target, for :func:`from_predictions`."""
    edges = item_edges(dataset, training)
    return {dataset.items[query.target].item_id: int(edges[query.target]) for query in queries}


def from_predictions(predictions: Sequence[Prediction], target_edges: Mapping[str, int] | None = None
                     ) -> list[RankRecord]:
    """A language model's records; it cannot score the whole catalogue, so ``full_rank`` is None.

    Args:
        predictions: of one system.
        target_edges: raw item id -> training edges, of every target at least.
    """
    return [
        RankRecord(
            system=p.system, query_id=p.query_id, user_id=p.user_id, target=p.target,
            position=p.candidates.index(p.target), rank=p.rank, valid=p.valid,
            candidates_sha=candidates_sha(p.candidates), answer=p.answer,
            target_edges=None if target_edges is None else int(target_edges[p.target]))
        for p in predictions
    ]


def from_scores(
    system: str, dataset: Dataset, queries: Sequence[Query], scores: NDArray[np.floating], *,
    seen_offsets: NDArray[np.integer], seen_items: NDArray[np.integer], target_edges: NDArray,
) -> list[RankRecord]:
    """A score-based system's records on the queries' candidates and on the whole catalogue.

    Args:
        system: its name in the tables.
        dataset: resolves indices to raw ids.
        queries: Q frozen queries with their candidates.
        scores: [Q, I], higher is better.
        seen_offsets, seen_items: the visible history of query q is ``seen_items[seen_offsets[q]:seen_offsets[q+1]]``.
        target_edges: [I] training edges of every item (:func:`~r2rec_jax.data.splits.item_edges`).

    Raises:
        ValueError: the shapes disagree, or a score is NaN.
    """
    targets = np.array([query.target for query in queries], dtype=np.int64)
    full = rank_in_catalogue(scores, targets, seen_offsets, seen_items)
    records = []
    for row, query in enumerate(queries):
        own, position = scores[row, list(query.candidates)], query.candidates.index(query.target)
        item_ids = [dataset.items[item].item_id for item in query.candidates]
        records.append(RankRecord(
            system=system, query_id=query.query_id, user_id=dataset.users[query.user_idx].user_id,
            target=item_ids[position], position=position, rank=float(rank_from_scores(own, position)), valid=True,
            candidates_sha=candidates_sha(item_ids), target_edges=int(target_edges[query.target]),
            full_rank=float(full[row])))
    return records
