"""Runs gathered into blocks of equal conditions, and the refusal of what cannot be compared.

A *block* is one data set, one sampler of negatives and one split. Inside it every system must have ranked the same
candidates for the same queries, seed by seed; :func:`check_block` refuses what did not, by name. Runs pair by their
``split_seed``, which draws users, ties and candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from r2rec_jax.evaluation.ranks import RankRecord


@dataclass(frozen=True, eq=False)
class SystemRun:
    """One system under one pair of seeds, on one sampler's candidates.

    Attributes:
        system: name as in the result tables.
        variant: fingerprint of the settings that made it, seeds and places apart; runs of one variant are averaged.
        folder: where it lies, for messages and labels.
        dataset, negatives, split: the conditions.
        seed: of training.
        split_seed: of users, ties and candidates.
        records: one a query.
        prompt: for language models, what prompts show: ``chains and thoughts``, ``chains`` or ``no chains``; else None.
    """

    system: str
    variant: str
    folder: str
    dataset: str
    negatives: str
    split: str
    seed: int
    split_seed: int
    records: tuple[RankRecord, ...]
    prompt: str | None = None


@dataclass(frozen=True, eq=False)
class System:
    """The runs of one system that differ in their seeds only.

    Attributes:
        label: the system's name, with its folder where two variants of it are compared.
        runs: by (split_seed, seed).
    """

    label: str
    runs: tuple[SystemRun, ...]

    @property
    def name(self) -> str:
        """The system's name as in the result tables."""
        return self.runs[0].system

    @property
    def split_seeds(self) -> tuple[int, ...]:
        """The draws of candidates it was judged on, ascending."""
        return tuple(sorted({run.split_seed for run in self.runs}))


@dataclass(frozen=True, eq=False)
class Block:
    """Systems under equal conditions."""

    dataset: str
    negatives: str
    split: str
    systems: tuple[System, ...]


def gather(runs: Sequence[SystemRun], order: Callable[[str], Any] = str) -> list[Block]:
    """Blocks of equal conditions, each with its systems.

    Args:
        runs: all that was found.
        order: sort key of a system's name.

    Raises:
        ValueError: two folders hold the same variant of a system under the same seeds.
    """
    found: dict[tuple[str, str, str], dict[tuple[str, str], list[SystemRun]]] = {}
    for run in runs:
        variants = found.setdefault((run.dataset, run.negatives, run.split), {})
        variants.setdefault((run.system, run.variant), []).append(run)
    blocks = []
    for condition, variants in found.items():
        names = [system for system, _ in variants]
        folders = [members[0].folder for members in variants.values()]
        labels = [name if names.count(name) == 1 else f"{name} [{_short(folder, folders)}]"
                  for name, folder in zip(names, folders, strict=True)]
        systems = [System(label, _distinct(members))
                   for label, members in zip(labels, variants.values(), strict=True)]
        blocks.append(Block(*condition, tuple(sorted(systems, key=lambda s: (order(s.name), s.label)))))
    return blocks


def check_block(block: Block, common_users: bool = False) -> Block:
    """Make sure that every pair of systems can be compared.

    Args:
        block: of :func:`gather`.
        common_users: leave out what not every run of a ``split_seed`` ranked, instead of refusing, and draws that not
            every system has, where there are some that all have.

    Returns:
        The block, with ``common_users`` restricted to the draws and queries that all systems share.

    Raises:
        ValueError: two systems ranked other candidates or other queries, or share no draw of candidates.
    """
    for first, second in combinations(block.systems, 2):
        if not set(first.split_seeds) & set(second.split_seeds):
            raise ValueError(f"compared systems must rank the same candidates; {first.label} was drawn with split_seed "
                             f"{_listed(first.split_seeds)} and {second.label} with {_listed(second.split_seeds)} "
                             f"({_where(block)}); evaluate one of them on the other's queries")
    draws = set.intersection(*(set(system.split_seeds) for system in block.systems))
    if common_users and draws:
        block = replace(block, systems=tuple(
            replace(system, runs=tuple(run for run in system.runs if run.split_seed in draws))
            for system in block.systems))
    kept: dict[int, set[str]] = {}
    runs = [(system, run) for system in block.systems for run in system.runs]
    for split_seed in {run.split_seed for _, run in runs}:
        own = [(system, run) for system, run in runs if run.split_seed == split_seed]
        queries = [{record.query_id: record for record in run.records} for _, run in own]
        shared = set.intersection(*(set(q) for q in queries))
        for (system, run), mine in zip(own, queries, strict=True):
            _refuse_other_candidates(block, own[0], queries[0], (system, run), mine)
            if (len(mine) > len(shared) and not common_users) or not shared:
                have = [len(mine.keys() & theirs.keys()) for theirs in queries]
                fewest = have.index(min(have))
                fix = ", or give --common_users to compare on the shared ones" if shared else ""
                raise ValueError(
                    f"compared systems must rank the same queries; of {len(mine)} queries of {system.label} "
                    f"({run.folder}), {own[fewest][0].label} ({own[fewest][1].folder}) ranked {have[fewest]} "
                    f"({_where(block)}, split_seed {split_seed}); evaluate the missing ones{fix}")
        kept[split_seed] = shared
    return replace(block, systems=tuple(
        replace(system, runs=tuple(
            replace(run, records=tuple(r for r in run.records if r.query_id in kept[run.split_seed]))
            for run in system.runs))
        for system in block.systems))


def _distinct(runs: Sequence[SystemRun]) -> tuple[SystemRun, ...]:
    seen: dict[tuple[int, int], SystemRun] = {}
    for run in runs:
        other = seen.setdefault((run.split_seed, run.seed), run)
        if other is not run:
            raise ValueError(f"a system must be given once for each seed; {run.system} with split_seed "
                             f"{run.split_seed} and seed {run.seed} is in {other.folder} and in {run.folder}; leave "
                             "one out")
    return tuple(seen[key] for key in sorted(seen))


def _refuse_other_candidates(
    block: Block, first: tuple[System, SystemRun], theirs: Mapping[str, RankRecord], second: tuple[System, SystemRun],
    mine: Mapping[str, RankRecord],
) -> None:
    for query_id in sorted(theirs.keys() & mine.keys()):
        a, b = theirs[query_id], mine[query_id]
        if (a.target, a.candidates_sha) != (b.target, b.candidates_sha):
            names = " and ".join(f"{system.label} ({run.folder})" for system, run in (first, second))
            raise ValueError(f"compared systems must rank the same candidates; {names} have other ones, for example "
                             f"for query {query_id} ({_where(block)}, split_seed {first[1].split_seed}); evaluate both "
                             "on one prepared data set")


def _where(block: Block) -> str:
    return f"{block.dataset}, {block.negatives} negatives, {block.split}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _short(folder: str, folders: Sequence[str]) -> str:
    """The last part of a folder's path, or as many parts as tell it from the others."""
    parts = folder.rstrip("/").split("/")
    others = [other for other in folders if other != folder]
    for count in range(1, len(parts) + 1):
        tail = "/".join(parts[-count:])
        if not any(f"/{other.rstrip('/')}".endswith(f"/{tail}") for other in others):
            return tail
    return folder
