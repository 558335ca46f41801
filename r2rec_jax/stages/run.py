"""The run folder: which stages are done, under which settings, and who is working on it.

    run.json          settings and versions of the latest start; compared on every later one
    stages.json       {stage: {"key": fingerprint, "seconds": ..., "result": {...}, "commit": ...}} for finished stages
    claims.json       {stage: fingerprint} under which a stage's folder was begun, finished or not
    lock              held by the process that works on the folder
    hosted/           answers of hosted models, which were paid for: of no stage, so that none deletes them

A stage's key is the fingerprint of the settings it reads and of the keys of the stages it builds on. A finished stage
whose key is unchanged is not run again. When a setting that a stage depends on has changed, the run is refused with the
names of the settings, unless ``overwrite`` is given: then the stages concerned are run anew and their old output is
deleted. ``evaluate`` and ``export`` settings may change freely: those stages are simply run again, and answers that
are still those of the settings are kept.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2rec_jax.config import STAGES, TrainConfig, as_plain, fingerprint
from r2rec_jax.config.data import WITHOUT_EFFECT as DATA_PLACES
from r2rec_jax.config.endpoint import OPERATIONAL
from r2rec_jax.data.fetch import changed_sources
from r2rec_jax.files import beside, held, read_json, write_json
from r2rec_jax.models.folders import delete_folder, sweep
from r2rec_jax.prompts.templates import TEMPLATE_VERSION

READS: dict[str, tuple[str, ...]] = {
    "prepare": ("data", "graph", "train_seed"),
    "thoughts": ("prompts", "thoughts", "backbone", "train_seed"),
    "pretrain": ("pretrain", "train_seed"),
    "sft": ("sft", "lora", "train_seed"),
    "grpo": ("grpo", "rewards", "lora", "train_seed"),
    "evaluate": ("evaluate", "train_seed"),
    "export": ("export", "grpo"),
}
"""Which settings each stage reads (those of the stages it builds on come through their keys)."""

BESIDES: dict[str, tuple[str, ...]] = {"thoughts": ("sft.thought_weight", "pretrain.mix.thoughts")}
"""Settings of other sections that a stage reads too, see :func:`besides`. They are compared, but enter no key, which
they did not when run folders came into use: what an earlier version has finished stays finished."""

_BUILDS_ON: dict[str, tuple[str, ...]] = {
    "prepare": (), "thoughts": ("prepare",), "pretrain": ("thoughts",), "sft": ("pretrain",),
}
_CHECKPOINT_STAGES = {"base": "pretrain", "sft": "sft", "sft+grpo": "grpo", "grpo": "grpo"}


def builds_on(config: TrainConfig, stage: str) -> tuple[str, ...]:
    """The stages whose output a stage takes as input: GRPO only takes SFT's when it starts from it, and evaluation and
    export take those whose checkpoints they are asked for."""
    if stage == "grpo":
        return ("sft",) if config.grpo.start == "sft" else ("pretrain",)
    if stage == "evaluate":
        return tuple(dict.fromkeys(_CHECKPOINT_STAGES[name] for name in config.evaluate.systems))
    if stage == "export":
        return (_CHECKPOINT_STAGES[config.export.checkpoint],)
    return _BUILDS_ON[stage]


LOOKS = ("eval_every", "eval_prompts")
WITHOUT_EFFECT = {"data": DATA_PLACES, "thoughts": ("store",), "thoughts.endpoint": OPERATIONAL, "sft": LOOKS,
                  "grpo": LOOKS}
"""Settings that say where something lies, how it is reached or how often it is looked at, not what it is: they do not
enter a key. See :func:`without_effect`."""

LATER: dict[str, Any] = {"sft.steps": None, "sft.keep": "last", "grpo.keep": "last", "pretrain.adapt": False,
                         "backbone.item_tokens": False,
                         "backbone.matmul_dtype": None, "grpo.uniform_groups": "keep", "rewards.true_weight": 0.0,
                         "pretrain.choices_as": "answer", "prompts.names": "title", "evaluate.answers": 1}
"""Settings that came when run folders were in use already, and the value that does what was done before. With it they
do not enter a key: what an earlier version has finished stays finished."""

ROUNDING = ("pretrain.checkpoint_every", "sft.checkpoint_every", "sft.log_every", "sft.micro_batch",
            "grpo.checkpoint_every", "grpo.micro_prompts", "backbone.attention", "backbone.remat")
"""Settings that say how often something is kept, or in what order the same numbers are added up. A run may go on under
others: keys, which have them, keep the values that its folder was made with."""

FIRST_TEXTS = "1"
"""The version of the texts that run folders have which name none."""

FREE = ("evaluate", "export")

HOSTED = "hosted"
"""Folder of what ``evaluate --endpoint`` asked."""

CODE = ("commit", "dirty", "hardware")
"""What is kept of the version that finished a stage."""

ANSWERS = ("predictions-*.jsonl", "requests-*.jsonl")
"""Files of the ``evaluate`` stage whose every line names what it is the answer of: none is taken for another's. Earlier
versions left hosted models' answers and journals there."""


def without_effect(section: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of a section's settings that have no effect on an outcome: :data:`WITHOUT_EFFECT`, but looks decide where
    the best of what they saw is kept."""
    return () if values.get("keep", "last") != "last" else WITHOUT_EFFECT.get(section, ())


def read_settings(plain: dict[str, Any], stage: str, texts: str = TEMPLATE_VERSION) -> dict[str, Any]:
    """The settings a stage reads, as {dotted name: value}, without those that have no effect on the outcome.

    Args:
        plain: of :func:`~r2rec_jax.config.as_plain`.
        stage: which one.
        texts: version of the words of prompts and thoughts, which the ``thoughts`` stage writes down.
    """
    flat: dict[str, Any] = {"version of the texts": texts} if stage == "thoughts" and texts != FIRST_TEXTS else {}
    for section in READS[stage]:
        value = plain[section]
        if not isinstance(value, dict):
            flat[section] = value
            continue
        skip = without_effect(section, value)
        for name, inner in value.items():
            if f"{section}.{name}" in LATER and inner == LATER[f"{section}.{name}"]:
                continue
            if name in skip or (section == "thoughts" and name == "endpoint" and value["teacher"] != "endpoint"):
                continue
            inner_skip = WITHOUT_EFFECT.get(f"{section}.{name}", ())
            flat[f"{section}.{name}"] = ({k: v for k, v in inner.items() if k not in inner_skip}
                                         if isinstance(inner, dict) else inner)
    return flat


def besides(plain: dict[str, Any], stage: str) -> dict[str, Any]:
    """Those of :data:`BESIDES`, as {dotted name: value}; of the last, whether a tokenizer is trained on thoughts that
    are written for it alone."""
    found = {name: _setting(plain, name) for name in BESIDES.get(stage, ())}
    if found:
        prompts = plain["prompts"]
        others = (prompts["chains"] and prompts["thoughts"] != "none") or found["sft.thought_weight"]
        tiny = plain["backbone"]["source"] == "tiny"
        found["pretrain.mix.thoughts"] = bool(tiny and not others and found["pretrain.mix.thoughts"])
    return found


def compared_settings(plain: dict[str, Any], stage: str, *texts: str) -> dict[str, Any]:
    """What tells two outcomes of a stage apart: :func:`read_settings`, whose arguments these are, without
    :func:`rounding`, and :func:`besides`."""
    read, skip = read_settings(plain, stage, *texts), rounding(plain)
    return {name: value for name, value in read.items() if name not in skip} | besides(plain, stage)


def rounding(plain: Mapping[str, Any]) -> dict[str, Any]:
    """:data:`ROUNDING`, as {dotted name: value}; the mean that ``bnpo`` takes is over ``micro_prompts`` prompts."""
    return {name: _setting(plain, name) for name in ROUNDING
            if name != "grpo.micro_prompts" or plain["grpo"]["loss"] != "bnpo"}


def prompts_identity(run: RunFolder, negatives: str) -> list[str]:
    """What decides the prompts of an evaluation, beside the split and how many are asked."""
    return [run.key("thoughts"), negatives]


def stage_key(config: TrainConfig, stage: str, first: Mapping[str, Any] | None = None) -> str:
    """Fingerprint of everything that decides a stage's outcome.

    Args:
        config: the settings.
        stage: which one.
        first: :func:`rounding` of another start, whose values take the place of these.
    """
    plain = as_plain(config)
    below, read = [stage_key(config, name, first) for name in builds_on(config, stage)], read_settings(plain, stage)
    replaced = {name: value for name, value in (first or {}).items() if name in read and name in rounding(plain)}
    return fingerprint(stage, read | replaced, below)


@dataclass
class RunFolder:
    """A run folder, opened with its configuration."""

    path: Path
    config: TrainConfig
    texts: str = TEMPLATE_VERSION

    def key(self, stage: str) -> str:
        """:func:`stage_key` under the present settings, but for :data:`ROUNDING` as the folder was made with."""
        record = self.path / "run.json"
        return stage_key(self.config, stage, made_with(_read_json(record)) if record.exists() else {})

    @classmethod
    @contextmanager
    def open(cls, config: TrainConfig, *, provenance: dict[str, Any], overwrite: bool = False) -> Iterator[RunFolder]:
        """Open or create the folder of this configuration, and hold it while the block lasts.

        Raises:
            ValueError: the folder was made with other settings (names them), is not a run folder, or is in use.
        """
        run = cls(Path(config.run_dir).expanduser(), config)
        record = run.path / "run.json"
        ours = {"lock", beside(record, "tmp").name}  # a process killed before it could write run.json leaves these
        if not record.exists():
            if run.path.exists() and any(p.name not in ours for p in run.path.iterdir()):
                raise ValueError(f"run_dir {run.path} is not empty and holds no run.json; choose another --run_dir")
            run.path.mkdir(parents=True, exist_ok=True)
        with run.locked():
            sweep(run.path)
            first = rounding(as_plain(config))
            if record.exists():
                before = _read_json(record)
                run._refuse_or_clear(before, overwrite)
                first |= made_with(before)
            write_json(record, {"config": as_plain(config), "texts": TEMPLATE_VERSION, "made_with": first,
                                **provenance})
            yield run

    @classmethod
    def existing(cls, folder: str | Path, *, any_texts: bool = False) -> RunFolder:
        """Open a folder that a run has made, with the configuration kept in it.

        Args:
            folder: of the run.
            any_texts: also one whose prompts have other words than those of this version, which no prompt is to be
                written for.

        Raises:
            ValueError: it is no run folder, or its model has learned prompts that this version does not write.
        """
        path = Path(folder).expanduser()
        if not (path / "run.json").exists():
            raise ValueError(f"{path} is not a run folder (no run.json); give the --run_dir of a finished training run")
        record = _read_json(path / "run.json")
        texts = record.get("texts", FIRST_TEXTS)
        if texts != TEMPLATE_VERSION and not any_texts:
            raise ValueError(f"{path} must have prompts in the words of version {TEMPLATE_VERSION} of the texts; it "
                             f"has those of version {texts}; use commit {record.get('commit')}, or train anew")
        return cls(path, config_from_plain(record["config"]), texts)

    def _refuse_or_clear(self, record: dict[str, Any], overwrite: bool) -> None:
        plain, old_plain, old_texts = as_plain(self.config), record["config"], record.get("texts", FIRST_TEXTS)
        done = self._stages()
        touched, names = [], []
        for stage in STAGES:
            if stage in FREE:
                continue
            old, new = compared_settings(old_plain, stage, old_texts), compared_settings(plain, stage)
            changed = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
            if changed and (stage in done or self.folder(stage).exists()):
                touched.append(stage)
                for k in changed:
                    was, now = (_setting(start, k) if k in BESIDES.get(stage, ()) else read.get(k, _setting(start, k))
                                for start, read in ((old_plain, old), (plain, new)))
                    names += [f"{k} (was {was!r}, now {now!r})"] if was != now else []
        if not touched:
            return
        if not overwrite:
            listed = "; ".join(dict.fromkeys(names))
            raise ValueError(f"run_dir {self.path} was made with other settings: {listed}; choose another --run_dir, "
                             f"or --overwrite to run {touched[0]} and what follows anew")
        for stage in STAGES[STAGES.index(touched[0]):]:
            self.clear(stage)

    def refuse_other_data(self, overwrite: bool) -> None:
        """Make sure that the files at ``data.path`` are still those that the run was prepared from.

        Args:
            overwrite: begin anew with the files that are there, instead of refusing.

        Raises:
            ValueError: some are not (named).
        """
        if not self.is_done("prepare"):
            return
        changed = changed_sources(self.config.data, self.result("prepare").get("sources", {}))
        if changed and not overwrite:
            raise ValueError(f"data.path must hold the files that {self.path} was prepared from; {', '.join(changed)} "
                             "changed; choose another --run_dir, or --overwrite to run all stages anew")
        for stage in STAGES if changed else ():
            self.clear(stage)

    def folder(self, stage: str) -> Path:
        """Where a stage keeps its output."""
        return self.path / stage

    def clear(self, stage: str, but: Sequence[str] = ()) -> None:
        """Forget a stage and delete its output, all ``but`` the files that these patterns name."""
        done = self._stages()
        done.pop(stage, None)
        write_json(self.path / "stages.json", done)
        folder = self.folder(stage)
        if not but:
            delete_folder(folder)
            return
        for path in folder.iterdir() if folder.is_dir() else ():
            if path.is_dir():
                delete_folder(path)
            elif not any(map(path.match, but)):
                path.unlink()

    def claim(self, stage: str) -> None:
        """Start or go on with a stage: output that lies there from other settings or inputs is deleted first, but for
        :data:`ANSWERS` of an evaluation, which takes those that are its own."""
        path = self.path / "claims.json"
        claims = _read_json(path) if path.exists() else {}
        key = self.key(stage)
        if claims.get(stage) != key:
            self.clear(stage, but=ANSWERS if stage == "evaluate" else ())
            claims[stage] = key
            write_json(path, claims)

    def _stages(self) -> dict[str, Any]:
        path = self.path / "stages.json"
        return _read_json(path) if path.exists() else {}

    def result(self, stage: str) -> dict[str, Any]:
        """What a finished stage reported.

        Raises:
            ValueError: the stage has not finished.
        """
        done = self._stages()
        if stage not in done:
            raise ValueError(f"stage {stage!r} of {self.path} has not finished; run python -m r2rec_jax.train "
                             f"--stages {stage} first")
        return done[stage]["result"]

    def origin(self, stage: str) -> dict[str, dict[str, Any]]:
        """By stage, :data:`CODE` of those that a stage builds on and of itself, as far as it was kept."""
        done = self._stages()
        found = {}
        for below in builds_on(self.config, stage):
            found |= self.origin(below)
        own = {name: done[stage][name] for name in CODE if name in done[stage]} if stage in done else {}
        return found | ({stage: own} if own else {})

    def is_done(self, stage: str) -> bool:
        """Whether the stage has finished under the present settings."""
        return self._stages().get(stage, {}).get("key") == self.key(stage)

    def mark_done(self, stage: str, seconds: float, result: dict[str, Any], **more: Any) -> None:
        """Record that a stage has finished, and what else is to be known of it."""
        done = self._stages()
        done[stage] = {"key": self.key(stage), "seconds": round(seconds, 3),
                       "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "result": result, **more}
        write_json(self.path / "stages.json", done)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; a second process is refused, a lock left by a killed one is not in the way."""
        with held(self.path / "lock", f"run_dir {self.path}", "wait for it or choose another --run_dir"):
            yield


def _setting(plain: Mapping[str, Any], name: str) -> Any:
    """A setting by its dotted name, whether or not a key has it; None where there is none."""
    value: Any = plain
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def made_with(record: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`rounding` of the start that made a run folder, from its run.json."""
    return record.get("made_with") or rounding(record["config"])


def config_from_plain(plain: dict[str, Any]) -> TrainConfig:
    """A TrainConfig from :func:`as_plain`'s form; unknown keys are an error that names them."""
    from r2rec_jax.stages.cli import from_plain

    return from_plain(TrainConfig, plain, "run.json holds settings of another version")


def _read_json(path: Path) -> Any:
    return read_json(path, "delete the run folder or restore the file")
