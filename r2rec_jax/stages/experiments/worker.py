"""The process behind one task of a list: trains what is missing, evaluates, and says what it left.

    python -m r2rec_jax.stages.experiments.worker FOLDER PARENT [CPUS]

``FOLDER/task.json`` says what, PARENT is a process id, CPUS are the numbers of those it may use (``0,1``; default all).
A process of its own, so that a failure or a full memory ends one experiment and not the list. It ends with its parent,
also with one that was gone before this process began, and waits for a process that an earlier list has left behind and
that is about to end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from r2rec_jax.config import DataConfig
from r2rec_jax.config.experiments import BASELINES
from r2rec_jax.files import held, read_json, write_json
from r2rec_jax.stages.cli import run_entry
from r2rec_jax.stages.experiments.completions import write_completions
from r2rec_jax.stages.experiments.running import STOPPED_S

LOOK_S = 1.0
"""How often a process looks whether its parent, or one that was left behind, is still there."""


def end_with(parent: int) -> None:
    """Ask this process to stop when its parent is gone."""
    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def alone(folder: Path, patience_s: float = STOPPED_S) -> Iterator[None]:
    """Hold a task's folder, as soon as nobody else does.

    Raises:
        ValueError: another process holds it for longer than ``patience_s``.
    """
    deadline = time.monotonic() + patience_s
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(held(folder / "lock", str(folder), "stop that process"))
                break
            except ValueError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_S)
        yield


def run_trial(order: Mapping[str, Any], overwrite: bool = False) -> list[dict[str, Any]]:
    """Train and evaluate; one entry an evaluation: what it was, and its files."""
    from r2rec_jax.progress import say
    from r2rec_jax.stages.evaluation import evaluate_run, evaluation_files, evaluation_queries, likelihood_suffix
    from r2rec_jax.stages.pipeline import run_stages
    from r2rec_jax.stages.run import RunFolder, config_from_plain
    from r2rec_jax.stages.systems import system_name
    from r2rec_jax.stages.workspace import Workspace

    config = config_from_plain(order["config"])
    run_stages(config, order["stages"], overwrite=overwrite, reuse=order["reuse"])
    work = Workspace(RunFolder.existing(config.run_dir))
    left = []
    with work.run.locked():
        for exam in order["exams"]:
            asked = replace(config.evaluate, split=order["split"], method=exam["method"], chains=exam["chains"])
            files = evaluation_files(work, exam["checkpoint"], asked)
            evaluate_run(work, asked, [exam["checkpoint"]], files.results)
            system = system_name(work.config, exam["checkpoint"]) + likelihood_suffix(asked)
            say(f"{system} with {exam['chains']} chains: evaluated")
            left.append({**exam, "system": system, **{name: str(path) for name, path in vars(files).items()},
                         "queries": [query.query_id for query in evaluation_queries(work, asked)]})
    return left


def run_baselines(order: Mapping[str, Any], overwrite: bool = False) -> list[dict[str, Any]]:
    """Train and judge the classical models; one entry a model: its folder."""
    from r2rec_jax.stages.baselines import BaselineConfig
    from r2rec_jax.stages.baselines import run_baselines as run

    config = BaselineConfig(data=DataConfig(**order["data"]), models=order["models"], seeds=order["seeds"],
                            out=order["out"], results=None, overwrite=overwrite)
    run(config)
    return [{"system": name, "folder": str(config.seed_folder(seed) / name)}
            for seed in config.seeds for name in config.models]


def run(argv: Sequence[str] | None) -> None:
    """Read the order, carry it out, and write down that it is done."""
    name, parent, *share = sys.argv[1:] if argv is None else argv
    cpus = [int(cpu) for given in share for cpu in given.split(",")]
    if cpus:
        os.sched_setaffinity(0, cpus)  # before XLA counts them
    folder = Path(name)
    task = read_json(folder / "task.json", "start the list again", key=str, order=dict)
    end_with(int(parent))
    with alone(folder):
        started = time.monotonic()
        if task["order"]["kind"] == BASELINES:
            left = run_baselines(task["order"], task["overwrite"])
        else:
            left = run_trial(task["order"], task["overwrite"])
            write_completions(folder / "completions.txt", task["order"], left)
        write_json(folder / "done.json", {"key": task["key"], "seconds": round(time.monotonic() - started, 1),
                                          **({"cpus": len(cpus)} if cpus else {}), "left": left})


if __name__ == "__main__":
    sys.exit(run_entry(run))
