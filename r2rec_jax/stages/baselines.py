"""Train and judge classical recommenders on frozen queries, one model and seed at a time.

    <out>/<data>/seed-<k>/prepared/       data, queries and candidates (``python -m r2rec_jax.prepare`` makes the same)
    <out>/<data>/seed-<k>/<model>/        params.safetensors, ranks-test-<negatives>.jsonl, result.json
    <results>/baselines_<data>_<model>_<k>.json    a copy of result.json

``result.json`` is written last: a model and seed that have it are not run again, and one that was stopped goes on from
its last checkpoint. A copy of other data or settings (every table of one's own is called ``table``) is not replaced
unless that is asked for. Models learn from training edges; which epoch is kept is decided by the mean reciprocal rank
of the validation targets among their candidates; test targets are read once, by :func:`judge_model`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from r2rec_jax import progress
from r2rec_jax.baselines.classical import config_class, make_model
from r2rec_jax.baselines.events import Contexts, Events, contexts_from, events_from
from r2rec_jax.baselines.loop import Trained, Validate, train
from r2rec_jax.baselines.model import Params, Recommender
from r2rec_jax.baselines.storage import PARAMS_FILE, save_model
from r2rec_jax.config import (
    AnswerConfig,
    DataConfig,
    GraphConfig,
    PromptConfig,
    TrainConfig,
    as_plain,
    dotted,
    fingerprint,
)
from r2rec_jax.data.fetch import changed_sources
from r2rec_jax.data.queries import Query
from r2rec_jax.data.splits import item_edges
from r2rec_jax.evaluation.ranking import mrr, rank_from_scores
from r2rec_jax.evaluation.ranks import RankRecord, from_scores, write_ranks
from r2rec_jax.evaluation.summary import summarize_ranks
from r2rec_jax.evaluation.tables import result_file
from r2rec_jax.files import read_json, write_json
from r2rec_jax.stages.manifest import MANIFEST
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.run import RunFolder

RESULT_FILE = "result.json"
SCORES_AT_ONCE = 1 << 26
"""How many scores may be in memory (256 MB in float32)."""


@dataclass(frozen=True)
class BaselineConfig:
    """What to run.

    Attributes:
        data: the data; seed k sets ``split_seed``, and every evaluation user gives a validation query too.
        models: names of the registry.
        seeds: each is split seed and train seed of its own run.
        out: folder of all models.
        results: folder of the result files; null writes none beside those in ``out``.
        settings: model name -> its settings; the defaults where missing.
        overwrite: run anew, and replace in ``results``, what was made with other settings.
    """

    data: DataConfig
    models: Sequence[str]
    seeds: Sequence[int] = (0,)
    out: str = "runs/baselines"
    results: str | None = "results"
    settings: Mapping[str, Any] = field(default_factory=dict)
    overwrite: bool = False

    @cached_property
    def data_name(self) -> str:
        """The data set in folder and file names."""
        return self.data.label if self.data.split == "last-positive" else f"{self.data.label}-{self.data.split}"

    def seed_folder(self, seed: int) -> Path:
        """Folder of one seed."""
        return Path(self.out).expanduser() / self.data_name / f"seed-{seed}"

    def copied_result(self, model: str, seed: int) -> Path | None:
        """The result file beside those in ``out``; None where there is to be none."""
        if self.results is None:
            return None
        return Path(self.results).expanduser() / f"baselines_{self.data_name}_{model}_{seed}.json"

    def prepare_config(self, seed: int) -> TrainConfig:
        """The settings that the data of a seed are prepared with; no chains, and no more training queries than must."""
        data = replace(self.data, split_seed=seed, sft_queries=1, rl_queries=1)
        if data.split == "last-positive":  # global-time draws its validation users apart, and may have fewer
            data = replace(data, validation_users=data.eval_users)
        prompts = PromptConfig(answer=AnswerConfig(top=min(20, data.candidates)))
        return TrainConfig(data=data, graph=GraphConfig(chains=0), prompts=prompts, train_seed=seed)


def run_baselines(config: BaselineConfig) -> list[dict[str, Any]]:
    """Train and judge every model with every seed.

    Returns:
        The contents of the result files, seed by seed.

    Raises:
        ValueError: bad data or settings; a finished model or its copy was made with other settings; a folder is in
            use.
        RuntimeError: a model diverged.
    """
    results = []
    for seed in config.seeds:
        prepared = _prepare(config, seed)
        for name in config.models:
            result = run_model(config, prepared, name, seed)
            if (copy := config.copied_result(name, seed)) is not None:
                write_json(copy, result)
            results.append(result)
    return results


def _prepare(config: BaselineConfig, seed: int) -> Prepared:
    """The prepared data of a seed, made where missing."""
    folder, wanted = config.seed_folder(seed), config.prepare_config(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with RunFolder(folder, wanted).locked():
        if (folder / "prepared" / MANIFEST).is_file() and not config.overwrite:
            found = Prepared.load(folder / "prepared", config=wanted)
            if changed := changed_sources(config.data, found.manifest["sources"]):
                raise ValueError(f"{folder} must have been prepared from the files at hand; {', '.join(changed)} "
                                 "differ; choose another --out, or --overwrite to run it anew")
            return found
        return prepare(wanted, folder / "prepared")


def run_model(config: BaselineConfig, prepared: Prepared, name: str, seed: int) -> dict[str, Any]:
    """Train and judge one model with one seed, or read what it gave before.

    Raises:
        ValueError: the folder holds the result of other settings or data (named), or is in use.
        RuntimeError: the model diverged.
    """
    settings = config.settings.get(name)
    settings = config_class(name)() if settings is None else settings
    folder = config.seed_folder(seed) / name
    folder.mkdir(parents=True, exist_ok=True)
    identity = {"model": name, "seed": seed, "settings": as_plain(settings), "data": _data_identity(prepared)}
    if (copy := config.copied_result(name, seed)) is not None:
        _result_of(copy, identity, config.overwrite, "choose another --results, or --overwrite to replace it")
    with RunFolder(folder, config.prepare_config(seed)).locked():
        found = _finished(folder, identity, config.overwrite)
        if found is not None:
            progress.say(f"{name} seed {seed}: finished before, in {folder}")
            return found
        return _train_and_judge(prepared, make_model(name, settings, training_events(prepared)), seed, folder, identity)


def _data_identity(prepared: Prepared) -> dict[str, Any]:
    manifest = prepared.manifest
    return {"settings": manifest["config"]["data"], "sources": manifest["sources"], "queries": manifest["queries"],
            "candidates": manifest["candidates"]}


def _finished(folder: Path, identity: Mapping[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The result that lies in a folder; None where there is none, or it may be replaced."""
    path = folder / RESULT_FILE
    found = _result_of(path, identity, overwrite, "choose another --out, or --overwrite to run it anew")
    if found is None and path.is_file():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        path.unlink()
    return found


def _result_of(path: Path, identity: Mapping[str, Any], overwrite: bool, remedy: str) -> dict[str, Any] | None:
    """The result in a file; None where there is none, or one of other settings that may be replaced."""
    if not path.is_file():
        return None
    result = read_json(path, "delete the file and run the model again")
    if result.get("config_sha256") == fingerprint(identity):
        return result
    if overwrite:
        return None
    was, now = dotted(result.get("identity", {})), dotted(identity)
    names = ", ".join(name for name in sorted(was.keys() | now.keys()) if was.get(name) != now.get(name))
    raise ValueError(f"{path} holds a result of other settings: {names or 'of another version'} differ; {remedy}")


def _train_and_judge(prepared: Prepared, model: Recommender, seed: int, folder: Path, identity: dict[str, Any],
                     ) -> dict[str, Any]:
    trained = train(model, seed=seed, validate=validation(model, prepared), folder=folder / "checkpoints",
                    identity=fingerprint(identity["data"]))
    save_model(folder / PARAMS_FILE, model, trained.params)
    started = time.monotonic()
    by_negatives = judge_model(model, trained.params, prepared)
    scoring_s = time.monotonic() - started
    rows = []
    for negatives, records in by_negatives.items():
        write_ranks(folder / f"ranks-test-{negatives}.jsonl", records)
        row = summarize_ranks(records, system=model.name, dataset=prepared.data_config.label, negatives=negatives,
                              split=prepared.data_config.split, seed=seed)
        rows.append(row | {"seconds_per_user": scoring_s / len(records)})
    result = result_file(
        f"{model.name} on {prepared.data_config.label}, seed {seed}", rows, fingerprint(identity), identity=identity,
        model=model.name, seed=seed, settings=identity["settings"], training=_training(trained, prepared),
        scoring_s=round(scoring_s, 3), training_edges=len(model.events))
    write_json(folder / RESULT_FILE, result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _training(trained: Trained, prepared: Prepared) -> dict[str, Any]:
    """How the parameters came about, as a result file has it."""
    return {
        "validation": {"metric": "mrr", "negatives": prepared.negatives, "value": trained.validation,
                       "users": len(prepared.queries["validation"])},
        "best_epoch": trained.best_epoch, "epochs": len(trained.history), "updates": trained.steps,
        "skipped_updates": trained.skipped, "parameters": trained.n_parameters,
        "seconds": round(trained.seconds, 3), "compile_s": round(trained.compile_s, 3),
        "history": [{name: round(value, 6) if isinstance(value, float) else value
                     for name, value in asdict(record).items()} for record in trained.history],
    }


def training_events(prepared: Prepared) -> Events:
    """The training edges of prepared data."""
    return events_from(prepared.dataset, prepared.training, prepared.data_config.positive_above)


def validation(model: Recommender, prepared: Prepared) -> Validate:
    """``validate(params)``: mean reciprocal rank of the validation targets among their candidates.

    It uses the whole rank, so among values of the same users it is the least noisy one.

    Raises:
        ValueError: there are no validation queries.
    """
    queries = prepared.queries["validation"]
    if not queries:
        raise ValueError("baselines need validation queries (they decide which epoch is kept); the data has none; "
                         "raise data.eval_users, or move data.validation_from and data.test_from apart")
    contexts = contexts_from(prepared.dataset, queries, prepared.data_config.positive_above)
    candidates = np.array([query.candidates for query in queries])
    positions = np.array([query.candidates.index(query.target) for query in queries])

    def validate(params: Params) -> float:
        own = [np.take_along_axis(scores, candidates[part], axis=1)
               for part, scores in _scores(model, params, contexts)]
        return mrr(rank_from_scores(np.concatenate(own), positions))

    return validate


def judge_model(model: Recommender, params: Params, prepared: Prepared) -> dict[str, list[RankRecord]]:
    """Sampler of the negatives -> one record a test query, in file order; every sampler that was prepared."""
    queries = prepared.queries["test"]
    samplers = {name: prepared.with_negatives(name).queries["test"] for name in prepared.candidates}
    contexts = contexts_from(prepared.dataset, queries, prepared.data_config.positive_above)
    edges = item_edges(prepared.dataset, prepared.training)
    records: dict[str, list[RankRecord]] = {name: [] for name in samplers}
    with progress.bar(f"judge {model.name}", total=len(queries), unit="users") as bar:
        for part, scores in _scores(model, params, contexts):
            seen = contexts.part(part.start, part.stop)
            for name, own in samplers.items():
                chosen: Sequence[Query] = own[part]
                records[name] += from_scores(model.name, prepared.dataset, chosen, scores, seen_offsets=seen.offsets,
                                             seen_items=seen.items, target_edges=edges)
            bar.advance(len(scores))
    return records


def _scores(model: Recommender, params: Params, contexts: Contexts) -> Iterator[tuple[slice, Any]]:
    """(queries, their scores float32 [q, I]) in parts that fit in memory.

    Raises:
        RuntimeError: a score is not finite.
    """
    size = max(1, SCORES_AT_ONCE // model.events.n_items)
    for start in range(0, len(contexts), size):
        part = slice(start, min(len(contexts), start + size))
        scores = model.score(params, contexts.part(part.start, part.stop))
        if not np.isfinite(scores).all():
            raise RuntimeError(f"scores of {model.name} must be finite; got {int((~np.isfinite(scores)).sum())} that "
                               "are not; lower its learning rate")
        yield part, scores
