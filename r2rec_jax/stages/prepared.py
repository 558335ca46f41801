"""A prepared folder, read back: what every system learns from and is measured on.

    manifest.json            configuration, counts, sha256 of the sources and of every file here
    event_*.npy, users.parquet, items.parquet     the data set (see ``data/storage.py``)
    queries-<hash>.jsonl     the tasks, by raw id (from ``data.split_seed`` alone)
    candidates-<sampler>-<hash>.jsonl    their candidates, by raw id (from ``data.split_seed`` alone): of all queries
                             for ``data.negatives``, of test and validation queries for the other samplers
    chains-<hash>.jsonl      the interaction chains of every query (from ``train_seed``)

The folder is read back whole or not at all: a file that is missing, changed or none of these is refused by its name,
and so is a folder that was prepared with other settings or from other sources than the reader expects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.config import DataConfig, GraphConfig, TrainConfig
from r2rec_jax.data.candidates import CandidateLists, ItemWeights, Negatives
from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.queries import (
    EVALUATED,
    SPLITS,
    Query,
    Split,
    check_lists,
    load_candidates,
    load_queries,
    read_lines,
    with_lists,
)
from r2rec_jax.data.splits import item_edges, item_weights, make_query
from r2rec_jax.data.storage import read_dataset
from r2rec_jax.data.targets import Targets, find_positives, find_targets
from r2rec_jax.graph.bipartite import Bipartite, build
from r2rec_jax.graph.chains import Chain, sample_chains
from r2rec_jax.stages.manifest import check_folder, check_recorded, check_settings

_SHARED = ("data_config", "graph_config", "graph", "item_scores", "_targets", "_weights")
"""Cached properties that do not depend on the candidates."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared folder in memory.

    Attributes:
        folder: where it lies.
        dataset: users, items and all events.
        training: bool [E], which events are training edges.
        queries: the frozen queries of every split, in file order, with the candidates of ``negatives``.
        chains: query_id -> its chains.
        counts: what was counted (see :func:`prepare`).
        manifest: the whole manifest.
        candidates: sampler -> query_id -> candidates (see :class:`~r2rec_jax.data.splits.Queries`).
        chosen: the sampler of test and validation queries where it is not that of the settings.
    """

    folder: Path
    dataset: Dataset
    training: NDArray[np.bool_]
    queries: Mapping[Split, Sequence[Query]]
    chains: Mapping[str, tuple[Chain, ...]]
    counts: Mapping[str, Any]
    manifest: Mapping[str, Any]
    candidates: Mapping[Negatives, CandidateLists] = field(default_factory=dict)
    chosen: Negatives | None = None

    @property
    def negatives(self) -> Negatives:
        """The sampler whose lists test and validation queries have here."""
        return self.chosen or self.data_config.negatives

    def with_negatives(self, negatives: Negatives) -> Prepared:
        """The same data with another sampler's lists for test and validation queries; training queries keep theirs.

        Raises:
            ValueError: no such lists were frozen (says why).
        """
        if negatives == self.negatives:
            return self
        if negatives not in self.candidates:
            why = self.manifest.get("negatives_left_out", {}).get(negatives, "they were not prepared")
            raise ValueError(f"negatives must be one of {', '.join(self.candidates)}, whose candidates lie in "
                             f"{self.folder}; got {negatives!r}: {why}")
        lists = self.candidates[negatives]
        queries = {split: with_lists(self.queries[split], lists) if split in EVALUATED else self.queries[split]
                   for split in SPLITS}
        other = replace(self, queries=queries, chosen=negatives)
        other.__dict__.update({name: self.__dict__[name] for name in _SHARED if name in self.__dict__})
        return other

    @cached_property
    def data_config(self) -> DataConfig:
        """The settings that the queries were drawn with (paths left out)."""
        return DataConfig(**self.manifest["config"]["data"])

    @cached_property
    def graph_config(self) -> GraphConfig:
        """The settings that the chains were drawn with."""
        return GraphConfig(**self.manifest["config"]["graph"])

    @cached_property
    def graph(self) -> Bipartite:
        """The graph of the training edges."""
        return build(self.dataset, self.training)

    @cached_property
    def item_scores(self) -> NDArray[np.float64]:
        """Popularity: how many positive training edges every item has, float64 [I]."""
        liked = self.dataset.interactions.rating > self.data_config.positive_above
        return item_edges(self.dataset, self.training & liked)

    @cached_property
    def by_id(self) -> Mapping[str, Query]:
        """query_id -> frozen query."""
        return {query.query_id: query for split in SPLITS for query in self.queries[split]}

    def asked(self, split: Split) -> list[Query]:
        """The frozen queries of a split that is to be evaluated.

        Raises:
            ValueError: there is none, which ``data.validation_users`` 0 allows.
        """
        if not self.queries[split]:
            raise ValueError(f"data.validation_users must be >= 1 to evaluate {split} queries; got "
                             f"{self.data_config.validation_users}, so that {self.folder} has none; take another "
                             "split, or prepare anew with more")
        return list(self.queries[split])

    def history(self, query: Query) -> list[tuple[int, float]]:
        """(item_idx, rating) of what a query may see of its own user: all events before the target, oldest first."""
        return self.dataset.history(query.user_idx, query.place)

    def liked(self, query: Query, n: int) -> list[tuple[int, float]]:
        """(item_idx, rating) of the ``n`` latest likes before the target, most recent first."""
        likes = [event for event in self.history(query) if event[1] > self.data_config.positive_above]
        return likes[::-1][:n]

    def find_query(self, user_id: str, split: Split = "test") -> Query:
        """The ``test`` or ``validation`` query of any eligible user, frozen or drawn now by the same rules.

        Raises:
            ValueError: no such user, or one with too few likes.
        """
        user_idx = self.dataset.user_index(user_id)
        for query in self.queries[split]:
            if query.user_idx == user_idx:
                return query
        if split not in ("test", "validation"):
            raise ValueError(f"split must be test or validation for a user without frozen queries; got {split!r}")
        config = replace(self.data_config, negatives=self.negatives)
        targets = self._targets.test if split == "test" else self._targets.validation
        row = targets[self.dataset.interactions.user_idx[targets] == user_idx]
        if not len(row):
            raise ValueError(self._why_not(user_idx, split))
        return make_query(self.dataset, config, split, int(row[0]), self._weights)

    @cached_property
    def _targets(self) -> Targets:
        return find_targets(self.dataset, self.data_config)

    @cached_property
    def _weights(self) -> ItemWeights:
        return item_weights(self.dataset, self.training)

    def _why_not(self, user_idx: int, split: Split) -> str:
        config, user_id = self.data_config, self.dataset.users[user_idx].user_id
        if config.split == "global-time":
            return (f"a user needs a like behind the cut in time of the {split} queries, with at least "
                    f"{config.min_history} likes before it; user {user_id!r} has none; name another user")
        have = int(np.diff(find_positives(self.dataset, config).offsets)[user_idx])
        return (f"a user needs at least {config.min_positives} likes; user {user_id!r} has {have}; name another user")

    def chains_of(self, query: Query) -> tuple[Chain, ...]:
        """The chains of a query, frozen or drawn now (the draw does not depend on other queries)."""
        if query.query_id in self.chains:
            return self.chains[query.query_id]
        return draw_chains(self.graph, self.dataset, [query], self.graph_config,
                            self.manifest["config"]["train_seed"])[query.query_id]

    @classmethod
    def load(cls, folder: Path | str, *, config: TrainConfig | None = None,
             recorded: Mapping[str, Any] | None = None) -> Prepared:
        """Read a prepared folder back and check every file against the manifest.

        Args:
            folder: a folder of :func:`~r2rec_jax.stages.prepare.prepare`.
            config: when given, the settings that the folder must have been prepared with.
            recorded: when given, entries that the manifest must have (what the ``prepare`` stage reported).

        Raises:
            ValueError: the folder is no prepared one; a file is missing, was changed or does not belong there;
                settings, sources or counts are others than expected (named).
        """
        folder = Path(folder)
        manifest = check_folder(folder)
        if config is not None:
            check_settings(manifest, config, folder)
        check_recorded(manifest, recorded or {}, folder)
        dataset, training = read_dataset(folder, manifest)
        candidates: dict[Negatives, CandidateLists] = {
            name: load_candidates(folder / file, dataset) for name, file in manifest["candidates"].items()}
        configured = manifest["config"]["data"]["negatives"]
        queries: dict[Split, list[Query]] = {split: [] for split in SPLITS}
        for query in load_queries(folder / manifest["queries"], dataset, candidates[configured]):
            queries[query.split].append(query)
        evaluated = [query for split in EVALUATED for query in queries[split]]
        for name in candidates.keys() - {configured}:
            check_lists(evaluated, candidates[name], manifest["candidates"][name])
        chains = {row["query_id"]: tuple(_chain_from(row["user_id"], chain, dataset) for chain in row["chains"])
                  for row in read_lines(folder / manifest["chains"])}
        return cls(folder, dataset, training, queries, chains, manifest["counts"], manifest, candidates)


def draw_chains(graph: Bipartite, dataset: Dataset, queries: Sequence[Query], config: GraphConfig, seed: int,
                ) -> dict[str, tuple[Chain, ...]]:
    """query_id -> the chains of each query; a draw does not depend on the other queries."""
    drawn = sample_chains(graph, dataset, [query.user_idx for query in queries], [query.place for query in queries],
                          chains=config.chains, seed=seed, before_target=config.before_target)
    return {query.query_id: chains for query, chains in zip(queries, drawn, strict=True)}


def without_candidates(chains: Sequence[Chain], query: Query) -> tuple[Chain, ...]:
    """Those that prompts of a query show, each once.

    One that holds a candidate is not shown: of ``disliked`` negatives the user has rated some before, and since no
    chain holds the target, it would give away that these are not it.
    """
    candidates = set(query.candidates)
    return tuple(chain for chain in dict.fromkeys(chains) if not {chain.item0, chain.item1} & candidates)


def chain_row(chain: Chain, dataset: Dataset) -> list[Any]:
    """item0, neighbour, item1 by raw id, then the four ratings in hop order."""
    return [dataset.items[chain.item0].item_id, dataset.users[chain.neighbour].user_id,
            dataset.items[chain.item1].item_id, chain.rating_u0, chain.rating_n0, chain.rating_n1, chain.rating_u1]


def _chain_from(user_id: str, row: Sequence[Any], dataset: Dataset) -> Chain:
    return Chain(dataset.user_index(user_id), dataset.item_index(row[0]), dataset.user_index(row[1]),
                 dataset.item_index(row[2]), *map(float, row[3:]))
