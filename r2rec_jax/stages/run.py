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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2rec_jax.config import STAGES, TrainConfig, as_plain
from r2rec_jax.data.fetch import changed_sources
from r2rec_jax.files import beside, held, read_json, write_json
from r2rec_jax.models.folders import delete_folder, sweep
from r2rec_jax.prompts.templates import TEMPLATE_VERSION
from r2rec_jax.stages.keys import (
    BESIDES,
    FIRST_TEXTS,
    builds_on,
    compared_settings,
    made_with,
    rounding,
    setting,
    stage_key,
)
from r2rec_jax.stages.manifest import MANIFEST, read_manifest
from r2rec_jax.training.metrics import JsonLines

FREE = ("evaluate", "export")

_ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
PRODUCTS = {"prepare": (MANIFEST,), "thoughts": ("sft.jsonl", "tokenizer"), "pretrain": ("backbone",),
            "sft": _ADAPTER, "grpo": _ADAPTER}
"""What the stages after one read of its folder, beside the files that a manifest names."""

METRICS = "metrics.jsonl"
PLOTS = {"pretrain": "loss.png", "sft": "loss.png", "grpo": "reward.png"}
"""Stage that leaves rows of metrics -> the plot that shows them."""

HOSTED = "hosted"
"""Folder of what ``evaluate --endpoint`` asked."""

_FIX = "delete the run folder or restore the file"

CODE = ("commit", "dirty", "hardware")
"""What is kept of the version that finished a stage."""

ANSWERS = ("predictions-*.jsonl", "requests-*.jsonl")
"""Files of the ``evaluate`` stage whose every line names what it is the answer of: none is taken for another's. Earlier
versions left hosted models' answers and journals there."""


def prompts_identity(run: RunFolder, negatives: str) -> list[str]:
    """What decides the prompts of an evaluation, beside the split and how many are asked."""
    return [run.key("thoughts"), negatives]


@dataclass
class RunFolder:
    """A run folder, opened with its configuration."""

    path: Path
    config: TrainConfig
    texts: str = TEMPLATE_VERSION

    def key(self, stage: str) -> str:
        """:func:`stage_key` under the present settings, but for :data:`ROUNDING` as the folder was made with."""
        record = self.path / "run.json"
        return stage_key(self.config, stage, made_with(_read_run(record)) if record.exists() else {})

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
                before = _read_run(record)
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
        record = _read_run(path / "run.json")
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
                    was, now = (setting(start, k) if k in BESIDES.get(stage, ()) else read.get(k, setting(start, k))
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
        """Forget a stage and delete its output, all ``but`` the files that these patterns name, with its rows of
        metrics and the plot of them."""
        done = self._stages()
        done.pop(stage, None)
        write_json(self.path / "stages.json", done)
        if stage in PLOTS:
            JsonLines(self.path / METRICS).keep(lambda row: row.get("stage") != stage)
            delete_folder(self.path / "tensorboard" / stage)
            (self.path / "plots" / PLOTS[stage]).unlink(missing_ok=True)
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
        claims = read_json(path, _FIX) if path.exists() else {}
        key = self.key(stage)
        if claims.get(stage) != key:
            self.clear(stage, but=ANSWERS if stage == "evaluate" else ())
            claims[stage] = key
            write_json(path, claims)

    def _stages(self) -> dict[str, Any]:
        return read_stages(self.path, _FIX)

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

    def lost(self, stage: str) -> list[str]:
        """What a finished stage has made and is no longer there."""
        if stage == "pretrain" and not self.config.trains_backbone:
            return []
        folder, names = self.folder(stage), PRODUCTS.get(stage, ())
        if stage == "prepare" and (folder / MANIFEST).exists():
            names = (*names, *read_manifest(folder / MANIFEST)["files"])
        if stage == "export":
            names = tuple(self.config.export.formats)
        return [name for name in names if not (folder / name).exists()] if folder.is_dir() else [f"{stage}/"]

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


def config_from_plain(plain: dict[str, Any]) -> TrainConfig:
    """A TrainConfig from :func:`as_plain`'s form; unknown keys are an error that names them."""
    from r2rec_jax.stages.cli import from_plain

    return from_plain(TrainConfig, plain, "run.json holds settings of another version")


def read_stages(folder: Path, fix: str) -> dict[str, Any]:
    """By stage, what is kept of those that have finished in a run folder.

    Args:
        folder: of the run.
        fix: what to do about a damaged file.

    Raises:
        ValueError: it is damaged.
    """
    path = folder / "stages.json"
    done = read_json(path, fix) if path.exists() else {}
    other = [name for name, entry in done.items() if not isinstance(entry, dict)]
    if other:
        raise ValueError(f"{path} must have an object for each stage; got another value for {', '.join(other)}; {fix}")
    return done


def _read_run(path: Path) -> dict[str, Any]:
    return read_json(path, _FIX, config=dict)
