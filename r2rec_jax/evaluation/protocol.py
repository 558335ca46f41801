"""The evaluation loop: frozen queries in, one answer per user out, judged by one protocol.

Every language-model system goes through :func:`evaluate_system`; what differs is the injected ``generate``. Nobody
helps the model at evaluation: the prompt is the query's, and the completion is parsed as it came. Completions are
sampled as the paper does (temperature 0.6, top-p 0.9), one a user or several whose mean counts, or greedy.

Batches are cut from the whole list of queries, longest prompts first, and every query's random stream is its place in
that list. A resumed evaluation therefore forms the same batches and draws the same numbers as one that was never
stopped, and returns the same predictions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2rec_jax import progress
from r2rec_jax.evaluation.predictions import Prediction, PredictionLog
from r2rec_jax.evaluation.ranking import hit_ratio, rank_of_target
from r2rec_jax.evaluation.ranks import from_predictions
from r2rec_jax.evaluation.summary import summarize_ranks
from r2rec_jax.prompts.answer import AnswerForm, parse_completion


@dataclass(frozen=True)
class EvaluationQuery:
    """A frozen query, rendered and tokenised.

    Attributes:
        query_id: of the frozen query.
        user_id: raw id of the user.
        candidates: raw item ids, in the order of the prompt.
        titles: the candidates as the prompt displays them.
        target: 0-based position of the target among the candidates.
        prompt: the whole user message.
        prompt_ids: token ids of the chat prompt.
        opened_think: the chat template has already written ``<think>``.
    """

    query_id: str
    user_id: str
    candidates: tuple[str, ...]
    titles: tuple[str, ...]
    target: int
    prompt: str
    prompt_ids: tuple[int, ...]
    opened_think: bool = False

    def __post_init__(self) -> None:
        if len(self.titles) != len(self.candidates) or not 0 <= self.target < len(self.candidates):
            raise ValueError(f"query {self.query_id} must have one title a candidate and its target among them; got "
                             f"{len(self.candidates)} candidates, {len(self.titles)} titles, target {self.target}")


@dataclass(frozen=True)
class Completions:
    """The answers to one batch of prompts, as many to each; those of a prompt stand together.

    Attributes:
        texts: decoded completions, end token removed.
        tokens: their lengths in tokens, end token included.
        truncated: whether each hit the length limit.
        compile_s: seconds of the call that went into compiling; they are reported apart.
    """

    texts: tuple[str, ...]
    tokens: tuple[int, ...]
    truncated: tuple[bool, ...]
    compile_s: float = 0.0


OnTokens = Callable[[int], None]

Generate = Callable[[Sequence[int], Sequence[Sequence[int]], OnTokens], Completions]
"""``generate(rows, prompts, on_tokens)``: the completions of each prompt. ``rows`` names its random stream: an answer
depends on its row and prompt only, never on when it is drawn. ``on_tokens`` may be told now and then how many tokens
came."""


def evaluate_system(
    system: str, queries: Sequence[EvaluationQuery], generate: Generate, *, path: str | Path, source: str,
    batch_size: int, form: AnswerForm = "numbers", answers: int = 1,
) -> list[Prediction]:
    """The answers to every query, appended to ``path`` as they come.

    Args:
        system: name of the system, as in the result tables.
        queries: the frozen queries, in file order.
        generate: the model.
        path: JSON Lines file. Queries answered there under the same ``source`` are not generated again.
        source: identity of the checkpoint and of every setting that shapes an answer.
        batch_size: prompts decoded together.
        form: how answers are written (``prompts.answer.form``).
        answers: how many ``generate`` gives a prompt.

    Returns:
        Predictions in the order of ``queries``, those of a query together.

    Raises:
        ValueError: no queries, a repeated query, or a ``generate`` that returns the wrong number of answers.
    """
    if not queries or len({q.query_id for q in queries}) != len(queries):
        raise ValueError(f"queries of {system!r} must be distinct and at least one; got {len(queries)} queries, "
                         f"{len({q.query_id for q in queries})} of them distinct")
    log = PredictionLog(path, source, answers)
    if log.dropped:
        progress.say(f"{system}: {log.dropped} predictions in {path} are of another checkpoint or other settings; "
                     "evaluating again")
    batches = _batches(queries, batch_size)
    done = sum(q.query_id in log.done for q in queries)
    with progress.bar(f"evaluate {system}", total=len(queries), unit="users", done=done) as bar:
        for rows in batches:
            missing = [row for row in rows if queries[row].query_id not in log.done]
            if not missing:
                continue
            started = time.monotonic()
            came = _generate(generate, queries, rows, bar, answers)
            seconds = max(0.0, time.monotonic() - started - came.compile_s) / len(came.texts)
            log.append(
                judge(system, source, queries[row], came.texts[i], came.tokens[i], came.truncated[i], seconds, form,
                      answer)
                for place, row in enumerate(rows) if row in missing
                for answer, i in enumerate(range(place * answers, (place + 1) * answers))
            )
            bar.advance(len(missing), hr1=hit_ratio([p.rank for p in log.all()], 1))
    return [p for q in queries for p in log.done[q.query_id]]


def judge(
    system: str, source: str, query: EvaluationQuery, output: str, tokens: int, truncated: bool, seconds: float,
    form: AnswerForm, which: int = 0,
) -> Prediction:
    """Parse one completion, the query's ``which``-th, and rank the target in it."""
    answer = parse_completion(output, form=form, titles=query.titles, opened_think=query.opened_think)
    rank = rank_of_target(answer.ranking, query.target, len(query.candidates))
    return Prediction(
        system=system, source=source, query_id=query.query_id, user_id=query.user_id, prompt=query.prompt,
        output=output, ranking=tuple(query.candidates[i] for i in answer.ranking),
        target=query.candidates[query.target], candidates=query.candidates, target_title=query.titles[query.target],
        rank=rank, valid=answer.valid, duplicates=answer.duplicates, outside=answer.outside,
        statements=answer.statements, tokens=tokens, truncated=truncated,
        copied_order=answer.copied_order, seconds=seconds, answer=which,
        place=answer.place_of(query.target, len(query.candidates)),
    )


def summarize(
    predictions: Sequence[Prediction], *, dataset: str, negatives: str, split: str, seed: int,
    target_edges: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """One row of a result table: :func:`~r2rec_jax.evaluation.summary.summarize_ranks`, and what only answers have.

    Args:
        predictions: of one system, as many of every user.
        dataset: name of the data set.
        negatives: how the other candidates were drawn.
        split: which interactions are targets: ``last-positive`` for the test queries.
        seed: the run's training seed.
        target_edges: raw item id -> training edges of every target, for the breakdown by popularity.

    Raises:
        ValueError: no predictions, or predictions of more than one system.
    """
    systems = sorted({p.system for p in predictions})
    if len(systems) != 1:
        raise ValueError(f"a row must summarise the predictions of one system; got {systems}")

    def mean(name: str) -> float:
        return float(np.mean([getattr(p, name) for p in predictions]))

    row = summarize_ranks(from_predictions(predictions, target_edges), system=systems[0], dataset=dataset,
                          negatives=negatives, split=split, seed=seed)
    return row | {
        "truncation_rate": mean("truncated"),
        "order_copying_rate": mean("copied_order"), "duplicates_per_answer": mean("duplicates"),
        "outside_per_answer": mean("outside"), "statements_per_answer": mean("statements"),
        "tokens_per_answer": mean("tokens"), "seconds_per_user": mean("seconds") * row["answers"],
    }


def _generate(
    generate: Generate, queries: Sequence[EvaluationQuery], rows: Sequence[int], bar: progress.Bar, answers: int,
) -> Completions:
    """One batch, with the bar kept alive while its tokens come."""
    drawn = 0

    def on_tokens(count: int) -> None:
        nonlocal drawn
        drawn += count
        bar.advance(0, tokens_in_batch=drawn)

    came = generate(rows, [queries[row].prompt_ids for row in rows], on_tokens)
    if not len(came.texts) == len(came.tokens) == len(came.truncated) == len(rows) * answers:
        raise ValueError(f"generate must return {answers} answers a prompt; got {len(came.texts)} for {len(rows)}")
    if came.compile_s:
        bar.compiled("decoding", came.compile_s)
    return came


def _batches(queries: Sequence[EvaluationQuery], batch_size: int) -> list[list[int]]:
    """Rows by falling prompt length, cut into batches: little padding, and the largest shapes come first."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1; got {batch_size}")
    order = sorted(range(len(queries)), key=lambda row: (-len(queries[row].prompt_ids), row))
    return [order[start:start + batch_size] for start in range(0, len(order), batch_size)]
