"""The prepare stage: data to frozen users, queries, candidates and chains.

The folder (its files are described in ``stages/prepared.py``) is written beside its place and renamed when it is whole.
The same configuration and sources give the same bytes.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax import progress
from r2rec_jax.config import DataConfig, TrainConfig, as_plain
from r2rec_jax.data.fetch import locate
from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.movielens import load_movielens
from r2rec_jax.data.queries import SPLITS, Query, save_queries, write_lines
from r2rec_jax.data.splits import draw_queries, training_edges
from r2rec_jax.data.storage import write_dataset
from r2rec_jax.graph.bipartite import build
from r2rec_jax.graph.chains import Chain
from r2rec_jax.stages.prepared import FORMAT, Prepared, chain_row, draw_chains, sha256_of_member

if TYPE_CHECKING:
    from r2rec_jax.stages.workspace import Workspace


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
    chains = draw_chains(graph, dataset, queries.all(), config.graph, config.train_seed)
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


def _write(folder: Path, dataset: Dataset, training: NDArray[np.bool_], queries: Sequence[Query],
           chains: Mapping[str, tuple[Chain, ...]], manifest: dict[str, Any]) -> dict[str, Any]:
    """Write everything beside ``folder``, then put it in place; returns the manifest with the files' hashes."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        write_dataset(new, dataset, training)
        names = {"queries": save_queries(new, queries, dataset),
                 "chains": write_lines(new, "chains", (
                     {"query_id": query.query_id, "user_id": dataset.users[query.user_idx].user_id,
                      "chains": [chain_row(chain, dataset) for chain in chains[query.query_id]]}
                     for query in queries))}
        files = {path.name: sha256_of_member(path) for path in sorted(new.iterdir())}
        manifest = {**manifest, **names, "files": files}
        (new / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)
    return manifest
