"""The evaluate stage: every policy of the run on the same frozen queries, by the protocol of ``evaluation``.

    <run>/evaluate/predictions-<lists>-<system>.jsonl    one line an answer: prompt, raw output, parsed ranking, target
    <run>/evaluate/ranks-...-<system>.jsonl, .json       where targets stood, and the settings they were asked under
    <run>/evaluate/results-<lists>.json                  the rows, with commit, settings, seeds, hardware

``<lists>`` is the split, followed by the sampler of the negatives where it is not that of ``data.negatives``, by
``chains-swapped`` or ``chains-none`` where prompts do not show the query's own chains, and by the settings in which a
look differs from the run (``temperature-0.0``): it stands beside the run's figures, not in their place. Where
candidates are ranked by likelihood the system's name says so (``sft-likelihood``), and that of the results file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax

from r2rec_jax.config import EvaluateConfig, PromptConfig, as_plain, fingerprint
from r2rec_jax.config.data import COUNTS
from r2rec_jax.config.output import SHAPING
from r2rec_jax.data.candidates import Negatives
from r2rec_jax.data.queries import Query, split_name
from r2rec_jax.evaluation.generation import policy_generate
from r2rec_jax.evaluation.predictions import Prediction, PredictionLog, read_predictions
from r2rec_jax.evaluation.protocol import (
    Completions,
    EvaluationQuery,
    Generate,
    OnTokens,
    evaluate_system,
    summarize,
)
from r2rec_jax.evaluation.ranks import edges_of_targets, from_predictions, write_ranks
from r2rec_jax.evaluation.significance import compare
from r2rec_jax.evaluation.tables import result_file
from r2rec_jax.files import write_json
from r2rec_jax.parallel.distributed import follow, is_first, leading, on_first
from r2rec_jax.progress import bar
from r2rec_jax.prompts.answer import AnswerForm
from r2rec_jax.stages.keys import builds_on
from r2rec_jax.stages.likelihood import count_likes, likelihood_query, policy_likelihood
from r2rec_jax.stages.rendering import RenderedQuery, count_dropped, render_queries
from r2rec_jax.stages.swapped import with_swapped_chains
from r2rec_jax.stages.systems import CHECKPOINTS, system_name, trained_by
from r2rec_jax.stages.thinking import shown_thoughts
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.thoughts.truth import Truth, count_true, truth_of
from r2rec_jax.training.state import stream_key


def likelihood_suffix(config: EvaluateConfig) -> str:
    """What systems ranked by likelihood are called beyond their checkpoint: ``-likelihood``, ``-likelihood-mean``."""
    if config.method == "generate":
        return ""
    return "-likelihood" if config.likelihood == "sum" else f"-likelihood-{config.likelihood}"


def negatives_of(work: Workspace, config: EvaluateConfig) -> Negatives:
    """The sampler whose candidate lists are evaluated."""
    return config.negatives or work.config.data.negatives


def lists_name(work: Workspace, config: EvaluateConfig) -> str:
    """How files call what is evaluated: ``test``, ``test-popularity`` when that is not ``data.negatives``,
    ``test-chains-swapped`` when prompts show other chains than the query's."""
    negatives = negatives_of(work, config)
    name = config.split if negatives == work.config.data.negatives else f"{config.split}-{negatives}"
    return name if config.chains == "own" else f"{name}-chains-{config.chains}"


def look_name(work: Workspace, config: EvaluateConfig, names: Sequence[str]) -> str:
    """How files call the settings among ``names`` that are not the run's own, each with a dash before it:
    ``-temperature-0.0``, ``-users-all``; nothing when all are."""
    looked = [(name, getattr(config, name)) for name in names
              if getattr(config, name) != getattr(work.config.evaluate, name)]
    return "".join(f"-{name}-{'all' if value is None else value}" for name, value in looked)


@dataclass(frozen=True)
class Files:
    """What one system's evaluation leaves: answers, ranks, and the result file of a checkpoint evaluated alone."""

    predictions: Path
    ranks: Path
    results: Path


def evaluation_files(work: Workspace, checkpoint: str, config: EvaluateConfig) -> Files:
    """Where a checkpoint's evaluation lies; ranks under other chains than the query's own, or other settings than the
    run's, are named so that no comparison takes them for the system's."""
    folder, look = work.run.folder("evaluate"), look_name(work, config, [*SHAPING[config.method], "users"])
    lists = lists_name(work, config) + look
    suffix = likelihood_suffix(config)
    system = system_name(work.config, checkpoint) + suffix
    exam = "" if config.chains == "own" else f"chains-{config.chains}-"
    if look:
        exam = f"{look[1:]}-{exam}"
    return Files(folder / f"predictions-{lists}-{system}.jsonl",
                 folder / f"ranks-{exam}{config.split}-{negatives_of(work, config)}-{system}.jsonl",
                 folder / f"results-{lists}-{checkpoint}{suffix}.json")


def evaluation_queries(work: Workspace, config: EvaluateConfig) -> list[Query]:
    """The frozen queries that are evaluated, with the candidates of ``evaluate.negatives``.

    Raises:
        ValueError: there are none, fewer than ``evaluate.users``, or no such lists.
    """
    queries = work.prepared.with_negatives(negatives_of(work, config)).asked(config.split)
    if config.users is not None and config.users > len(queries):
        raise ValueError(f"evaluate.users must be <= the {len(queries)} frozen {config.split} queries; got "
                         f"{config.users}; lower it or raise data.{COUNTS[config.split]}")
    return queries[:config.users]


def make_generate(work: Workspace, checkpoint: str, config: EvaluateConfig) -> Generate:
    """A checkpoint's policy as the protocol takes it: rows and prompts in, texts out."""
    return policy_generate(
        work.decoder, work.adapter(checkpoint), work.backbone.base, work.tokenizer,
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p,
        key=stream_key(work.config.train_seed, "evaluate", 0), answers=config.answers)


@dataclass(frozen=True)
class PolicyExam:
    """What the checkpoints are asked, and how they answer.

    Attributes:
        queries: the frozen queries, as the evaluation loop takes them.
        make_generate: a checkpoint -> how it answers.
        form: of the answers.
        answers: to every query.
        prompts: counts of the prompts, for the result file.
        truth: answers of all queries -> share of their statements that are true; None where they make none, or have
            learned another teacher's words.
    """

    queries: Sequence[EvaluationQuery]
    make_generate: Callable[[str], Generate]
    form: AnswerForm
    answers: int
    prompts: dict[str, int]
    truth: Callable[[Sequence[Prediction]], float | None]


def make_exam(work: Workspace, config: EvaluateConfig) -> PolicyExam:
    """The exam of a method: rendered prompts to be completed, or plain texts whose continuations are scored."""
    queries = evaluation_queries(work, config)
    if config.method == "likelihood":
        positions = work.backbone.config.max_positions
        texts = [likelihood_query(work.prepared, query, work.tokenizer, positions, config.lines) for query in queries]
        return PolicyExam([text.asked for text in texts], lambda name: policy_likelihood(work, name, texts, config),
                          "titles", 1, count_likes(texts), lambda predictions: None)
    prepared, prompts = work.prepared, work.config.prompts
    if config.chains == "swapped":
        prepared = with_swapped_chains(prepared.with_negatives(negatives_of(work, config)), config.split,
                                       work.config.train_seed)
    if config.chains == "none":
        prompts = replace(prompts, chains=False)
    shown = shown_thoughts(work, queries, prepared) if prompts.chains else None
    rendered = render_queries(prepared, queries, prompts, work.tokenizer, shown)
    known = cache(lambda: _known_truths(rendered, prompts))
    own_words = work.config.thoughts.teacher == "template"
    return PolicyExam([r.for_evaluation(prepared) for r in rendered], lambda name: make_generate(work, name, config),
                      prompts.answer.form, config.answers, count_dropped(rendered),
                      lambda predictions: true_rate(rendered, known(), predictions) if own_words else None)


def _known_truths(rendered: Sequence[RenderedQuery], config: PromptConfig) -> list[Truth]:
    with bar("true statements", len(rendered), "prompts") as progress:
        found = []
        for r in rendered:
            found.append(truth_of(r.view, config, len(r.chains)))
            progress.advance()
    return found


def true_rate(rendered: Sequence[RenderedQuery], known: Sequence[Truth], predictions: Sequence[Prediction]
              ) -> float | None:
    """Share of the statements in all answers that the template could have written of their prompts
    (:mod:`~r2rec_jax.thoughts.truth`); None where there is no statement."""
    answers = len(predictions) // len(rendered)
    asked = [pair for pair in zip(rendered, known, strict=True) for _ in range(answers)]
    counts = [count_true(p.output, true, r.labels, opened_think=r.chat.opened_think)
              for (r, true), p in zip(asked, predictions, strict=True)]
    statements, true = map(sum, zip(*counts, strict=True))
    return true / statements if statements else None


def evaluate_checkpoint(work: Workspace, checkpoint: str, config: EvaluateConfig, exam: PolicyExam) -> list[Prediction]:
    """Predictions of one checkpoint, resumed from what its file holds already.

    All processes decode every batch together; process 0 decides which batches are left, judges and keeps the answers,
    and the others return none.
    """
    system = system_name(work.config, checkpoint) + likelihood_suffix(config)
    path = evaluation_files(work, checkpoint, config).predictions
    generate = exam.make_generate(checkpoint)

    def draw(rows: Sequence[int], prompts: Sequence[Sequence[int]], told: OnTokens = lambda count: None) -> Completions:
        return generate(rows, prompts, told)

    if not is_first():
        follow(draw)
        return []
    key = work.run.key(trained_by(checkpoint))
    source = fingerprint(work.backbone.sha256, work.adapter_sha256(checkpoint), key,
                         config.answer_settings(negatives_of(work, config)), jax.default_backend())
    _take_own(work, checkpoint, config, exam, path, source)
    with leading(draw) as together:
        return evaluate_system(
            system, exam.queries, lambda rows, prompts, on_tokens: together(rows, prompts, told=on_tokens), path=path,
            source=source, batch_size=config.batch_size, form=exam.form, answers=exam.answers)


def _take_own(work: Workspace, checkpoint: str, config: EvaluateConfig, exam: PolicyExam, path: Path, source: str
              ) -> None:
    """A look at fewer or more users begins with the answers that the run has already."""
    own = evaluation_files(work, checkpoint, replace(config, users=work.config.evaluate.users)).predictions
    if own != path and own.exists() and not path.exists():
        asked = {query.query_id for query in exam.queries}
        PredictionLog(path, source, exam.answers).append(
            p for p in read_predictions(own) if p.source == source and p.query_id in asked)


def evaluate_run(work: Workspace, config: EvaluateConfig, checkpoints: Sequence[str], file: Path) -> dict[str, Any]:
    """Evaluate checkpoints and write the result file; every process of a run calls it.

    Returns:
        The result file's contents.
    """
    exam = make_exam(work, config)
    predictions = {name: evaluate_checkpoint(work, name, config, exam) for name in checkpoints}
    return on_first(lambda: _report(work, config, exam, predictions, file))


def _report(work: Workspace, config: EvaluateConfig, exam: PolicyExam,
            predictions: dict[str, list[Prediction]], file: Path) -> dict[str, Any]:
    """Rows, ranks and comparison of what was answered, written."""
    c, prepared = work.config, work.prepared
    edges = edges_of_targets(prepared.dataset, prepared.training, prepared.queries[config.split])
    rows = [summarize(mine, dataset=c.data.label, negatives=negatives_of(work, config), seed=c.train_seed,
                      split=split_name(c.data.split, config.split), target_edges=edges)
            | {"split_seed": c.data.split_seed, "candidates": c.data.candidates, "chains": config.chains,
               "true_rate": exam.truth(mine)}
            for mine in predictions.values()]
    for name, mine in predictions.items():
        write_ranks(evaluation_files(work, name, config).ranks, from_predictions(mine, edges),
                    config.answer_settings(negatives_of(work, config)))
    settings = {k: v for k, v in as_plain(c).items() if k != "parallel"}  # no result depends on it
    trained = {stage: code for name in predictions for stage, code in work.run.origin(trained_by(name)).items()}
    result = result_file(
        what(work, list(predictions)), rows, fingerprint(settings), note=c.note, prompts=exam.prompts,
        settings=as_plain(config), trained=trained, significance=_compare(predictions),
        base_sha256=work.backbone.sha256, backbone=c.backbone.source)
    write_json(file, result)
    return result


def evaluate_stage(work: Workspace) -> dict[str, Any]:
    """Evaluate the configured systems."""
    config = work.config.evaluate
    file = f"results-{lists_name(work, config)}{likelihood_suffix(config)}.json"
    return evaluate_run(work, config, [CHECKPOINTS[name] for name in config.systems],
                        work.run.folder("evaluate") / file)


def what(work: Workspace, checkpoints: Sequence[str]) -> str:
    """One line that says what was measured, and how long that was trained.

    Example: ``"tiny on ml-100k: pretraining of 2,000 steps, SFT of 375 steps (6,000 queries)"``.
    """
    config, stages = work.config, {trained_by(name) for name in checkpoints}
    if "grpo" in stages:
        stages |= set(builds_on(config, "grpo"))
    parts = [f"pretraining of {config.pretrain.steps:,} steps"] if config.trains_backbone else []
    parts += [f"{stage.upper()} of {work.run.result(stage)['steps']:,} steps ({queries:,} queries)"
              for stage, queries in (("sft", config.data.sft_queries), ("grpo", config.data.rl_queries))
              if stage in stages]
    return f"{config.backbone.source} on {config.data.label}: {', '.join(parts) or 'not trained'}"


def _compare(predictions: dict[str, list[Prediction]]) -> list[dict[str, Any]]:
    """Paired bootstrap of HitRatio@1 between each system and the one before it."""
    found = []
    for (_, first), (_, second) in pairwise(predictions.items()):
        found.append({"metric": "hr@1", "system": second[0].system, "minus": first[0].system,
                      **asdict(compare(second, first))})
    return found
