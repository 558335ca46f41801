"""What ``python -m r2rec_jax.experiments`` does: run a list and keep its result file up to date, or report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from r2rec_jax.config import as_plain, fingerprint
from r2rec_jax.config.experiments import BASELINES, ExperimentList
from r2rec_jax.data.fetch import locate
from r2rec_jax.files import held, read_json, write_json, write_text
from r2rec_jax.progress import say
from r2rec_jax.reporting.cells import linked
from r2rec_jax.reporting.evidence import evidence_report
from r2rec_jax.reporting.evidence_plots import plot_hits, plot_rewards
from r2rec_jax.stages.experiments.gathering import gather
from r2rec_jax.stages.experiments.plan import Task, Trial, baseline_tasks, read_list, root_of, trials_of
from r2rec_jax.stages.experiments.running import run_tasks
from r2rec_jax.stages.experiments.shares import shares
from r2rec_jax.stages.workspace import SMOLLM2, backbone_path


def run_list(path: str, results: str, *, data_path: str | None = None, only: Sequence[str] = (),
             seeds: Sequence[int] = (), only_next: bool = False, retry: bool = False, overwrite: bool = False,
             nothing: bool = False, jobs: int = 1) -> Path:
    """Run what is left of a list; its result file is written anew at the start and after each task.

    Args:
        path: the list file.
        results: folder of the result files.
        data_path: ``data.path`` of all experiments, instead of the list's.
        only: names of experiments, and ``baselines``; all when empty.
        seeds: instead of the list's, by the rule of :func:`trials_of`; the result file keeps those of the list as well.
        only_next: stop after one task.
        retry: run those again that have failed.
        overwrite: train anew what was trained with other settings.
        nothing: only write the result file.
        jobs: so many tasks at once, each on its share of CPUs and GPUs.

    Returns:
        The result file's path; it is not there before the first evaluation.

    Raises:
        BadInput: the list, a name or a setting is wrong.
        ValueError: the list is being run by another process, nothing of it was asked for, or there are fewer CPUs than
            jobs, or GPUs but fewer.
        RuntimeError: tasks have failed; the others have run.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # the accelerator's memory is for the processes that train
    asked = read_list(path)
    if data_path is not None:
        asked = replace(asked, set={**asked.set, "data.path": data_path})
    _check_names(asked, only)
    chosen = trials_of(asked, seeds or None)
    trials = list({trial.folder: trial for trial in [*trials_of(asked), *chosen]}.values()) if seeds else chosen
    baselines = baseline_tasks(asked, trials)
    first = chosen[0].name if chosen else ""  # what it is held against comes next: time may end before the list does
    tasks: list[Task] = [*(trial for trial in chosen if trial.name == first), *baseline_tasks(asked, chosen),
                         *(trial for trial in chosen if trial.name != first)]
    wanted = [task for task in tasks if not only or task.name in only]
    if not wanted:
        raise ValueError(f"--only and --seeds must leave something to run; got --only {' '.join(only) or '(all)'}, "
                         f"--seeds {' '.join(map(str, seeds)) or '(all)'}; an experiment with seeds of its own has no "
                         "others, and a list without baselines none of them")
    places = shares(jobs)
    out = Path(results).expanduser() / f"evidence_{asked.name}.json"

    def write() -> None:
        _write(asked, trials, baselines, Path(path), out)

    root = root_of(asked)
    root.mkdir(parents=True, exist_ok=True)
    with held(root / "lock", f"{root}", "wait for the other process, or stop it"):
        write()
        if not nothing:
            if jobs > 1:
                fetch_once([trial for trial in chosen if trial.outcome() is None])
            run_tasks(wanted, write, only_next=only_next, retry=retry or overwrite, overwrite=overwrite, places=places)
    done, failed = (sum(map(bool, found)) for found in zip(*((t.outcome(), t.failure()) for t in wanted), strict=True))
    told = f"{asked.name}: of {len(wanted)} tasks {done} are done, {failed} have failed; results in {out}"
    say(told)
    if failed and not nothing:
        raise RuntimeError(f"{failed} of {len(wanted)} tasks have failed, why is in their log.txt; --retry runs them "
                           "again")
    return out


def fetch_once(trials: Sequence[Trial]) -> None:
    """Download what the trials read, before several of them ask for it at the same time.

    Raises:
        ValueError: a data set cannot be had.
    """
    for data in {fingerprint(as_plain(trial.config.data)): trial.config.data for trial in trials}.values():
        locate(data)
    sources = {(trial.config.backbone.source, trial.config.data.cache_dir) for trial in trials}
    for source, cache_dir in sorted(sources):
        if source == SMOLLM2:
            backbone_path(source, cache_dir)


def _check_names(asked: ExperimentList, only: Sequence[str]) -> None:
    names = [experiment.name for experiment in asked.experiments] + [BASELINES]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise ValueError(f"--only must name experiments of the list, among {', '.join(names)}; got "
                         f"{', '.join(unknown)}")


def _write(asked: ExperimentList, trials: Sequence[Trial], baselines: Sequence[Task], path: Path, out: Path) -> None:
    found = gather(asked, trials, baselines, path)
    if found is not None:
        write_json(out, found)


_PARTS: dict[str, type] = {"name": str, "title": str, "what": str, "list": str} | dict.fromkeys(
    ("experiments", "rows", "significance", "variants", "searches", "curves", "breakdowns", "diagnostics", "status",
     "runs"), list)
"""What a report is made of."""


def report(results: str, out: str) -> None:
    """Write the report of all result files, and two plots a file beside them.

    What was written by hand is taken from ``<list>.md`` beside each list, and from ``evidence.md`` beside the results.

    Raises:
        ValueError: there is no result file, or one is damaged.
    """
    folder, target = Path(results).expanduser(), Path(out).expanduser()
    files = sorted(folder.glob("evidence_*.json"))
    if not files:
        raise ValueError(f"--report needs result files evidence_<name>.json; {folder} has none; run a list first")
    parts: list[tuple[dict[str, Any], str, dict[str, str]]] = []
    for file in files:
        found = read_json(file, "run its list again", **_PARTS)
        plots = {}
        if found["curves"]:
            plots["rewards"] = plot_rewards(found, file.with_name(f"{file.stem}_rewards.png"))
        if found["breakdowns"]:
            plots["hits"] = plot_hits(found, file.with_name(f"{file.stem}_hits.png"))
        parts.append((found, _written(Path(found["list"]).with_suffix(".md")),
                      {name: linked(path, target.parent) for name, path in plots.items()}))
    write_text(target, evidence_report(parts, _written(folder / "evidence.md")))
    say(f"report: {target}, from {', '.join(file.name for file in files)}")


def _written(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
