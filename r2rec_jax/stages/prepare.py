"""The prepare stage: data to frozen users, queries, candidates and chains.

A prepared folder is what every system reads, ours and the baselines:

    manifest.json            configuration, counts, sha256 of the sources and of every file here
    interactions.npz         the events and which of them are training edges
    users.jsonl items.jsonl  raw ids and what the source says, by index
    queries-<hash>.jsonl     the tasks and their candidates, by raw id (from ``data.split_seed`` alone)
    chains-<hash>.jsonl      the interaction chains of every query (from ``train_seed``)

The folder is written beside its place and renamed when it is whole. The same configuration and sources give the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax import progress
from r2rec_jax.config import DataConfig, GraphConfig, TrainConfig, as_plain
from r2rec_jax.data.fetch import locate
from r2rec_jax.data.interactions import Dataset, Interactions, Item, User
from r2rec_jax.data.movielens import load_movielens
from r2rec_jax.data.queries import SPLITS, Query, Split, load_queries, read_lines, save_queries, write_lines
from r2rec_jax.data.splits import draw_queries, find_positives, item_edges, make_query, training_edges
from r2rec_jax.graph.bipartite import Bipartite, build
from r2rec_jax.graph.chains import Chain, sample_chains

if TYPE_CHECKING:
    from r2rec_jax.stages.workspace import Workspace

FORMAT = 1
_EVENT_ARRAYS = ("user_idx", "item_idx", "rating", "timestamp", "place", "offsets")


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
        return _draw_chains(self.graph, self.dataset, [query], self.graph_config,
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
        manifest = _read_manifest(path)
        for name, expected in manifest["files"].items():
            found = _sha256(folder / name)
            if found != expected:
                raise ValueError(f"the sha256 of {name} must be {expected[:16]}...; got {found[:16]}...: the file was "
                                 f"changed; prepare the data again ({folder})")
        dataset, training = _read_dataset(folder, manifest)
        queries: dict[Split, list[Query]] = {split: [] for split in SPLITS}
        for query in load_queries(folder / manifest["queries"], dataset):
            queries[query.split].append(query)
        chains = {row["query_id"]: tuple(_chain_from(row["user_id"], chain, dataset) for chain in row["chains"])
                  for row in read_lines(folder / manifest["chains"])}
        return cls(folder, dataset, training, queries, chains, manifest["counts"], manifest)


def prepare(config: TrainConfig, folder: Path | str) -> Prepared:
    """Find and read the data, draw queries and chains, and freeze them to ``folder``.

    Args:
        config: ``data``, ``graph`` and ``train_seed`` are read.
        folder: is created; an older prepared folder there is replaced.

    Returns:
        What was written. ``counts`` holds users, items, interactions, positives, training_edges, density, the notes of
        the reader (rows, duplicates, ...), the query counts of :func:`~r2rec_jax.data.splits.draw_queries`, and
        ``chain_coverage``: split -> number of distinct chains -> queries.

    Raises:
        ValueError: bad data or settings; nothing is left half-written.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    source = locate(config.data)
    progress.say(f"prepare: reading {config.data.name} from {source}")
    dataset = load_movielens(config.data.name, source, config.data.split_seed)
    queries = draw_queries(dataset, config.data)
    training = training_edges(dataset, config.data)
    graph = build(dataset, training)
    chains = _draw_chains(graph, dataset, queries.all(), config.graph, config.train_seed)
    counts = _count_dataset(dataset, training, config.data) | dict(queries.counts) | {
        "chain_coverage": {split: _coverage(queries.by_split[split], chains, config.graph.chains) for split in SPLITS},
        "repeated_chains": sum(len(found) - len(set(found)) for found in chains.values()),
    }
    plain = as_plain(config)
    where = ("path", "cache_dir")
    manifest = {
        "format": FORMAT,
        "dataset": dataset.name,
        "domain": dataset.domain,
        "rating_scale": list(dataset.rating_scale),
        "config": {"data": {key: value for key, value in plain["data"].items() if key not in where},
                   "graph": plain["graph"], "train_seed": config.train_seed},
        "sources": dict(dataset.sources),
        "notes": dict(dataset.notes),
        "counts": counts,
    }
    manifest = _write(folder, dataset, training, queries.all(), chains, manifest)
    return Prepared(folder, dataset, training, queries.by_split, chains, counts, manifest)


def prepare_stage(work: Workspace) -> dict[str, Any]:
    """The ``prepare`` stage of a run: fills its folder and reports the counts."""
    prepared = prepare(work.config, work.run.folder("prepare"))
    return {"counts": dict(prepared.counts), "queries": prepared.manifest["queries"],
            "chains": prepared.manifest["chains"]}


def _draw_chains(graph: Bipartite, dataset: Dataset, queries: Sequence[Query], config: GraphConfig, seed: int,
                 ) -> dict[str, tuple[Chain, ...]]:
    drawn = sample_chains(graph, dataset, [query.user_idx for query in queries], [query.place for query in queries],
                          chains=config.chains, seed=seed, before_target=config.before_target)
    return {query.query_id: chains for query, chains in zip(queries, drawn, strict=True)}


def _count_dataset(dataset: Dataset, training: NDArray[np.bool_], config: DataConfig) -> dict[str, Any]:
    events = dataset.interactions
    return {
        "users": len(dataset.users),
        "items": len(dataset.items),
        "interactions": len(events),
        "positives": int((events.rating > config.positive_above).sum()),
        "density": round(len(events) / (len(dataset.users) * len(dataset.items)), 6),
        "training_edges": int(training.sum()),
        **dataset.notes,
    }


def _coverage(queries: Sequence[Query], chains: Mapping[str, tuple[Chain, ...]], most: int) -> dict[str, int]:
    found = Counter(len(set(chains[query.query_id])) for query in queries)
    return {str(number): found[number] for number in range(most + 1)}


def _check_replaceable(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the output must be a folder; {folder} is a file; choose another")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "manifest.json").is_file():
        raise ValueError(f"the output must be a new, an empty or a prepared folder; {folder} holds other files; "
                         "choose another")


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path.name} must be in {path.parent}; the file is missing; prepare the data again")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _write(folder: Path, dataset: Dataset, training: NDArray[np.bool_], queries: Sequence[Query],
           chains: Mapping[str, tuple[Chain, ...]], manifest: dict[str, Any]) -> dict[str, Any]:
    """Write everything beside ``folder``, then put it in place; returns the manifest with the files' hashes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        arrays = {name: getattr(dataset.interactions, name) for name in _EVENT_ARRAYS}
        np.savez(new / "interactions.npz", training=training, **arrays)
        _write_rows(new / "users.jsonl", (asdict(user) for user in dataset.users))
        _write_rows(new / "items.jsonl", (asdict(item) for item in dataset.items))
        names = {"queries": save_queries(new, queries, dataset),
                 "chains": write_lines(new, "chains", (
                     {"query_id": query.query_id, "user_id": dataset.users[query.user_idx].user_id,
                      "chains": [_chain_row(chain, dataset) for chain in chains[query.query_id]]}
                     for query in queries))}
        files = {path.name: _sha256(path) for path in sorted(new.iterdir())}
        manifest = {**manifest, **names, "files": files}
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)
    return manifest


def _chain_row(chain: Chain, dataset: Dataset) -> list[Any]:
    """item0, neighbour, item1 by raw id, then the four ratings in hop order."""
    return [dataset.items[chain.item0].item_id, dataset.users[chain.neighbour].user_id,
            dataset.items[chain.item1].item_id, chain.rating_u0, chain.rating_n0, chain.rating_n1, chain.rating_u1]


def _chain_from(user_id: str, row: Sequence[Any], dataset: Dataset) -> Chain:
    return Chain(dataset.user_index(user_id), dataset.item_index(row[0]), dataset.user_index(row[1]),
                 dataset.item_index(row[2]), *map(float, row[3:]))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"manifest.json must be JSON; {path} is not; prepare the data again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ValueError(f"the format of {path} must be {FORMAT}; got {found!r}; prepare the data again")
    return manifest


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _read_dataset(folder: Path, manifest: Mapping[str, Any]) -> tuple[Dataset, NDArray[np.bool_]]:
    users = tuple(User(row["user_id"], tuple((key, value) for key, value in row["attributes"]))
                  for row in _read_rows(folder / "users.jsonl"))
    items = tuple(Item(row["item_id"], row["title"], row["year"], tuple(row["genres"]))
                  for row in _read_rows(folder / "items.jsonl"))
    with np.load(folder / "interactions.npz", allow_pickle=False) as arrays:
        interactions = Interactions(**{name: arrays[name] for name in _EVENT_ARRAYS})
        training = arrays["training"]
    low, high = manifest["rating_scale"]
    dataset = Dataset(manifest["dataset"], manifest["domain"], items, users, interactions, (low, high),
                      manifest["notes"], manifest["sources"])
    return dataset, training
