"""Systems over all seeds: tests between them, and where their hits come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.evaluation.comparison import TESTED, role
from r2rec_jax.evaluation.ranks import RankRecord
from r2rec_jax.evaluation.significance import bootstrap_columns, holm
from r2rec_jax.evaluation.summary import by_popularity, by_position, position_p

PAIRS = (("sft+grpo", "sft"), ("sft", "start"), ("sft+grpo", "start"), ("sft+grpo", "grpo"), ("grpo", "start"),
         ("sft+grpo", "popularity"), ("sft+grpo", "start-likelihood"), ("sft-likelihood", "start-likelihood"),
         ("sft+grpo-likelihood", "sft-likelihood"), ("pretrained", "base"), ("sft+grpo", "base"),
         ("pretrained-likelihood", "base-likelihood"), ("sft+grpo", "base-likelihood"))
"""What is tested where both were evaluated. ``start`` is the model that SFT starts from: ``pretrained`` where the run
trained its backbone, else ``base``. The last four are for a pretrained backbone that was trained further."""

CLASSICAL = ("popularity",)
"""Of :data:`PAIRS`, the systems that no setting of an experiment changes."""

BEFORE_GRPO = ("sft", "pretrained", "base")
"""Those that no setting of GRPO and its rewards changes."""

METRICS = ("hr@1", "hr@3", "ndcg@3", "first@1")
"""``first@1`` counts an answer whose first line is the target; the others skip lines that are no candidates."""

Key = tuple[int, str]
"""(seed, query_id)"""


@dataclass(frozen=True)
class Pooled:
    """One system's records over all seeds.

    Attributes:
        experiment: whose.
        system: its name.
        chains: what chains its prompts showed.
        records: by (seed, query_id), one an answer.
        first: share of answers whose first line was the target, by (seed, query_id); absent where nothing was written,
            and the first of a ranking counts.
    """

    experiment: str
    system: str
    chains: str
    records: dict[Key, tuple[RankRecord, ...]] = field(default_factory=dict)
    first: dict[Key, float] = field(default_factory=dict)

    def values(self, keys: Sequence[Key]) -> NDArray[np.float64]:
        """[keys, metrics] per-query values of :data:`METRICS`, of several answers their mean."""
        counts = np.array([len(self.records[key]) for key in keys])
        ranks = [record.rank for key in keys for record in self.records[key]]
        starts = np.cumsum(counts) - counts
        of = {name: np.add.reduceat(TESTED[name](ranks), starts) / counts for name in METRICS if name in TESTED}
        first = np.array([self.first.get(key, of["hr@1"][place]) for place, key in enumerate(keys)])
        return np.stack([of.get(name, first) for name in METRICS], axis=1)

    def means(self) -> dict[str, float]:
        """Means of :data:`METRICS` over all queries."""
        return dict(zip(METRICS, self.values(list(self.records)).mean(axis=0).tolist(), strict=True))


class Pool:
    """All that was evaluated, by experiment, system and chains; validation queries apart.

    Args:
        against: of experiments that name one, the experiment that they are tested against.
        continued: experiments that change GRPO alone, so that what stands before it is the same in all of them.
    """

    def __init__(self, against: Mapping[str, str] | None = None, continued: Set[str] = frozenset()) -> None:
        self._against = against or {}
        self._continued = continued
        self._entries: dict[tuple[str, str, str], Pooled] = {}
        self._searches: dict[tuple[str, str, str], Pooled] = {}
        self._headlines: list[str] = []

    def add(self, headline: str | None, experiment: str, system: str, chains: str, split: str, seed: int,
            records: Sequence[RankRecord], first: Mapping[str, float] | None = None) -> None:
        """Add one seed of a system.

        Args:
            headline: the experiment's name where it stands in the main table.
            experiment, system, chains: what was evaluated.
            split: whose queries; those of other splits than test are for choosing.
            seed: of the run.
            records: where the targets stood.
            first: by query_id, as in :class:`Pooled`.
        """
        entries = self._entries if split == "test" else self._searches
        if headline is not None and headline not in self._headlines:
            self._headlines.append(headline)
        entry = entries.setdefault((experiment, system, chains), Pooled(experiment, system, chains))
        for record in records:
            key = seed, record.query_id
            entry.records[key] = (*entry.records.get(key, ()), record)
        entry.first.update({(seed, query_id): share for query_id, share in (first or {}).items()})

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

    def reference(self, experiment: str) -> dict[str, Pooled]:
        """system -> what an experiment outside the main table is held against: the one it names, or the main table."""
        named = self._against.get(experiment)
        if named is None:
            return self.main()
        return {system: entry for (name, system, chains), entry in self._entries.items()
                if name == named and chains == "own"}

    def before(self, experiment: str) -> dict[str, Pooled]:
        """system -> its entry of the main table, of those that an experiment outside it has nothing to do with or that
        its GRPO started from."""
        return {system: entry for system, entry in self.main().items()
                if system in CLASSICAL or (role(system).removesuffix("-likelihood") in BEFORE_GRPO
                                           and {experiment, entry.experiment} <= self._continued)}

    def searches(self) -> list[tuple[Pooled, Pooled]]:
        """(one, what it is held against) of the systems judged on validation queries: the experiment that it names, or
        the first one that names none and has the same system."""
        first: dict[str, Pooled] = {}
        pairs = []
        for (experiment, system, chains), entry in self._searches.items():
            if chains != "own":
                continue
            named = self._against.get(experiment)
            other = first.setdefault(system, entry) if named is None else self._searches.get((named, system, chains))
            if other is not None and other is not entry:
                pairs.append((entry, other))
        return pairs

    def others(self) -> list[tuple[Pooled, Pooled]]:
        """(with the own chains, with other chains) of every system that was evaluated with both."""
        return [(self._entries[(experiment, system, "own")], entry)
                for (experiment, system, chains), entry in self._entries.items()
                if chains != "own" and (experiment, system, "own") in self._entries]


def paired(pairs: Sequence[tuple[Pooled, Pooled]], *, strict: bool = True) -> list[list[dict[str, Any]]]:
    """Paired bootstraps of the first minus the second, on the (seed, query) pairs of both, for every metric.

    Comparisons on the same answers see the same resamples, which are drawn once.

    Args:
        pairs: what is compared.
        strict: whether systems that ranked other candidates are refused; otherwise that pair has no tests.

    Raises:
        ValueError: ``strict``, and two systems ranked other candidates.
    """
    groups: dict[tuple[Key, ...], list[int]] = {}
    for number, (first, second) in enumerate(pairs):
        keys = tuple(sorted(first.records.keys() & second.records.keys()))
        differs = _other_candidates(first, second, keys)
        if differs is None:
            groups.setdefault(keys, []).append(number)
        elif strict:
            raise ValueError(
                f"compared systems must rank the same candidates; {first.system} of {first.experiment} and "
                f"{second.system} of {second.experiment} differ for query {differs[1]} of seed {differs[0]}; give "
                "their experiments the same data settings")
    found: list[list[dict[str, Any]]] = [[] for _ in pairs]
    for keys, numbers in groups.items():
        if not keys:
            continue
        values = [(pairs[n][0].values(keys), pairs[n][1].values(keys)) for n in numbers]
        users = [pairs[numbers[0]][0].records[key][0].user_id for key in keys]
        seeds = np.array([seed for seed, _ in keys])
        results = iter(bootstrap_columns(np.concatenate([a - b for a, b in values], axis=1), users=users))
        for number, (a, b) in zip(numbers, values, strict=True):
            first, second = pairs[number]
            found[number] = [
                {"system": first.system, "minus": second.system, "metric": name, "mean": float(a[:, column].mean()),
                 "mean_minus": float(b[:, column].mean()), **asdict(next(results)), "pairs": len(keys),
                 "seeds": np.unique(seeds).tolist(), "experiments": [first.experiment, second.experiment],
                 "by_seed": [float((a - b)[seeds == seed, column].mean()) for seed in np.unique(seeds)]}
                for column, name in enumerate(METRICS)]
    return found


def _other_candidates(first: Pooled, second: Pooled, keys: Sequence[Key]) -> Key | None:
    """The first of these (seed, query) that the two ranked with other candidates or another target."""
    for key in keys:
        a, b = first.records[key][0], second.records[key][0]
        if (a.target, a.candidates_sha) != (b.target, b.candidates_sha):
            return key
    return None


def compared(pool: Pool) -> list[dict[str, Any]]:
    """:data:`PAIRS` between the systems of the main table.

    Raises:
        ValueError: two systems ranked other candidates.
    """
    named = _by_role(pool.main())
    return _corrected(paired([(named[a], named[b]) for a, b in PAIRS if a in named and b in named]))


def compared_variants(pool: Pool) -> list[dict[str, Any]]:
    """Experiments outside the main table: :data:`PAIRS` within each, its systems against the same ones of
    the experiment that it names or else of the main table, and against those of the main table that it shares. Pairs
    with other candidates are left out."""
    found = list[list[dict[str, Any]]]()
    for experiment, entries in pool.variants().items():
        own, other, before = (_by_role(part) for part in (entries, pool.reference(experiment), pool.before(experiment)))
        pairs = [(own[a], own[b]) for a, b in PAIRS if a in own and b in own]
        pairs += [(own[name], other[name]) for name in own if name in other and not name.startswith("pretrained")]
        pairs += [(own[a], before[b]) for a, b in PAIRS if a in own and b in before and b not in own]
        found += paired(pairs, strict=False)
    return _corrected(found)


def compared_searches(pool: Pool) -> list[dict[str, Any]]:
    """Systems judged on validation queries, by :meth:`Pool.searches`."""
    return _corrected(paired(pool.searches(), strict=False))


def _corrected(tests: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """In one list, with ``p_holm``: p after Holm's correction over these comparisons on the same metric."""
    flat = [test for group in tests for test in group]
    for name in METRICS:
        family = [test for test in flat if test["metric"] == name]
        for test, p in zip(family, holm([test["p"] for test in family]), strict=True):
            test["p_holm"] = p
    return flat


def _by_role(systems: Mapping[str, Pooled]) -> dict[str, Pooled]:
    """Systems by the names of :data:`PAIRS`."""
    named: dict[str, Pooled] = {}
    for name, entry in systems.items():
        named.setdefault(role(name), entry)
    for suffix in ("", "-likelihood"):
        base, pretrained = named.get(f"base{suffix}"), named.get(f"pretrained{suffix}")
        start = pretrained or base
        if start is not None:
            named[f"start{suffix}"] = start
        if not (base and pretrained):
            named.pop(f"base{suffix}", None)
            named.pop(f"pretrained{suffix}", None)
    return named


def diagnostics(pool: Pool) -> list[dict[str, Any]]:
    """Systems with other users' chains or none, after the same with their own: metrics, and what they lose."""
    others = pool.others()
    lost = paired([(other, own) for own, other in others])
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for (own, other), tests in zip(others, lost, strict=True):
        for entry, own_tests in ((own, []), (other, tests)):
            found.setdefault((entry.experiment, entry.system, entry.chains), {
                "experiment": entry.experiment, "system": entry.system, "chains": entry.chains, **_breakdown(entry),
                "users": len(entry.records), **entry.means(), "tests": own_tests})
    return list(found.values())


def breakdowns(pool: Pool) -> list[dict[str, Any]]:
    """Hit rates by popularity and place of the target, of every system of the main table."""
    return [{"experiment": entry.experiment, "system": system, **_breakdown(entry)}
            for system, entry in pool.main().items()]


def _breakdown(entry: Pooled) -> dict[str, Any]:
    records = [record for own in entry.records.values() for record in own]
    places = by_position(records)
    counted = all(record.target_edges is not None for record in records)
    return {"by_position": places, "position_p": position_p(places),
            "by_popularity": by_popularity(records) if counted else []}
