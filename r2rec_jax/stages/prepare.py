"""The prepare stage: data to frozen users, queries, candidates and chains.

The folder (its files are described in ``stages/prepared.py``) is written beside its place and renamed when it is whole.
The same configuration and sources give the same bytes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax import progress
from r2rec_jax.config import DataConfig, TrainConfig
from r2rec_jax.data.fetch import locate
from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.load import load_dataset
from r2rec_jax.data.queries import SPLITS, Query, save_candidates, save_queries, write_lines
from r2rec_jax.data.splits import Queries, draw_queries, training_edges
from r2rec_jax.data.storage import write_dataset
from r2rec_jax.files import write_json
from r2rec_jax.graph.bipartite import build
from r2rec_jax.graph.chains import Chain
from r2rec_jax.models.folders import new_folder, place_of
from r2rec_jax.stages.manifest import FORMAT, RECORDED, check_replaceable, settings_of, sha256_of_member
from r2rec_jax.stages.prepared import Prepared, chain_row, draw_chains, without_candidates

if TYPE_CHECKING:
    from r2rec_jax.stages.workspace import Workspace


def prepare(config: TrainConfig, folder: Path | str, *, seconds: dict[str, float] | None = None) -> Prepared:
    """Find and read the data, draw queries and chains, and freeze them to ``folder``.

    Args:
        config: ``data``, ``graph`` and ``train_seed`` are read.
        folder: is created; an older prepared folder there is replaced, if nothing else lies in it.
        seconds: is filled with the wall time of every phase: read, queries, graph, chains, write.

    Returns:
        What was written. ``counts`` holds users, items, interactions, positives, training_edges, density, the notes of
        the reader (rows, duplicates, ...), the query counts of :func:`~r2rec_jax.data.splits.draw_queries`, and
        ``chain_coverage``: split -> number of distinct chains that prompts may show -> queries. Those that hold a
        candidate (with ``disliked`` negatives) are counted apart, as ``left_out_chains``.

    Raises:
        ValueError: bad data or settings, other files in ``folder``, or it is the current one; nothing is left
            half-written.
    """
    folder = Path(folder)
    check_replaceable(place_of(folder))
    source = locate(config.data)
    progress.say(f"prepare: reading {config.data.name} from {source}")
    with _timed(seconds, "read"):
        dataset = load_dataset(config.data, source)
    with _timed(seconds, "queries"):
        queries = draw_queries(dataset, config.data)
    with _timed(seconds, "graph"):
        training = training_edges(dataset, config.data)
        graph = build(dataset, training)
    with _timed(seconds, "chains"):
        chains = draw_chains(graph, dataset, queries.all(), config.graph, config.train_seed)
    del graph  # not needed for writing, and as large as the events
    counts = _count_dataset(dataset, training, config.data) | dict(queries.counts) | {
        "chain_coverage": {split: _coverage(queries.by_split[split], chains, config.graph.chains) for split in SPLITS},
        "repeated_chains": sum(len(found) - len(set(found)) for found in chains.values()),
        "left_out_chains": sum(len(set(chains[query.query_id])) - len(without_candidates(chains[query.query_id], query))
                               for query in queries.all()),
    }
    for sampler, reason in queries.left_out.items():
        progress.say(f"prepare: no candidates by {sampler}: {reason}")
    manifest = {
        "format": FORMAT,
        "dataset": dataset.name,
        "domain": dataset.domain,
        "rating_scale": list(dataset.rating_scale),
        "config": settings_of(config),
        "sources": dict(dataset.sources),
        "notes": dict(dataset.notes),
        "counts": counts,
        "negatives_left_out": dict(queries.left_out),
    }
    with _timed(seconds, "write"):
        manifest = _write(folder, dataset, training, queries, chains, manifest)
    return Prepared(folder, dataset, training, queries.by_split, chains, counts, manifest, queries.candidates)


@contextmanager
def _timed(seconds: dict[str, float] | None, phase: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    if seconds is not None:
        seconds[phase] = time.perf_counter() - started


def prepare_stage(work: Workspace) -> dict[str, Any]:
    """The ``prepare`` stage of a run: fills its folder and reports the counts."""
    prepared = prepare(work.config, work.run.folder("prepare"))
    return {name: prepared.manifest[name] for name in RECORDED}


def _count_dataset(dataset: Dataset, training: NDArray[np.bool_], config: DataConfig) -> dict[str, Any]:
    events = dataset.interactions
    density = len(events) / (len(dataset.users) * len(dataset.items))
    return {
        "users": len(dataset.users),
        "items": len(dataset.items),
        "interactions": len(events),
        "positives": int((events.rating > config.positive_above).sum()),
        "density": round(density, 6) if density > 1e-3 else float(f"{density:.3g}"),
        "training_edges": int(training.sum()),
        **dataset.notes,
    }


def _coverage(queries: Sequence[Query], chains: Mapping[str, tuple[Chain, ...]], most: int) -> dict[str, int]:
    found = Counter(len(without_candidates(chains[query.query_id], query)) for query in queries)
    return {str(number): found[number] for number in range(most + 1)}


def _write(folder: Path, dataset: Dataset, training: NDArray[np.bool_], queries: Queries,
           chains: Mapping[str, tuple[Chain, ...]], manifest: dict[str, Any]) -> dict[str, Any]:
    """Write everything beside ``folder``, then put it in place; returns the manifest with the files' hashes."""
    with new_folder(folder, replace=True) as new:
        write_dataset(new, dataset, training)
        names = {"queries": save_queries(new, queries.all(), dataset),
                 "candidates": {sampler: save_candidates(new, sampler, lists, dataset)
                                for sampler, lists in queries.candidates.items()},
                 "chains": write_lines(new, "chains", (
                     {"query_id": query.query_id, "user_id": dataset.users[query.user_idx].user_id,
                      "chains": [chain_row(chain, dataset) for chain in chains[query.query_id]]}
                     for query in queries.all()))}
        files = {path.name: sha256_of_member(path) for path in sorted(new.iterdir())}
        manifest = {**manifest, **names, "files": files}
        write_json(new / "manifest.json", manifest, indent=2)
    return manifest
