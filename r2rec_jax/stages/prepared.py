"""A prepared folder, read back: what every system learns from and is measured on.

    manifest.json            configuration, counts, sha256 of the sources and of every file here
    interactions.npz, users.jsonl, items.jsonl    the data set (see ``data/storage.py``)
    queries-<hash>.jsonl     the tasks and their candidates, by raw id (from ``data.split_seed`` alone)
    chains-<hash>.jsonl      the interaction chains of every query (from ``train_seed``)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.config import DataConfig, GraphConfig
from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.queries import SPLITS, Query, Split, load_queries, read_lines
from r2rec_jax.data.splits import find_positives, item_edges, make_query
from r2rec_jax.data.storage import read_dataset
from r2rec_jax.graph.bipartite import Bipartite, build
from r2rec_jax.graph.chains import Chain, sample_chains

FORMAT = 1


@dataclass(frozen=True, eq=False)
class Prepared:
    """A prepared folder in memory.

    Attributes:
        folder: where it lies.
        dataset: users, items and all events.
        training: bool [E], which events are training edges.
        queries: the frozen queries of every split, in file order.
        chains: query_id -> its chains.
        counts: what was counted (see :func:`prepare`).
        manifest: the whole manifest.
    """

    folder: Path
    dataset: Dataset
    training: NDArray[np.bool_]
    queries: Mapping[Split, Sequence[Query]]
    chains: Mapping[str, tuple[Chain, ...]]
    counts: Mapping[str, Any]
    manifest: Mapping[str, Any]

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
        positives = find_positives(self.dataset, self.data_config)
        if not positives.eligible[user_idx]:
            have = int(np.diff(positives.offsets)[user_idx])
            raise ValueError(f"a user needs at least {self.data_config.min_positives} ratings above "
                             f"{self.data_config.positive_above:g}; user {user_id!r} has {have}; name another user")
        row = int(positives.from_the_end(user_idx, 1 if split == "test" else 2))
        return make_query(self.dataset, self.data_config, split, row, item_edges(self.dataset, self.training))

    def chains_of(self, query: Query) -> tuple[Chain, ...]:
        """The chains of a query, frozen or drawn now (the draw does not depend on other queries)."""
        if query.query_id in self.chains:
            return self.chains[query.query_id]
        return draw_chains(self.graph, self.dataset, [query], self.graph_config,
                            self.manifest["config"]["train_seed"])[query.query_id]

    @classmethod
    def load(cls, folder: Path | str) -> Prepared:
        """Read a prepared folder back and check every file against the manifest.

        Raises:
            ValueError: the folder is no prepared one, or a file is missing or was changed (named).
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        if not path.is_file():
            raise ValueError(f"{folder} must hold a manifest.json; the file is missing; prepare the data first "
                             "(python -m r2rec_jax.prepare)")
        manifest = read_manifest(path)
        for name, expected in manifest["files"].items():
            found = sha256_of_member(folder / name)
            if found != expected:
                raise ValueError(f"the sha256 of {name} must be {expected[:16]}...; got {found[:16]}...: the file was "
                                 f"changed; prepare the data again ({folder})")
        dataset, training = read_dataset(folder, manifest)
        queries: dict[Split, list[Query]] = {split: [] for split in SPLITS}
        for query in load_queries(folder / manifest["queries"], dataset):
            queries[query.split].append(query)
        chains = {row["query_id"]: tuple(_chain_from(row["user_id"], chain, dataset) for chain in row["chains"])
                  for row in read_lines(folder / manifest["chains"])}
        return cls(folder, dataset, training, queries, chains, manifest["counts"], manifest)


def draw_chains(graph: Bipartite, dataset: Dataset, queries: Sequence[Query], config: GraphConfig, seed: int,
                ) -> dict[str, tuple[Chain, ...]]:
    """query_id -> the chains of each query; a draw does not depend on the other queries."""
    drawn = sample_chains(graph, dataset, [query.user_idx for query in queries], [query.place for query in queries],
                          chains=config.chains, seed=seed, before_target=config.before_target)
    return {query.query_id: chains for query, chains in zip(queries, drawn, strict=True)}


def chain_row(chain: Chain, dataset: Dataset) -> list[Any]:
    """item0, neighbour, item1 by raw id, then the four ratings in hop order."""
    return [dataset.items[chain.item0].item_id, dataset.users[chain.neighbour].user_id,
            dataset.items[chain.item1].item_id, chain.rating_u0, chain.rating_n0, chain.rating_n1, chain.rating_u1]


def _chain_from(user_id: str, row: Sequence[Any], dataset: Dataset) -> Chain:
    return Chain(dataset.user_index(user_id), dataset.item_index(row[0]), dataset.user_index(row[1]),
                 dataset.item_index(row[2]), *map(float, row[3:]))


def sha256_of_member(path: Path) -> str:
    """Sha256 of a file of a prepared folder.

    Raises:
        ValueError: the file is missing.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} must be in {path.parent}; the file is missing; prepare the data again")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a prepared folder.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"manifest.json must be JSON; {path} is not; prepare the data again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ValueError(f"the format of {path} must be {FORMAT}; got {found!r}; prepare the data again")
    return manifest
