"""Runs stages in order: skips what is done, goes on with what was interrupted, ends with the table and the plots.

In a run over several processes all of them come here. The stages that compute on the whole mesh are run by all; process
0 runs the others alone and keeps the run folder, and the others wait and are told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from r2rec_jax.config import TrainConfig, as_plain
from r2rec_jax.files import write_text
from r2rec_jax.parallel.distributed import company, is_first, on_first, start
from r2rec_jax.parallel.kept import programs
from r2rec_jax.progress import format_duration, mute, say
from r2rec_jax.stages.keys import builds_on
from r2rec_jax.stages.reuse import reuse_stages
from r2rec_jax.stages.run import CODE, RunFolder
from r2rec_jax.stages.workspace import Workspace

TOGETHER = ("pretrain", "sft", "grpo", "evaluate")
"""The stages that every process runs."""


def _stage_functions() -> dict[str, Callable[[Workspace], dict[str, Any]]]:
    from r2rec_jax.stages.evaluation import evaluate_stage
    from r2rec_jax.stages.finish import export_stage
    from r2rec_jax.stages.learning import grpo_stage, pretrain_stage, sft_stage
    from r2rec_jax.stages.prepare import prepare_stage
    from r2rec_jax.stages.thinking import thoughts_stage

    return {"prepare": prepare_stage, "thoughts": thoughts_stage, "pretrain": pretrain_stage, "sft": sft_stage,
            "grpo": grpo_stage, "evaluate": evaluate_stage, "export": export_stage}


def run_stages(config: TrainConfig, stages: Sequence[str], *, overwrite: bool = False, reuse: Sequence[str] = ()
               ) -> dict[str, Any]:
    """Run ``stages`` of a run; those that a run in one of the folders ``reuse`` has finished are copied from there.

    Returns:
        {"run_dir", "stages": {stage: result}, "results": result file of the evaluation or None}.

    Raises:
        ValueError: settings, data or backbone do not fit (the reason names what); nothing half-written is left.
    """
    from r2rec_jax.evaluation.tables import provenance
    from r2rec_jax.rewards.functions import load_functions

    load_functions(config.rewards.functions)  # a wrong import path must not wait for the hours before GRPO
    if "evaluate" in stages:
        config.check_users(config.evaluate.split)
    config.check_positions()
    started = time.monotonic()
    start(config.parallel)
    counted = programs()
    before = counted.compiled, counted.read
    run, now = RunFolder(Path(config.run_dir).expanduser(), config), provenance()
    with company(), ExitStack() as held:
        if not is_first():
            mute()

        def open_folder() -> None:
            held.enter_context(RunFolder.open(config, provenance=now, overwrite=overwrite))
            write_text(run.path / "config.yaml", yaml.safe_dump(as_plain(config), sort_keys=False))
            say(f"run folder {run.path}" + (f"\n{config.note}" if config.note else ""))
            if "prepare" in stages:
                run.refuse_other_data(overwrite)
            reuse_stages(run, stages, reuse)

        on_first(open_folder)
        functions = _stage_functions()
        work = Workspace(run)
        if any(stage in TOGETHER for stage in stages):
            say_layout(work)
        for stage in stages:
            _run_stage(work, stage, functions[stage], {name: now[name] for name in CODE})

        from r2rec_jax.stages.finish import finish

        outcome = on_first(lambda: finish(work, stages))
    say(f"{counted.compiled - before[0]} programs compiled, {counted.read - before[1]} read as kept before")
    say(f"done in {format_duration(time.monotonic() - started)}; everything is in {run.path}")
    return outcome


def say_layout(work: Workspace) -> None:
    """Say what the mesh is, where there is one."""
    if work.mesh is not None:
        import jax

        say(f"mesh: {' x '.join(f'{name} {size}' for name, size in work.mesh.shape.items())} over {work.mesh.size} "
            f"devices of {jax.process_count()} processes")


def _run_stage(work: Workspace, stage: str, function: Callable[[Workspace], dict[str, Any]], code: dict[str, Any]
               ) -> None:
    if not on_first(lambda: _begin(work.run, stage)):
        return
    started = time.monotonic()
    if stage in TOGETHER:
        result = function(work)
    else:
        result = on_first(lambda: function(work.of_first()))
    on_first(lambda: work.run.mark_done(stage, time.monotonic() - started, result, **code))
    say(f"{stage}: done in {format_duration(time.monotonic() - started)}")


def _begin(run: RunFolder, stage: str) -> bool:
    """Whether a stage has to run; its folder is then claimed."""
    if run.is_done(stage):
        lost = run.lost(stage)
        if not lost:
            say(f"{stage}: nothing has changed, kept as it is")
            return False
        say(f"{stage}: of what it made, {', '.join(lost)} is no longer in {run.path}; it is run again")
        run.clear(stage)
    for below in builds_on(run.config, stage):
        if not run.is_done(below):
            raise ValueError(f"stage {stage!r} builds on {below!r}, which has not finished in {run.path}; "
                             f"add it to --stages")
    run.claim(stage)
    say(f"{stage}: started")
    return True
