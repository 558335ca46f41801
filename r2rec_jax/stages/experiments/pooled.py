"""Systems over all seeds: tests between them, and where their hits come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def variants(self) -> dict[str, dict[str, Pooled]]:
        """experiment -> system -> its entry, under its own chains, of the experiments outside the main table."""
        found: dict[str, dict[str, Pooled]] = {}
        for (experiment, system, chains), entry in self._entries.items():
            if experiment not in self._headlines and chains == "own":
                found.setdefault(experiment, {})[system] = entry
        return found

    def others(self) -> list[tuple[Pooled, Pooled]]:
        """(with the own chains, with other chains) of every system that was evaluated with both."""
        return [(self._entries[(experiment, system, "own")], entry)
                for (experiment, system, chains), entry in self._entries.items()
                if chains != "own" and (experiment, system, "own") in self._entries]


def paired(pairs: Sequence[tuple[Pooled, Pooled]]) -> list[list[dict[str, Any]]]:
    """Paired bootstraps of the first minus the second, on the (seed, query) pairs of both, for every metric.

    Comparisons on the same answers see the same resamples, which are drawn once.

    Raises:
        ValueError: two systems ranked other candidates.
    """
    groups: dict[tuple[Key, ...], list[int]] = {}
    for number, (first, second) in enumerate(pairs):
        keys = tuple(sorted(first.records.keys() & second.records.keys()))
        _refuse_other_candidates(first, second, keys)
        groups.setdefault(keys, []).append(number)
    found: list[list[dict[str, Any]]] = [[] for _ in pairs]
    for keys, numbers in groups.items():
        if not keys:
            continue
        values = [(pairs[n][0].values(keys), pairs[n][1].values(keys)) for n in numbers]
        users = [pairs[numbers[0]][0].records[key].user_id for key in keys]
        results = iter(bootstrap_columns(np.concatenate([a - b for a, b in values], axis=1), users=users))
        for number, (a, b) in zip(numbers, values, strict=True):
            first, second = pairs[number]
            found[number] = [
                {"system": first.system, "minus": second.system, "metric": name, "mean": float(a[:, column].mean()),
                 "mean_minus": float(b[:, column].mean()), **asdict(next(results)), "pairs": len(keys),
                 "seeds": sorted({seed for seed, _ in keys}), "experiments": [first.experiment, second.experiment]}
                for column, name in enumerate(METRICS)]
    return found


def _refuse_other_candidates(first: Pooled, second: Pooled, keys: Sequence[Key]) -> None:
    for key in keys:
        a, b = first.records[key], second.records[key]
        if (a.target, a.candidates_sha) != (b.target, b.candidates_sha):
            raise ValueError(f"compared systems must rank the same candidates; {first.system} of {first.experiment} "
                             f"and {second.system} of {second.experiment} differ for query {key[1]} of seed {key[0]}; "
                             "give their experiments the same data settings")


def compared(pool: Pool) -> list[dict[str, Any]]:
    """:data:`PAIRS` between the systems of the main table."""
    named = _by_role(pool.main())
    found = paired([(named[a], named[b]) for a, b in PAIRS if a in named and b in named])
    return [test for tests in found for test in tests]


def compared_variants(pool: Pool) -> list[dict[str, Any]]:
    """:data:`PAIRS` whose first system is of an experiment outside the main table; the second is of the same one, or of
    the main table where that experiment has none."""
    main = _by_role(pool.main())
    pairs = []
    for entries in pool.variants().values():
        own = _by_role(entries)
        named = main | own
        pairs += [(own[a], named[b]) for a, b in PAIRS if a in own and b in named]
    return [test for tests in paired(pairs) for test in tests]


def _by_role(systems: Mapping[str, Pooled]) -> dict[str, Pooled]:
    """Systems by the names of :data:`PAIRS`."""
    named: dict[str, Pooled] = {}
    for name, entry in systems.items():
        stem, likelihood, _ = name.replace("pretrained", "base").partition("-likelihood")
        named.setdefault(stem + likelihood, entry)
    return named


def diagnostics(pool: Pool) -> list[dict[str, Any]]:
    """Systems with other users' chains or none, after the same with their own: metrics, and what they lose."""
    others = pool.others()
    lost = paired([(other, own) for own, other in others])
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for (own, other), tests in zip(others, lost, strict=True):
        for entry, own_tests in ((own, []), (other, tests)):
            metrics = ranking_metrics([record.rank for record in entry.records.values()])
            found.setdefault((entry.experiment, entry.system, entry.chains), {
                "experiment": entry.experiment, "system": entry.system, "chains": entry.chains, **_breakdown(entry),
                "users": len(entry.records), **{name: metrics[name] for name in METRICS}, "tests": own_tests})
    return list(found.values())


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
