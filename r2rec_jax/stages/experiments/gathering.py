"""From finished trials to ``results/evidence_<name>.json``: rows, tests, curves, breakdowns and diagnostics.

Rows are those of the result files of the runs. Tests and breakdowns pool the seeds: values of all (seed, query) pairs,
of which users are resampled. A system of the main table is that of the first headline experiment that evaluates it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r2rec_jax.config import as_plain, fingerprint
from r2rec_jax.config.experiments import ExperimentList
from r2rec_jax.evaluation.predictions import Prediction, read_predictions
from r2rec_jax.evaluation.ranks import RankRecord, read_ranks
from r2rec_jax.evaluation.summary import summarize_ranks
from r2rec_jax.evaluation.tables import result_file
from r2rec_jax.files import read_json
from r2rec_jax.prompts.answer import AnswerForm, parse_completion
from r2rec_jax.stages.experiments.curves import grpo_curves
from r2rec_jax.stages.experiments.plan import Task, Trial, baseline_config
from r2rec_jax.stages.experiments.pooled import (
    Pool,
    breakdowns,
    compared,
    compared_searches,
    compared_variants,
    diagnostics,
)

KEPT = ("seed", "split_seed", "users", "answers", "hr@1", "hr@3", "ndcg@3", "mrr", "valid_rate", "truncation_rate",
        "order_copying_rate", "duplicates_per_answer", "outside_per_answer", "statements_per_answer", "true_rate",
        "tokens_per_answer", "seconds_per_user", "dataset", "negatives", "split", "candidates")
"""What a row takes over from the run's result file."""

_SAME = "delete the file and start the list again"


@dataclass(frozen=True)
class Finished:
    """One evaluation of a finished trial, read back.

    Attributes:
        trial: whose.
        system: as rows call it.
        exam: what it was, and where its files are.
        result: the contents of its result file.
        records: where every target stood, of the users of this evaluation.
        first: by query_id, share of answers whose first line was the target; None where nothing was written.
    """

    trial: Trial
    system: str
    exam: Mapping[str, Any]
    result: Mapping[str, Any]
    records: tuple[RankRecord, ...]
    first: Mapping[str, float] | None

    @property
    def row(self) -> dict[str, Any]:
        """Its row in the evidence."""
        (own,) = self.result["rows"]
        return {"system": self.system, "experiment": self.trial.name, "headline": self.trial.experiment.headline,
                "method": self.exam["method"], "chains": self.exam["chains"],
                **{name: own[name] for name in KEPT if name in own},
                "first@1": own["hr@1"] if self.first is None else sum(self.first.values()) / len(self.first)}


def gather(asked: ExperimentList, trials: Sequence[Trial], baselines: Sequence[Task], path: Path
           ) -> dict[str, Any] | None:
    """Everything that is known of a list so far; None before the first evaluation.

    Args:
        asked: the list.
        trials: all of them, finished or not.
        baselines: the classical models' tasks.
        path: of the list file, named in the result.
    """
    found = [entry for trial in trials for entry in _finished(trial)]
    if not found:
        return None
    classical = _classical(asked, found, baselines)
    once = {(row["system"], row["split_seed"]): row for row, _, _ in reversed(classical)}  # one training is one row
    rows = [*(entry.row for entry in found), *reversed(once.values())]
    pool = Pool({experiment.name: experiment.against for experiment in asked.experiments if experiment.against},
                {experiment.name for experiment in asked.experiments if experiment.changes_grpo_alone})
    for entry in found:
        pool.add(entry.trial.name if entry.trial.experiment.headline else None, entry.trial.name, entry.system,
                 entry.exam["chains"], entry.trial.experiment.split, entry.trial.seed, entry.records, entry.first)
    for row, records, seed in classical:
        pool.add("baselines", "baselines", row["system"], "own", "test", seed, records)
    status = [_status(task) for task in (*trials, *baselines)]
    result = result_file(
        asked.what, rows, fingerprint([as_plain(asked), [trial.key for trial in trials]]), name=asked.name,
        title=asked.title, list=path.as_posix(), seeds=sorted({trial.seed for trial in trials}),
        experiments=[_described(experiment) for experiment in asked.experiments], status=status,
        significance=compared(pool), variants=compared_variants(pool), searches=compared_searches(pool),
        breakdowns=breakdowns(pool), diagnostics=diagnostics(pool),
        curves=_curves(trials),
        runs=[_origin(entry) for entry in found])
    hardware = dict.fromkeys(entry.result["hardware"] for entry in found)
    return result | {"hardware": "; ".join(hardware)}


def _curves(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """GRPO's curves; of a training that another experiment took over, under the name of the first."""
    found: dict[str, dict[str, Any]] = {}
    for trial in trials:
        if trial.experiment.split == "test" and "grpo" in trial.order["stages"] and trial.outcome() is not None:
            for curve in grpo_curves(trial):
                found.setdefault(fingerprint({**curve, "experiment": None}), curve)
    return list(found.values())


def _finished(trial: Trial) -> list[Finished]:
    outcome = trial.outcome()
    entries = []
    for exam in outcome["left"] if outcome is not None else ():
        _check_left(trial, exam)
        result, wanted = read_json(exam["results"], _SAME), set(exam["queries"])
        records = tuple(record for record in read_ranks(exam["ranks"]) if record.query_id in wanted)
        answers = trial.config.evaluate.answers if exam["method"] == "generate" else 1
        if len(records) < len(wanted) * answers:
            raise ValueError(f"{exam['ranks']} must rank the {len(wanted)} queries that {trial.name} with seed "
                             f"{trial.seed} was asked, in {answers} answers each; it has {len(records)}; "
                             f"{_again(trial)}")
        first = None
        if exam["method"] == "generate":
            first = _named_first(exam["predictions"], trial.config.prompts.answer.form, wanted)
        entries.append(Finished(trial, exam["system"], exam, result, records, first))
    return entries


def _check_left(trial: Trial, exam: Mapping[str, Any]) -> None:
    """Make sure that a finished evaluation's files are still what it left.

    Raises:
        ValueError: one is missing, or is of another evaluation that was made since (says what differs).
    """
    missing = [exam[name] for name in ("results", "ranks", "predictions") if not Path(exam[name]).exists()]
    if missing:
        raise ValueError(f"{missing[0]} must be there, {trial.name} with seed {trial.seed} has left it; "
                         f"{_again(trial)}")
    result, own = read_json(exam["results"], _SAME, settings=dict, rows=list), trial.config.evaluate
    wanted = replace(own, split=trial.order["split"], method=exam["method"], chains=exam["chains"])
    settings = wanted.answer_settings(own.negatives or trial.config.data.negatives) | {"users": len(exam["queries"])}
    given = result["settings"] | {name: result["rows"][0][name] for name in ("negatives", "users")}
    if exam["method"] == "generate":
        settings["answers"], given = wanted.answers, {"answers": 1} | given
    other = [f"{name} {given.get(name)!r} instead of {value!r}" for name, value in settings.items()
             if given.get(name) != value]
    if other:
        raise ValueError(f"{exam['results']} must be what {trial.name} with seed {trial.seed} asked for; it has "
                         f"{', '.join(other)}; {_again(trial)}")


def _again(trial: Trial) -> str:
    return f"delete {trial.folder / 'done.json'} and start the list again"


def _named_first(predictions: str, form: AnswerForm, wanted: set[str]) -> dict[str, float]:
    """query_id -> share of its answers that rank the target first, with nothing before it that is no candidate."""
    found: dict[str, list[bool]] = {}
    for p in read_predictions(predictions):
        if p.query_id in wanted:
            found.setdefault(p.query_id, []).append(p.rank == 1 and (p.place or _place_before(p, form)) == 1)
    return {query: sum(hits) / len(hits) for query, hits in found.items()}


def _place_before(p: Prediction, form: AnswerForm) -> int:
    """The target's place in an answer of a version that did not keep it, and had no other labels to read it by."""
    titles, target = ([p.target_title], 0) if form == "titles" else (p.candidates, p.candidates.index(p.target))
    return parse_completion(p.output, form=form, titles=titles, opened_think=False).place_of(target, len(p.candidates))


def _classical(asked: ExperimentList, found: Sequence[Finished], tasks: Sequence[Task]
               ) -> list[tuple[dict[str, Any], tuple[RankRecord, ...], int]]:
    """(row, records, seed) of every classical model, on the users that the first headline of a seed was judged on."""
    rows = []
    for seed, first in {entry.trial.seed: entry for entry in reversed(found)
                        if entry.trial.experiment.headline}.items():
        config, data = baseline_config(asked, first.trial), first.trial.config.data
        negatives, wanted = first.row["negatives"], {record.query_id for record in first.records}
        done = any(task.seed == data.split_seed and task.outcome() is not None for task in tasks)
        for name in config.models if done else ():
            ranks = config.seed_folder(data.split_seed) / name / f"ranks-test-{negatives}.jsonl"
            records = tuple(record for record in read_ranks(ranks) if record.query_id in wanted)
            own = summarize_ranks(records, system=name, dataset=data.label, negatives=negatives,
                                  split=first.row["split"], seed=seed)
            row = {"system": name, "experiment": "baselines", "headline": True, "method": "scores", "chains": "own",
                   **{key: own[key] for key in KEPT if key in own}, "first@1": own["hr@1"],
                   "split_seed": data.split_seed}
            rows.append((row, records, seed))
    return rows


def _described(experiment: Any) -> dict[str, Any]:
    plain = as_plain(experiment)
    return {name: plain[name] for name in ("name", "why", "set", "systems", "headline", "split")}


def _status(task: Task) -> dict[str, Any]:
    outcome, failure = task.outcome(), task.failure()
    return {"experiment": task.name, "seed": task.seed,
            "status": "done" if outcome is not None else "failed" if failure is not None else "not run",
            **({name: outcome[name] for name in ("seconds", "cpus") if name in outcome} if outcome is not None else {}),
            **({"reason": failure} if failure is not None else {})}


def _origin(entry: Finished) -> dict[str, Any]:
    return {"experiment": entry.trial.name, "seed": entry.trial.seed, "system": entry.system,
            "chains": entry.exam["chains"],
            **{name: entry.result[name] for name in ("created", "commit", "dirty", "config_sha256", "hardware")},
            "trained": entry.result.get("trained", {})}
