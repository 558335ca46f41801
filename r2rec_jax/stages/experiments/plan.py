"""From a list file to trials: every experiment with every seed, its settings resolved before anything runs.

    <root>/<experiment>/seed-<k>/run/            the run folder of ``python -m r2rec_jax.train``
    <root>/<experiment>/seed-<k>/log.txt         what the process said
    <root>/<experiment>/seed-<k>/task.json       what it was asked
    <root>/<experiment>/seed-<k>/done.json       what it has left, when it came to its end
    <root>/<experiment>/seed-<k>/failed.json     why it did not
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from r2rec_jax.baselines.classical import check_names
from r2rec_jax.config import STAGES, DataConfig, TrainConfig, as_plain, fingerprint
from r2rec_jax.config.data import COUNTS
from r2rec_jax.config.data import WITHOUT_EFFECT as DATA_PLACES
from r2rec_jax.config.experiments import BASELINES, Experiment, ExperimentList
from r2rec_jax.files import read_json
from r2rec_jax.prompts.templates import TEMPLATE_VERSION
from r2rec_jax.reasons import one_line
from r2rec_jax.stages.baselines import BaselineConfig
from r2rec_jax.stages.cli import BadInput, add_train_config, from_plain, make_parser, parse_train_config
from r2rec_jax.stages.keys import FIRST_TEXTS, builds_on, without_effect
from r2rec_jax.stages.run import config_from_plain
from r2rec_jax.stages.systems import CHECKPOINTS, system_name, trained_by


@dataclass(frozen=True)
class PlannedExam:
    """One evaluation of a trial.

    Attributes:
        checkpoint: whose policy.
        method: how it answers.
        chains: what chains its prompts show.
    """

    checkpoint: str
    method: str = "generate"
    chains: str = "own"


@dataclass(frozen=True)
class Task:
    """What one process does, and the folder that remembers it.

    Attributes:
        name: of the experiment, or ``baselines``.
        seed: of the run.
        folder: where its log and its outcome lie.
        order: what the process is told, JSON-ready.
    """

    name: str
    seed: int
    folder: Path
    order: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Identity of what is asked for, wherever the data lie."""
        return fingerprint(_without_effect_left_out(self.order))

    def outcome(self) -> Mapping[str, Any] | None:
        """What the process left when it came to its end; None when it has not, or was asked for something else."""
        return self._read("done.json")

    def failure(self) -> str | None:
        """Why it failed, in one line; None when it did not."""
        failed = self._read("failed.json")
        return None if failed is None else failed["reason"]

    def _read(self, name: str) -> Mapping[str, Any] | None:
        found = self._plain(name)
        return found if found and found.get("key") in (self.key, self._told_key()) else None

    def _plain(self, name: str) -> Mapping[str, Any]:
        path = self.folder / name
        return read_json(path, "delete the file to run the experiment again") if path.exists() else {}

    def _told_key(self) -> str | None:
        """The key under which the same was asked for before; settings that have come since had their defaults."""
        told = self._plain("task.json")
        try:
            if self.order["kind"] == BASELINES:
                filled = {"data": as_plain(DataConfig(**told["order"]["data"]))}
            else:
                filled = {"config": as_plain(config_from_plain(told["order"]["config"]))}
        except (KeyError, TypeError, ValueError):
            return None
        same = fingerprint(_without_effect_left_out({**told["order"], **filled})) == self.key
        return told["key"] if same else None


def _without_effect_left_out(order: Mapping[str, Any]) -> dict[str, Any]:
    """What a process is told, without a configuration's note and what else has no effect on what comes of it."""
    def outcome(section: Mapping[str, Any], name: str) -> dict[str, Any]:
        return {field: value for field, value in section.items() if field not in without_effect(name, section)}

    if "config" not in order:
        return {**order, "data": outcome(order["data"], "data")}
    config = {**order["config"], **{name: outcome(order["config"][name], name) for name in ("data", "sft", "grpo")}}
    return {**order, "config": {name: value for name, value in config.items() if name != "note"}}


@dataclass(frozen=True)
class Trial(Task):
    """An experiment with one seed.

    Attributes:
        experiment: of the list.
        config: its settings, this seed's.
    """

    experiment: Experiment
    config: TrainConfig


def read_list(path: str | Path) -> ExperimentList:
    """A list file.

    Raises:
        BadInput: no such file, or not a list of experiments (says why).
        ValueError: its baselines are no distinct models.
    """
    try:
        plain = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise BadInput(f"the list must be a YAML file; {path}: {one_line(error, None)}") from None
    if not isinstance(plain, dict):
        raise BadInput(f"the list must be a YAML file with a name, a title and experiments; {path} is none")
    entries = plain.get("experiments")
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    known = Experiment.__dataclass_fields__  # jsonargparse drops what a dataclass within a list does not have
    for entry in entries:
        unknown = sorted(map(str, entry.keys() - known.keys()))
        if unknown:
            raise BadInput(f"{path}: an experiment has {', '.join(known)}; got {', '.join(unknown)}")
    for kind, entry in ((ExperimentList, plain), *((Experiment, entry) for entry in entries)):
        _fill_empty(kind, entry, str(path))
    asked = from_plain(ExperimentList, plain, str(path))
    if asked.baselines:
        check_names(asked.baselines, f"{path}: baselines")
    return asked


def _fill_empty(kind: type[Any], plain: dict[str, Any], what: str) -> None:
    """An empty ``set`` sets nothing; nothing else may be empty that has a value (jsonargparse would let it pass).

    Raises:
        BadInput: something is (names it).
    """
    if plain.get("set", ...) is None:
        plain["set"] = {}
    empty = [field.name for field in fields(kind) if field.default is not None and plain.get(field.name, ...) is None]
    if empty:
        raise BadInput(f"{what}: {', '.join(empty)} must have a value; got none; give one, or leave it out")


def root_of(asked: ExperimentList) -> Path:
    """Folder of all runs of a list."""
    return Path(asked.root or f"runs/evidence/{asked.name}").expanduser()


def trials_of(asked: ExperimentList, seeds: Sequence[int] | None = None) -> list[Trial]:
    """Every experiment with every seed, in the order of the list.

    Args:
        asked: the list.
        seeds: instead of the list's; of an experiment with seeds of its own, those of its own that are among them.

    Raises:
        BadInput: an experiment's settings are no valid configuration, lack a system, or draw other candidates than the
            rest of the main table (names the experiment).
    """
    trials = []
    for experiment in asked.experiments:
        for seed in _seeds(asked, experiment, seeds):
            folder = root_of(asked) / experiment.name / f"seed-{seed}"
            config = _resolve(asked, experiment, seed, folder / "run")
            checkpoints = [_checkpoint(experiment, config, system) for system in experiment.systems]
            exams = [PlannedExam(name) for name in checkpoints]
            exams += [PlannedExam(name, "likelihood") for name in checkpoints if experiment.likelihood]
            exams += [PlannedExam(checkpoints[-1], chains=chains) for chains in experiment.diagnostics]
            order = {
                "kind": "trial", "config": as_plain(config), "stages": list(needed_stages(config, checkpoints)),
                "reuse": [str(root_of(asked) / name / f"seed-{seed}" / "run") for name in experiment.reuse],
                "split": experiment.split, "exams": [vars(exam) for exam in exams],
                **({"texts": TEMPLATE_VERSION} if TEMPLATE_VERSION != FIRST_TEXTS else {})}
            trials.append(Trial(experiment.name, seed, folder, order, experiment, config))
    _check_same_candidates(trials)
    return trials


def _check_same_candidates(trials: Sequence[Trial]) -> None:
    """Make sure that the systems of the main table can be compared, before hours are spent on them.

    Raises:
        BadInput: two headline experiments draw other candidates (names both, and the setting).
    """
    first: dict[int, Trial] = {}
    for trial in trials:
        if trial.experiment.headline and trial.experiment.split == "test":
            other = first.setdefault(trial.seed, trial)
            mine, theirs = _candidates_of(trial.config), _candidates_of(other.config)
            for name in mine:
                if mine[name] != theirs[name]:
                    raise BadInput(f"experiment {trial.name}: {name} must be {theirs[name]!r} as in {other.name}; got "
                                   f"{mine[name]!r}; systems of the main table rank the same candidates, so give it "
                                   "headline: false or a list of its own")


def _candidates_of(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide which candidates a user's target stands among."""
    data = as_plain(config.data)
    return {f"data.{name}": value for name, value in data.items() if name not in (*DATA_PLACES, *COUNTS.values())} | {
        "data.negatives": config.evaluate.negatives or data["negatives"]}


def _seeds(asked: ExperimentList, experiment: Experiment, seeds: Sequence[int] | None) -> Sequence[int]:
    own = experiment.seeds or asked.seeds
    if seeds is None:
        return own
    return seeds if experiment.seeds is None else [seed for seed in own if seed in seeds]


def baseline_tasks(asked: ExperimentList, trials: Sequence[Trial]) -> list[Task]:
    """The classical models on every draw of candidates, with the data of the first trial that uses it."""
    tasks: dict[int, Task] = {}
    for trial in trials if asked.baselines else ():
        seed, config = trial.config.data.split_seed, baseline_config(asked, trial)
        order = {"kind": BASELINES, "data": as_plain(config.data), "models": list(config.models), "seeds": [seed],
                 "out": config.out}
        tasks.setdefault(seed, Task(BASELINES, seed, root_of(asked) / BASELINES / f"task-{seed}", order))
    return list(tasks.values())


def baseline_config(asked: ExperimentList, trial: Trial) -> BaselineConfig:
    """The classical models on a trial's candidates."""
    out = asked.baselines_out or str(root_of(asked) / BASELINES)
    return BaselineConfig(data=trial.config.data, models=tuple(asked.baselines), seeds=(trial.config.data.split_seed,),
                          out=out, results=None)


def needed_stages(config: TrainConfig, checkpoints: Sequence[str]) -> tuple[str, ...]:
    """The stages that these checkpoints rest on, in the order of the recipe."""
    waiting, needed = [trained_by(name) for name in checkpoints], set()
    while waiting:
        stage = waiting.pop()
        needed.add(stage)
        waiting += builds_on(config, stage)
    return tuple(stage for stage in STAGES if stage in needed)


def _resolve(asked: ExperimentList, experiment: Experiment, seed: int, run_dir: Path) -> TrainConfig:
    own = {"run_dir": str(run_dir), "train_seed": seed,
           "data.split_seed": seed if asked.split_seed is None else asked.split_seed}
    settings = {**asked.set, **experiment.set}
    taken = sorted(settings.keys() & own.keys())
    if taken:
        raise BadInput(f"experiment {experiment.name}: {', '.join(taken)} must not be set; seeds and root decide it")
    parser = make_parser("r2rec_jax.experiments", "")
    add_train_config(parser)
    flags = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
             for name, value in (settings | own).items()]
    try:
        config = parse_train_config(parser, ["--config", asked.config, *flags])[0]
        config.check_users(experiment.split)
        config.check_positions()
    except ValueError as error:
        raise BadInput(f"experiment {experiment.name}: {one_line(error, None)}") from None
    return config


def _checkpoint(experiment: Experiment, config: TrainConfig, system: str) -> str:
    names = ("base", *(["pretrained"] if config.trains_backbone else []), "sft", system_name(config, "grpo"))
    if system not in names:
        raise BadInput(f"experiment {experiment.name}: systems must be among {', '.join(names)} with grpo.start "
                       f"{config.grpo.start} and backbone {config.backbone.source}; got {system}")
    return CHECKPOINTS[system]
