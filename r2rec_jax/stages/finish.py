"""The end of a run: exports, plots, the table."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from r2rec_jax.evaluation.tables import markdown, print_table
from r2rec_jax.files import write_json, write_text
from r2rec_jax.models.folders import new_folder
from r2rec_jax.parallel.mesh import in_host_memory
from r2rec_jax.progress import say
from r2rec_jax.reporting.plots import plot_losses, plot_rewards, read_metrics
from r2rec_jax.stages.export import export_merged, export_peft
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.training.metrics import is_look


def export_stage(work: Workspace) -> dict[str, Any]:
    """Write the configured exports under ``<run>/export``."""
    c = work.config.export
    written = {}
    for form in c.formats:
        out = work.run.folder("export") / form
        with new_folder(out, replace=True) as empty:
            export(work, c.checkpoint, form, empty)
        say(f"export: {form} of {c.checkpoint} in {out}")
        written[form] = str(out)
    return {"checkpoint": c.checkpoint, "written": written}


def export(work: Workspace, checkpoint: str, form: str, out: Path) -> None:
    """Write one export; the folder appears whole or not at all. A merge is into full weights, also after int8.

    Nothing is computed on a device, so what is loaded for an export alone stays in the host's memory: a model that
    several devices share need not fit one of them.
    """
    c = work.config
    with in_host_memory() if work.alone else nullcontext():
        if form == "peft":
            export_peft(work.backbone, work.adapter(checkpoint), c.lora, work.tokenizer, c.grpo, out)
        else:
            full = work.load_full()
            export_merged(full, work.adapter(checkpoint, full), work.tokenizer, c.grpo, out)


def finish(work: Workspace, stages: Sequence[str]) -> dict[str, Any]:
    """Draw the plots, print the table, and gather what the stages reported.

    Returns:
        {"run_dir", "stages": {stage: its result}, "results": the evaluation's result file, or None}.
    """
    run = work.run
    metrics = run.path / "metrics.jsonl"
    done = {stage: run.result(stage) for stage in stages if run.is_done(stage)}
    if metrics.exists():
        rows = read_metrics(metrics)
        trained = {row.get("stage") for row in rows}
        if trained & {"pretrain", "sft"}:
            plot_losses(rows, run.path / "plots" / "loss.png", str(run.path.name))
        if "grpo" in trained:
            plot_rewards(rows, run.path / "plots" / "reward.png", str(run.path.name))
        say(f"plots: {run.path / 'plots'}")
        looked = {row["stage"] for row in rows if is_look(row)}
        for stage, asked in (("sft", work.config.sft.eval_every), ("grpo", work.config.grpo.eval_every)):
            if asked and run.is_done(stage) and stage not in looked:
                say(f"{stage}: was trained without {stage}.eval_every, so nothing held out was looked at; a new run "
                    "folder that does not take it over trains it so")
    results = done.get("evaluate")
    if results is not None:
        print_table(results["rows"], results["what"])
        write_text(run.path / "evaluate" / "table.md", markdown(results["rows"]) + "\n")
        for entry in results["significance"]:
            say(f"HitRatio@1 of {entry['system']} minus {entry['minus']}: {entry['difference']:+.3f} "
                f"[{entry['low']:+.3f}, {entry['high']:+.3f}], p = {entry['p']:.3f} (paired bootstrap, "
                f"{entry['users']} users)")
    outcome = {"run_dir": str(run.path), "stages": done, "results": results}
    write_json(run.path / "summary.json", outcome)
    return outcome
