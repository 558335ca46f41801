"""Systems over all seeds: tests between them, and where their hits come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.evaluation.comparison import TESTED
from r2rec_jax.evaluation.ranks import RankRecord
from r2rec_jax.evaluation.significance import bootstrap_columns
from r2rec_jax.evaluation.summary import by_popularity, by_position, position_p, ranking_metrics

PAIRS = (("sft+grpo", "sft"), ("sft", "base"), ("sft+grpo", "base"), ("sft+grpo", "grpo"), ("grpo", "base"),
         ("sft+grpo", "popularity"), ("sft+grpo", "base-likelihood"), ("sft-likelihood", "base-likelihood"),
         ("sft+grpo-likelihood", "sft-likelihood"))
"""What is tested where both were evaluated; ``base`` is ``pretrained`` for a model trained from scratch."""

METRICS = ("hr@1", "hr@3", "ndcg@3")

Key = tuple[int, str]
"""(seed, query_id)"""


@dataclass(frozen=True)
class Pooled:
    """One system's records over all seeds.

    Attributes:
        experiment: whose.
        system: its name.
        chains: what chains its prompts showed.
        records: by (seed, query_id).
    """

    experiment: str
    system: str
    chains: str
    records: dict[Key, RankRecord] = field(default_factory=dict)

    def values(self, keys: Sequence[Key]) -> NDArray[np.float64]:
        """[keys, metrics] per-query values of :data:`METRICS`."""
        ranks = [self.records[key].rank for key in keys]
        return np.stack([TESTED[name](ranks) for name in METRICS], axis=1)


class Pool:
    """All that was evaluated on test queries, by experiment, system and chains."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str, str], Pooled] = {}
        self._headlines: list[str] = []

    def add(self, headline: str | None, experiment: str, system: str, chains: str, split: str, seed: int,
            records: Sequence[RankRecord]) -> None:
        """Add one seed of a system; other splits than test are for choosing and stay out.

        Args:
            headline: the experiment's name where it stands in the main table.
            experiment, system, chains: what was evaluated.
            split: whose queries.
            seed: of the run.
            records: where the targets stood.
        """
        if split != "test":
            return
        if headline is not None and headline not in self._headlines:
            self._headlines.append(headline)
        entry = self._entries.setdefault((experiment, system, chains), Pooled(experiment, system, chains))
        entry.records.update({(seed, record.query_id): record for record in records})

    def main(self) -> dict[str, Pooled]:
        """system -> its entry of the first headline experiment that has it, under its own chains."""
        found: dict[str, Pooled] = {}
        for name in self._headlines:
            for (experiment, system, chains), entry in self._entries.items():
                if experiment == name and chains == "own":
                    found.setdefault(system, entry)
        return found

    def others(self) -> list[tuple[Pooled, Pooled]]:
        """(with the own chains, with other chains) of every system that was evaluated with both."""
        return [(self._entries[(experiment, system, "own")], entry)
                for (experiment, system, chains), entry in self._entries.items()
                if chains != "own" and (experiment, system, "own") in self._entries]


def paired(first: Pooled, second: Pooled) -> list[dict[str, Any]]:
    """Paired bootstrap of ``first`` minus ``second`` on the (seed, query) pairs of both, for every metric.

    Raises:
        ValueError: they ranked other candidates.
    """
    keys = sorted(first.records.keys() & second.records.keys())
    if not keys:
        return []
    for key in keys:
        a, b = first.records[key], second.records[key]
        if (a.target, a.candidates_sha) != (b.target, b.candidates_sha):
            raise ValueError(f"compared systems must rank the same candidates; {first.system} of {first.experiment} "
                             f"and {second.system} of {second.experiment} differ for query {key[1]} of seed {key[0]}; "
                             "give their experiments the same data settings")
    a, b = first.values(keys), second.values(keys)
    results = bootstrap_columns(a - b, users=[first.records[key].user_id for key in keys])
    return [{"system": first.system, "minus": second.system, "metric": name, "mean": float(a[:, column].mean()),
             "mean_minus": float(b[:, column].mean()), **asdict(result), "pairs": len(keys),
             "seeds": sorted({seed for seed, _ in keys})}
            for column, (name, result) in enumerate(zip(METRICS, results, strict=True))]


def compared(pool: Pool) -> list[dict[str, Any]]:
    """:data:`PAIRS` between the systems of the main table."""
    named: dict[str, Pooled] = {}
    for name, entry in pool.main().items():
        stem, likelihood, _ = name.replace("pretrained", "base").partition("-likelihood")
        named.setdefault(stem + likelihood, entry)
    return [test | {"experiments": [named[a].experiment, named[b].experiment]}
            for a, b in PAIRS if a in named and b in named for test in paired(named[a], named[b])]


def diagnostics(pool: Pool) -> list[dict[str, Any]]:
    """Systems with other users' chains or none: their metrics, and what they lose against their own chains."""
    found = []
    for own, other in pool.others():
        for chains, entry in (("own", own), (other.chains, other)):
            metrics = ranking_metrics([record.rank for record in entry.records.values()])
            line = {"experiment": entry.experiment, "system": entry.system, "chains": chains, **_breakdown(entry),
                    "users": len(entry.records), **{name: metrics[name] for name in METRICS},
                    "tests": [] if chains == "own" else paired(entry, own)}
            if line not in found:
                found.append(line)
    return found


def breakdowns(pool: Pool) -> list[dict[str, Any]]:
    """Hit rates by popularity and place of the target, of every system of the main table."""
    return [{"experiment": entry.experiment, "system": system, **_breakdown(entry)}
            for system, entry in pool.main().items()]


def _breakdown(entry: Pooled) -> dict[str, Any]:
    records = list(entry.records.values())
    places = by_position(records)
    counted = all(record.target_edges is not None for record in records)
    return {"by_position": places, "position_p": position_p(places),
            "by_popularity": by_popularity(records) if counted else []}
