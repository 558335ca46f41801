"""Finished stages of other runs, copied instead of run again: ``train --reuse DIR``.

A stage is taken when it has finished there under the very key it has here (settings, seeds, and the stages below), and
when the stages it builds on reported the same there and here: a search over GRPO's learning rate shares everything up
to SFT. What is copied is the stage's folder without its checkpoints (a finished stage is never resumed), its rows of
``metrics.jsonl`` and its TensorBoard events; ``stages.json`` says where it came from. A copy appears whole or not at
all; one that was cut off is made again, or the stage is run. Evaluations and exports are never taken.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from r2rec_jax.config import STAGES, as_plain
from r2rec_jax.data.fetch import changed_sources
from r2rec_jax.files import read_json
from r2rec_jax.models.folders import new_folder
from r2rec_jax.progress import say
from r2rec_jax.stages.keys import BESIDES, besides, builds_on, made_with, stage_key
from r2rec_jax.stages.run import CODE, FREE, RunFolder, read_stages
from r2rec_jax.training.metrics import JsonLines

TAKEN = tuple(stage for stage in STAGES if stage not in FREE)
PAID_ANSWERS = "endpoint"
"""A run's folder of a chat server's answers, which belong to its thoughts."""


def reuse_stages(run: RunFolder, stages: Sequence[str], folders: Sequence[str]) -> dict[str, str]:
    """Take what other runs have finished, the first that has it; say what was taken, and what was no run.

    Args:
        run: opened and held.
        stages: what is about to run.
        folders: of other runs.

    Returns:
        stage -> the folder it was taken from.
    """
    others = [Path(name).expanduser() for name in folders]
    for other in others:
        if not (other / "stages.json").exists():
            say(f"reuse: {other} holds no finished stage, nothing is taken from it")
    taken = {}
    for stage in (name for name in TAKEN if name in stages and not run.is_done(name)):
        for other in others:
            if other.resolve() != run.path.resolve() and _take(run, stage, other):
                say(f"{stage}: taken from {other}")
                taken[stage] = str(other)
                break
    return taken


def _take(run: RunFolder, stage: str, other: Path) -> bool:
    """Copy a stage if it is finished there under our key, and with what else it reads; whether it was."""
    entry = _finished(other).get(stage)
    if entry is None or not _same_below(run, stage, other):
        return False
    record = _record(other)
    if entry["key"] != stage_key(run.config, stage, made_with(record)):
        return False
    if stage in BESIDES and besides(record["config"], stage) != besides(as_plain(run.config), stage):
        return False
    if stage == "prepare" and (changed := changed_sources(run.config.data, entry["result"].get("sources", {}))):
        say(f"reuse: {other} was prepared from other data ({', '.join(changed)}), which is not taken")
        return False
    source = other / stage
    if not source.is_dir() and not (stage == "pretrain" and not run.config.trains_backbone):
        say(f"reuse: {source} is missing, {stage} is not taken from {other}")
        return False
    run.claim(stage)
    try:
        if source.is_dir():
            _copy(source, run.folder(stage))
        events = other / "tensorboard" / stage
        if events.is_dir():
            _copy(events, run.path / "tensorboard" / stage)
        if stage == "thoughts" and (other / PAID_ANSWERS).is_dir() and not (run.path / PAID_ANSWERS).exists():
            _copy(other / PAID_ANSWERS, run.path / PAID_ANSWERS)
    except (FileNotFoundError, shutil.Error):
        return _changed(run, stage, other)
    _copy_metrics(other / "metrics.jsonl", run.path / "metrics.jsonl", stage)
    if _finished(other).get(stage) != entry:
        return _changed(run, stage, other)
    run.mark_done(stage, entry["seconds"], entry["result"], reused_from=str(other.resolve()),
                  **{name: entry[name] for name in CODE if name in entry})
    return True


def _changed(run: RunFolder, stage: str, other: Path) -> bool:
    say(f"reuse: {stage} of {other} changed while it was copied, it is not taken")
    run.clear(stage)
    return False


def _finished(folder: Path) -> dict[str, Any]:
    return read_stages(folder, "run its stages again, or leave the folder out of --reuse")


def _record(folder: Path) -> dict[str, Any]:
    return read_json(folder / "run.json", "leave the folder out of --reuse", config=dict)


def _same_below(run: RunFolder, stage: str, other: Path) -> bool:
    """Whether what a stage builds on is done here, and came out as it did there."""
    done = _finished(other)
    return all(run.is_done(name) and name in done and run.result(name) == done[name]["result"]
               for name in builds_on(run.config, stage))


def _copy(source: Path, place: Path) -> None:
    with new_folder(place, replace=True) as new:
        shutil.copytree(source, new, ignore=shutil.ignore_patterns("checkpoints", ".*"), dirs_exist_ok=True)


def _copy_metrics(source: Path, place: Path, stage: str) -> None:
    """Replace our rows of a stage by theirs."""
    rows = JsonLines(place)
    rows.keep(lambda row: row.get("stage") != stage)
    whole = source.read_bytes().split(b"\n")[:-1] if source.exists() else []
    for line in whole:
        row = json.loads(line)
        if row.get("stage") == stage:
            rows.append(row)
    rows.sync()
    rows.close()
