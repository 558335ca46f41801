"""Candidates ranked by their log-likelihood as continuations: a ranking that needs no answer format.

The prompt is plain text without a chat template: what the user liked before the target, oldest first, one item a line.
Where the backbone has no positions for all of it and the longest candidate, the oldest likes are left out.
A candidate's continuation is its own line, and its score

    sum     log p(line | prompt)
    mean    the same a token
    prior   log p(line | prompt) - log p(line | begin token alone): what the user adds to how likely the line is

A generated answer mixes what a model knows with whether it can write the form; this row shows the first alone. The
paper has no such row. A row of the batch holds a prompt and all its continuations, so the prompt is computed once
(:func:`~r2rec_jax.tokens.batches.group_rows`). Equal lines are scored once, and lines are laid out in the order of
their tokens, so a candidate's score does not depend on its place in the list; ties count against the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.config import EvaluateConfig
from r2rec_jax.data.interactions import Item
from r2rec_jax.data.queries import Query
from r2rec_jax.evaluation.protocol import Completions, EvaluationQuery, Generate, OnTokens
from r2rec_jax.prompts.answer import render_answer
from r2rec_jax.prompts.verbalize import item_labels, item_text
from r2rec_jax.stages.corpus import LIKES_A_TEXT
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.tokens.batches import Batch, group_rows
from r2rec_jax.tokens.tokenizer import Tokenizer
from r2rec_jax.training.grpo import make_scoring
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.rollouts import squeeze
from r2rec_jax.training.rows import RowShape, round_up

Tokens = tuple[int, ...]
ScoreBatch = Callable[[Batch], Any]
"""Log-probabilities [B, C] of a batch's targets, an array of NumPy or JAX."""
ScoreRule = Literal["sum", "mean", "prior"]

MULTIPLE = 128
"""Rows are as long as their tokens, rounded up to this: few shapes, few programs."""


@dataclass(frozen=True)
class LikelihoodQuery:
    """A frozen query as text to be continued.

    Attributes:
        asked: as the evaluation loop takes it; its prompt is the plain text.
        lines: token ids of every candidate's line, in the order of the list.
        dropped: likes that did not fit the backbone's positions.
    """

    asked: EvaluationQuery
    lines: tuple[Tokens, ...]
    dropped: int


def item_line(item: Item, lines: Literal["facts", "names"]) -> str:
    """An item as histories list it: ``Heat (1995; Action)`` or ``Heat (1995)``, and the line's end."""
    return f"{item_text(item, facts=lines == 'facts')}\n"


def likelihood_query(prepared: Prepared, query: Query, tokenizer: Tokenizer, positions: int,
                     lines: Literal["facts", "names"] = "facts") -> LikelihoodQuery:
    """The latest likes before the target, oldest first, and the candidates' lines.

    Args:
        prepared: the data.
        query: one of its queries.
        tokenizer: of the backbone.
        positions: tokens that the backbone was made for; the oldest likes are dropped until all candidates fit.
        lines: what a line says of its item.

    Raises:
        ValueError: a candidate does not fit even without likes.
    """
    data = prepared.dataset
    items = [data.items[i] for i in query.candidates]
    liked = [item_line(data.items[i], lines) for i, _ in reversed(prepared.liked(query, LIKES_A_TEXT))]
    continuations = tuple(tuple(tokenizer.encode(item_line(item, lines))) for item in items)
    longest = max(map(len, continuations))
    dropped, text = 0, "".join(liked)
    prompt_ids = begin(tokenizer, text)
    while len(prompt_ids) + longest > positions:
        if dropped == len(liked):
            raise ValueError(f"the begin token and a candidate's line must fit the backbone's {positions} positions; "
                             f"got {len(prompt_ids) + longest} tokens in query {query.query_id}; set evaluate.lines to "
                             "names, or take a backbone of more positions")
        dropped += 1
        text = "".join(liked[dropped:])
        prompt_ids = begin(tokenizer, text)
    asked = EvaluationQuery(
        query_id=query.query_id, user_id=data.users[query.user_idx].user_id,
        candidates=tuple(item.item_id for item in items), titles=item_labels(items),
        target=query.candidates.index(query.target), prompt=text, prompt_ids=prompt_ids)
    return LikelihoodQuery(asked, continuations, dropped)


def count_likes(texts: Sequence[LikelihoodQuery]) -> dict[str, int]:
    """How many prompts lost likes to the backbone's positions, and how many likes in all."""
    return {"prompts": len(texts), "shortened_prompts": sum(text.dropped > 0 for text in texts),
            "dropped_likes": sum(text.dropped for text in texts),
            "longest_prompt_tokens": max(len(text.asked.prompt_ids) for text in texts)}


def begin(tokenizer: Tokenizer, text: str) -> Tokens:
    """A text's ids, behind the begin token where the tokenizer puts one before documents.

    The empty text is the begin token alone; where a tokenizer has none it is the end token, which stands between texts.
    """
    ids = (*tokenizer.document_start, *tokenizer.encode(text))
    return ids or (tokenizer.end_id if tokenizer.bos_id is None else tokenizer.bos_id,)


def score_lines(prompts: Sequence[Sequence[int]], groups: Sequence[Sequence[Tokens]], score: ScoreBatch, rows: int,
                pad_id: int = 0) -> list[NDArray[np.float64]]:
    """log p(line | prompt) of every line of every group, in nats.

    Args:
        prompts: at most ``rows`` of them.
        groups: the lines that go on after each prompt; of any number, each with at least one token.
        score: the model.
        rows: B of a device pass.
        pad_id: written where there is no token; never read.

    Returns:
        One array a prompt, in the order of its group. Equal lines get equal scores, to the last bit.
    """
    distinct = [sorted(set(group)) for group in groups]
    most, width = max(map(len, distinct)), max(len(line) for lines in distinct for line in lines)
    laid = group_rows(prompts, [[*lines, *[()] * (most - len(lines))] for lines in distinct],
                      max(map(len, prompts)), width, pad_id=pad_id)
    targets = int(np.asarray(laid.target_weights).sum(axis=1).max())
    tokens = int((np.asarray(laid.segments) > 0).sum(axis=1).max())
    batch = squeeze(laid, rows, RowShape(round_up(tokens, MULTIPLE), round_up(targets, MULTIPLE)), pad_id)
    values = np.asarray(score(batch), np.float64)
    found = []
    for row, (group, lines) in enumerate(zip(groups, distinct, strict=True)):
        lengths = np.array([len(line) for line in lines])
        starts = np.cumsum(lengths) - lengths
        sums = np.add.reduceat(values[row, :lengths.sum()], starts)
        place = {line: i for i, line in enumerate(lines)}
        found.append(sums[[place[line] for line in group]])
    return found


def best_first(scores: NDArray[np.float64], target: int) -> list[int]:
    """Positions by falling score; of a tie the target comes last, so that a tie never helps.

    Example:
        >>> best_first(np.array([-3.0, -1.0, -3.0]), target=0)
        [1, 2, 0]

    Raises:
        RuntimeError: a score is not finite.
    """
    if not np.isfinite(scores).all():
        raise RuntimeError(f"log-likelihoods must be finite; got {scores.tolist()}: the model has diverged")
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i == target, i))


def likelihood_generate(queries: Sequence[LikelihoodQuery], score: ScoreBatch, rule: ScoreRule, bare: Tokens, *,
                        rows: int, pad_id: int, compile_s: Callable[[], float] = lambda: 0.0) -> Generate:
    """The ranking as the evaluation loop takes answers: the candidates' titles in an answer block, best first.

    Args:
        queries: all that are evaluated; ``rows`` of the loop are places in this list.
        score: the model.
        rule: how a candidate is scored.
        bare: the begin token alone, for ``prior``.
        rows: B of a device pass, at least the loop's batch.
        pad_id: written where there is no token; never read.
        compile_s: seconds spent on compiling so far.
    """
    prior: dict[Tokens, float] = {}

    def learn_prior(on_tokens: OnTokens) -> None:
        lines = sorted({line for query in queries for line in query.lines}, key=lambda line: (len(line), line))
        groups = [lines[i:i + LIKES_A_TEXT] for i in range(0, len(lines), LIKES_A_TEXT)]
        for start in range(0, len(groups), rows):
            part = groups[start:start + rows]
            for group, sums in zip(part, score_lines([bare] * len(part), part, score, rows, pad_id), strict=True):
                prior.update(zip(group, sums.tolist(), strict=True))
            on_tokens(sum(len(line) for group in part for line in group))

    def value(line: Tokens, logprob: float) -> float:
        return logprob / len(line) if rule == "mean" else logprob - prior[line] if rule == "prior" else logprob

    def generate(chosen: Sequence[int], prompts: Sequence[Sequence[int]], on_tokens: OnTokens) -> Completions:
        before = compile_s()
        if rule == "prior" and not prior:
            learn_prior(on_tokens)
        groups = [queries[row].lines for row in chosen]
        texts = []
        for row, lines, sums in zip(chosen, groups, score_lines(prompts, groups, score, rows, pad_id), strict=True):
            asked = queries[row].asked
            scores = np.array([value(line, logprob) for line, logprob in zip(lines, sums.tolist(), strict=True)])
            texts.append(render_answer(best_first(scores, asked.target), "titles", asked.titles, len(lines)))
        counts = tuple(sum(map(len, lines)) for lines in groups)
        on_tokens(sum(counts))
        return Completions(tuple(texts), counts, (False,) * len(texts), compile_s() - before)

    return generate


def policy_likelihood(work: Workspace, checkpoint: str, queries: Sequence[LikelihoodQuery], config: EvaluateConfig
                      ) -> Generate:
    """:func:`likelihood_generate` under a checkpoint's policy."""
    backbone, lora, tokenizer = work.backbone, work.adapter(checkpoint), work.tokenizer
    model = FrozenModel.from_config(backbone.graphdef, backbone.base, work.config.backbone, work.mesh)
    compiled: list[float] = []
    program = make_scoring(model, 1.0, lambda _, seconds: compiled.append(seconds))
    return likelihood_generate(
        queries, lambda batch: program(lora, backbone.base, batch)["logprobs"], config.likelihood,
        begin(tokenizer, ""), rows=round_up(config.batch_size, model.row_shards), pad_id=work.pad_id,
        compile_s=lambda: sum(compiled))
