"""Runs stages in order: skips what is done, goes on with what was interrupted, ends with the table and the plots."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import yaml

from r2rec_jax.config import TrainConfig, as_plain
from r2rec_jax.files import write_text
from r2rec_jax.progress import format_duration, say
from r2rec_jax.stages.run import RunFolder, builds_on
from r2rec_jax.stages.workspace import Workspace


def _stage_functions() -> dict[str, Callable[[Workspace], dict[str, Any]]]:
    from r2rec_jax.stages.evaluation import evaluate_stage
    from r2rec_jax.stages.finish import export_stage
    from r2rec_jax.stages.learning import grpo_stage, pretrain_stage, sft_stage
    from r2rec_jax.stages.prepare import prepare_stage
    from r2rec_jax.stages.thinking import thoughts_stage

    return {"prepare": prepare_stage, "thoughts": thoughts_stage, "pretrain": pretrain_stage, "sft": sft_stage,
            "grpo": grpo_stage, "evaluate": evaluate_stage, "export": export_stage}


def run_stages(config: TrainConfig, stages: Sequence[str], *, overwrite: bool = False) -> dict[str, Any]:
    """Run ``stages`` of a run.

    Returns:
        {"run_dir", "stages": {stage: result}, "results": result file of the evaluation or None}.

    Raises:
        ValueError: settings, data or backbone do not fit (the reason names what); nothing half-written is left.
    """
    from r2rec_jax.evaluation.tables import provenance
    from r2rec_jax.rewards.functions import load_functions

    load_functions(config.rewards.functions)  # a wrong import path must not wait for the hours before GRPO
    started = time.monotonic()
    with RunFolder.open(config, provenance=provenance(), overwrite=overwrite) as run:
        write_text(run.path / "config.yaml", yaml.safe_dump(as_plain(config), sort_keys=False))
        say(f"run folder {run.path}" + (f"\n{config.note}" if config.note else ""))
        functions = _stage_functions()
        work = Workspace(run)
        for stage in stages:
            _run_stage(work, stage, functions[stage])
        from r2rec_jax.stages.finish import finish

        outcome = finish(work, stages)
    say(f"done in {format_duration(time.monotonic() - started)}; everything is in {run.path}")
    return outcome


def _run_stage(work: Workspace, stage: str, function: Callable[[Workspace], dict[str, Any]]) -> None:
    run = work.run
    if run.is_done(stage):
        say(f"{stage}: nothing has changed, kept as it is")
        return
    for below in builds_on(run.config, stage):
        if not run.is_done(below):
            raise ValueError(f"stage {stage!r} builds on {below!r}, which has not finished in {run.path}; "
                             f"add it to --stages")
    run.claim(stage)
    say(f"{stage}: started")
    started = time.monotonic()
    result = function(work)
    run.mark_done(stage, time.monotonic() - started, result)
    say(f"{stage}: done in {format_duration(time.monotonic() - started)}")
