"""R = step_weight * R_step + rank_weight * R_rank (Eq. 7), plus true_weight * R_true where that is known, and what the
answers were like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.config import RewardConfig
from r2rec_jax.prompts.answer import AnswerForm, ParsedAnswer, parse_completion
from r2rec_jax.rewards.ranking import rank_reward
from r2rec_jax.rewards.steps import Band, step_reward


@dataclass(frozen=True, eq=False)
class RewardBatch:
    """Rewards of a batch of completions, one row each.

    Attributes:
        total, step, rank: float64 [N]; R, R_step and R_rank (unweighted).
        true: float64 [N], R_true (unweighted); NaN where it is not known.
        valid: bool [N], the answer mentions a candidate.
        duplicates, outside: int64 [N], repeated mentions and mentions of what is no candidate.
        copied_order: bool [N], the answer repeats the prompt's order.
        statements: int64 [N], reasoning statements.
        rank_of_target: int64 [N]; the last rank where the true item is not listed.
        listed: bool [N], the answer lists the true item.
    """

    total: NDArray[np.float64]
    step: NDArray[np.float64]
    rank: NDArray[np.float64]
    true: NDArray[np.float64]
    valid: NDArray[np.bool_]
    duplicates: NDArray[np.int64]
    outside: NDArray[np.int64]
    copied_order: NDArray[np.bool_]
    statements: NDArray[np.int64]
    rank_of_target: NDArray[np.int64]
    listed: NDArray[np.bool_]


def compute(
    completions: Sequence[str],
    targets: Sequence[int],
    titles: Sequence[Sequence[str]],
    config: RewardConfig,
    band: Band,
    *,
    form: AnswerForm = "numbers",
    opened_think: bool = False,
    true: Sequence[float] | None = None,
) -> RewardBatch:
    """Rewards of completions.

    Args:
        completions: decoded completions, any text.
        targets: 0-based position of each prompt's true item.
        titles: each prompt's candidates as displayed.
        config: weights, and form and places of R_rank.
        band: see :func:`r2rec_jax.rewards.steps.resolve_band`.
        form: the answer form that was asked for.
        opened_think: whether the prompts ended in ``<think>``.
        true: R_true of each, in [0, 1] (:func:`r2rec_jax.thoughts.truth.truth_share`); None where nobody can tell.

    Raises:
        ValueError: lengths differ, a target lies outside its candidates, or R_true has a weight and is not known.
    """
    if config.true_weight and true is None:
        raise ValueError("rewards.true_weight must be 0 where nobody can tell which statements are true; got "
                         f"{config.true_weight}")
    if not len(completions) == len(targets) == len(titles):
        raise ValueError(f"rewards need one target and one candidate list for each completion; got "
                         f"{len(completions)} completions, {len(targets)} targets, {len(titles)} lists")
    if true is not None and len(true) != len(completions):
        raise ValueError(f"R_true must be one number for each of {len(completions)} completions; got {len(true)}")
    for target, names in zip(targets, titles, strict=True):
        if not 0 <= target < len(names):
            raise ValueError(f"a target must be a position in its candidates 0..{len(names) - 1}; got {target}")
    parsed = [parse_completion(text, form=form, titles=names, opened_think=opened_think)
              for text, names in zip(completions, titles, strict=True)]
    return score_parsed(parsed, targets, [len(names) for names in titles], config, band, true)


def score_parsed(
    parsed: Sequence[ParsedAnswer], targets: Sequence[int], sizes: Sequence[int], config: RewardConfig, band: Band,
    true: Sequence[float] | None = None,
) -> RewardBatch:
    """Rewards of completions that are parsed already; ``sizes`` are the lengths of the candidate lists."""
    rows = list(zip(parsed, targets, sizes, strict=True))
    listed = np.array([target in answer.ranking for answer, target, _ in rows], dtype=bool)
    ranks = np.array([answer.rank_of(target, size) for answer, target, size in rows], dtype=np.int64)
    step = np.array([step_reward(answer.statements, band) for answer in parsed], dtype=np.float64)
    places = ranks if config.rank_places == "candidates" else [a.place_of(target, size) for a, target, size in rows]
    rank = np.array([rank_reward(int(place) if inside else None, size, config.rank_form)
                     for place, inside, (_, _, size) in zip(places, listed, rows, strict=True)], dtype=np.float64)
    truth = np.full(len(step), np.nan) if true is None else np.asarray(true, np.float64)
    return RewardBatch(
        total=config.step_weight * step + config.rank_weight * rank + config.true_weight * np.nan_to_num(truth),
        step=step,
        rank=rank,
        true=truth,
        valid=np.array([answer.valid for answer in parsed], dtype=bool),
        duplicates=np.array([answer.duplicates for answer in parsed], dtype=np.int64),
        outside=np.array([answer.outside for answer in parsed], dtype=np.int64),
        copied_order=np.array([answer.copied_order for answer in parsed], dtype=bool),
        statements=np.array([answer.statements for answer in parsed], dtype=np.int64),
        rank_of_target=ranks,
        listed=listed,
    )
