"""``python -m r2rec_jax.bench.recbole``: training steps of our classical models against RecBole's, on the same batch.

RecBole 1.2.1 names things that NumPy 2 and SciPy 1.13 have removed (``np.float_``, ``dok_matrix._update``), so it runs
in a Python of its own, which the two sides' threads and memory are kept apart by as well:

    python3 -m venv ~/recbole
    ~/recbole/bin/pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
    ~/recbole/bin/pip install recbole==1.2.1 'numpy<2' 'scipy<1.13' 'pandas<3'
    python -m r2rec_jax.bench.recbole --recbole_python ~/recbole/bin/python --data_path /path/to/ml-1m

What is measured: one update of a training batch of MovieLens-1M: forward pass, loss, backward pass, Adam; making the
batch is not in it. Ours is the update that training runs, which also guards against values that are not finite. Both
sides have the same threads, widths, layers, dropout and loss, and the same real positions or pairs; what packing saves
against padding counts, as it does in training. The sides take turns; figures are medians over turns.

SASRec and GRU4Rec stand twice. In ``step_ms`` RecBole's network is asked at every place of a window, as ours is, which
its class does not do of itself. In ``targets_per_s`` it trains as it comes: a row for each target, which repeats a
history once a target. GraphSAGE is not in RecBole; a plain PyTorch module of the same model stands in.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r2rec_jax import progress
from r2rec_jax.baselines.classical import NAMES, config_class, make_model
from r2rec_jax.baselines.events import Events, events_from
from r2rec_jax.baselines.model import Recommender
from r2rec_jax.baselines.update import first_state, make_update
from r2rec_jax.bench.recbole_batches import Work, works_of
from r2rec_jax.config import DataConfig, as_plain, fingerprint
from r2rec_jax.data.movielens import load_movielens
from r2rec_jax.data.splits import training_edges
from r2rec_jax.evaluation.tables import result_file
from r2rec_jax.stages.cli import make_parser, parse, run_entry, write_json

DESCRIPTION = "Time training steps of the classical models against RecBole 1.2.1 on the same batch."
MODELS = tuple(name for name in NAMES if name not in ("popularity", "item-knn", "ease"))
TURN_S = 0.5
"""A turn takes as many steps as fill about this time, at least one."""

Steps = Callable[[int], dict[str, float]]
"""``steps(n)``: do ``n`` updates; {"seconds", "loss"}."""


def our_steps(model: Recommender, batch: Any) -> Steps:
    """Updates of our training loop's program, compiled, from fresh parameters on."""
    optimizer = model.optimizer()
    state = first_state(model, optimizer, jax.random.key(0))
    constants = jax.tree.map(jnp.asarray, model.constants)
    key = jax.random.key(1)
    program = jax.jit(make_update(model, optimizer), donate_argnums=0).lower(state, batch, constants, key).compile()

    def steps(n: int) -> dict[str, float]:
        nonlocal state
        zero = jnp.zeros((), jnp.int32)
        state = jax.block_until_ready(replace(state, loss_sum=jnp.zeros(()), losses=zero))
        started = time.perf_counter()
        for _ in range(n):
            state = program(state, batch, constants, key)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - started
        if int(state.losses) != n:
            raise RuntimeError(f"all {n} updates of {model.name} must be finite; {int(state.losses)} were")
        return {"seconds": seconds, "loss": float(state.loss_sum) / n}

    return steps


class RecBole:
    """RecBole's process; use it as a context manager's value (:func:`recbole`)."""

    def __init__(self, process: subprocess.Popen[str], folder: Path, threads: int) -> None:
        self.process, self.folder, self.threads = process, folder, threads
        self.versions: dict[str, str] = {}

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            RuntimeError: it failed, or the process has ended.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError("RecBole's process has ended; what it printed above says why")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"RecBole's process failed: {answer['error']}")
        return answer

    def steps(self, work: Work) -> Steps:
        """Updates of RecBole's model from fresh parameters on."""
        path = self.folder / "batch.npz"
        np.savez(path, allow_pickle=False, **work.arrays)
        request = {"op": "load", "model": work.model, "settings": work.settings, "n_users": work.n_users,
                   "n_items": work.n_items, "lr": work.lr, "weight_decay": work.weight_decay,
                   "threads": self.threads, "arrays": str(path)}
        self.versions = self.ask(request)["versions"]
        return lambda n: self.ask({"op": "steps", "n": n})


@contextmanager
def recbole(python: str, threads: int) -> Iterator[RecBole]:
    """Start RecBole's process, in an empty folder (it writes logs where it stands), and end it.

    Raises:
        ValueError: there is no such program.
    """
    worker = Path(__file__).with_name("recbole_worker.py")
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            process = subprocess.Popen([Path(python).expanduser(), "-I", "-W", "ignore", worker], cwd=folder, text=True,
                                       env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        except OSError as error:
            raise ValueError(f"--recbole_python must be the Python of an environment with RecBole; {python} cannot be "
                             f"started ({error.strerror}); python -m pydoc r2rec_jax.bench.recbole says how to make "
                             "one") from None
        with process:
            yield RecBole(process, Path(folder), threads)
            assert process.stdin is not None
            process.stdin.close()


def take_turns(ours: Steps, theirs: Steps, repeats: int) -> tuple[list[float], list[float]]:
    """Seconds a step of either side, a value a turn; the sides alternate, and the first turns are not counted."""
    counts = []
    for steps in (ours, theirs):
        first = steps(1)["seconds"]
        counts.append(1 if first > 2 * TURN_S else max(1, round(TURN_S / steps(1)["seconds"])))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for side, steps, count in zip(seconds, (ours, theirs), counts, strict=True):
            side.append(steps(count)["seconds"] / count)
    return seconds


def compare(model: Recommender, batch: Any, other: RecBole, repeats: int) -> list[dict[str, Any]]:
    """Result rows of a model: ratio > 1 says that ours is faster.

    ``spread`` is (largest - smallest) / median over the ratios of the turns.
    """
    ours, rows = our_steps(model, batch), []
    works = works_of(model, batch)
    for work in works:
        augmented = work is not works[0]
        mine, its = take_turns(ours, other.steps(work), max(3, repeats // 2) if augmented else repeats)
        per_step = [statistics.median(side) for side in (mine, its)]
        share = works[0].targets / work.targets
        ratios = [share * b / a for a, b in zip(mine, its, strict=True)]
        if augmented:
            values = [works[0].targets / per_step[0], work.targets / per_step[1]]
        else:
            values = [1e3 * seconds for seconds in per_step]
        rows.append({
            "work": f"{model.name} update", "metric": "targets_per_s" if augmented else "step_ms",
            "against": "plain torch" if work.model == "GraphSAGE" else "recbole " + other.versions.get("recbole", "?"),
            "ours": values[0], "recbole": values[1], "ratio": share * per_step[1] / per_step[0],
            "repeats": len(ratios), "spread": (max(ratios) - min(ratios)) / statistics.median(ratios),
            "targets": works[0].targets, "recbole_targets": work.targets, "cells": _cells(batch),
            "recbole_cells": work.cells})
    return rows


def _cells(batch: Any) -> int:
    """Tokens of a batch of sequences, padding included; 0 without sequences."""
    return int(batch.items.size) if hasattr(batch, "items") else 0


def movielens_1m(path: str) -> Events:
    """The training edges of MovieLens-1M."""
    config = DataConfig(name="ml-1m")
    dataset = load_movielens("ml-1m", path, config.split_seed)
    return events_from(dataset, training_edges(dataset, config), config.positive_above)


def limit_threads(threads: int) -> None:
    """Keep this process and those it starts on ``threads`` cores; XLA takes as many threads as there are cores.

    Raises:
        ValueError: there are fewer, or the system cannot do it.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"--threads needs a system that can bind a process to cores (Linux); got {sys.platform}")
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(cores):
        raise ValueError(f"--threads must be in 1..{len(cores)}, the cores of this machine; got {threads}")
    os.sched_setaffinity(0, cores[:threads])


def run(argv: Sequence[str] | None = None) -> None:
    """Measure all models and write the result file."""
    parser = make_parser("r2rec_jax.bench.recbole", DESCRIPTION)
    parser.add_argument("--recbole_python", type=str, required=True, help="Python of an environment with RecBole")
    parser.add_argument("--data_path", type=str, required=True, metavar="DIR", help="folder of MovieLens-1M")
    parser.add_argument("--models", type=str, default=",".join(MODELS), help="names separated by commas")
    parser.add_argument("--repeats", type=int, default=7, help="turns of either side")
    parser.add_argument("--threads", type=int, default=2, help="of either side")
    parser.add_argument("--out", type=str, default="results/baselines_step_speed.json", help="the result file")
    given = parse(parser, argv)
    names = given.models.split(",")
    if not set(names) <= set(MODELS):
        raise ValueError(f"--models must be names among {', '.join(MODELS)}, separated by commas; got {given.models!r}")
    if given.repeats < 1:
        raise ValueError(f"--repeats must be >= 1; got {given.repeats}")
    limit_threads(given.threads)
    events = movielens_1m(given.data_path)
    settings = {name: as_plain(config_class(name)()) for name in names}
    rows = []
    with recbole(given.recbole_python, given.threads) as other:
        for name in names:
            model = make_model(name, None, events)
            for row in compare(model, next(iter(model.batches(seed=0, epoch=0))), other, given.repeats):
                rows.append(row)
                progress.say(f"{row['work']}: {row['metric']} {row['ours']:.4g} against {row['recbole']:.4g} of "
                             f"{row['against']}, ratio {row['ratio']:.2f} (spread {row['spread']:.2f})")
        versions = other.versions
    write_json(given.out, result_file(
        "one training update of a MovieLens-1M batch, ours against RecBole's model (a plain torch one for GraphSAGE)",
        rows, fingerprint(settings), settings=settings, threads=given.threads, recbole_versions=versions))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry(run, argv)


if __name__ == "__main__":
    sys.exit(main())
