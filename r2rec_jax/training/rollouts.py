"""From sampled groups to rows that are scored and trained on: one row a prompt, its completions sharing it.

``tokens.examples.group_rows`` lays a prompt and its G completions out with padding inside; here the padding is squeezed
out, so a row is ``[prompt | c1 | c2 | ... | cG | padding]`` and its cost is that of its real tokens. Every completion
still sees the prompt and itself alone, at the positions it would have in a row of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from r2rec_jax.parallel.compiling import Report, silent
from r2rec_jax.sampling.rollout import Rollout
from r2rec_jax.tokens.examples import Batch, group_rows
from r2rec_jax.training.rows import RowShape, round_up

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Completion tokens a row, as shares of G * max_new_tokens: one compile each at most."""


class Generate(Protocol):
    """Draws completions (``sampling.decoder.Decoder.generate``)."""

    def __call__(self, lora: nnx.State, base: nnx.State, prompts: Sequence[Sequence[int]], *, group: int,
                 max_new_tokens: int, temperature: float, top_p: float, key: Array,
                 row_ids: np.ndarray | Sequence[int] | None = None, on_compile: Report = silent) -> Rollout:
        """G completions of every prompt; see the decoder."""
        ...


@flax.struct.dataclass
class GroupBatch:
    """A device pass of GRPO: B rows, C completion tokens a row, all arrays below [B, C].

    Attributes:
        rows: tokens and targets.
        advantages: A_i of the token's completion; 0 until the rewards are known (:func:`with_advantages`).
        weights: of the token in the update's J; 0 for padding and for dropped completions.
        sampled: log-probabilities that the sampler reported.
        completions: which completion of the row a token belongs to, from 0.
        old: log-probabilities of the policy that sampled, scored by the trainer; None for the policy's own.
        reference: log-probabilities of the reference policy; None without a KL term.
    """

    rows: Batch
    advantages: Float[Array, "B C"]
    weights: Float[Array, "B C"]
    sampled: Float[Array, "B C"]
    completions: Int[Array, "B C"]
    old: Float[Array, "B C"] | None = None
    reference: Float[Array, "B C"] | None = None


def group_shape(rollout: Rollout, longest_prompt: int, max_new_tokens: int) -> RowShape:
    """The row shape of a step: its targets hold the largest group, its length the longest prompt of the stage too.

    With 8 completions of at most 128 tokens, the targets are 256, 512, 768 or 1,024.
    """
    group = rollout.lengths.shape[1]
    need = int(rollout.lengths.sum(axis=1).max())
    sizes = [round_up(share * group * max_new_tokens) for share in SHARES]
    targets = next(size for size in sizes if size >= need)
    return RowShape(round_up(longest_prompt) + targets, targets)


def lay_out(
    prompts: Sequence[Sequence[int]],
    rollout: Rollout,
    weights: Float[np.ndarray, "P G"],
    shape: RowShape,
    micro_prompts: int,
    pad_id: int = 0,
) -> list[GroupBatch]:
    """The passes of a step before its rewards are known, ``micro_prompts`` rows each; the last one may end with rows of
    padding.

    Args:
        prompts: P prompts.
        rollout: their completions.
        weights: one number a completion, repeated over its tokens.
        shape: of a row.
        micro_prompts: B.
        pad_id: written where there is no token; never read.
    """
    width = rollout.tokens.shape[2]
    padded = group_rows(prompts, rollout.tokens, max(len(p) for p in prompts), width, lengths=rollout.lengths,
                        pad_id=pad_id)
    per_token = np.broadcast_to(weights[:, :, None], rollout.tokens.shape).reshape(len(prompts), -1)
    sampled = rollout.logprobs.reshape(len(prompts), -1)
    numbers = np.arange(rollout.tokens.shape[1], dtype=np.int32)[None, :, None]
    completions = np.broadcast_to(numbers, rollout.tokens.shape).reshape(len(prompts), -1)
    real = np.asarray(padded.target_weights) > 0
    passes = []
    for start in range(0, len(prompts), micro_prompts):
        chosen = slice(start, start + micro_prompts)
        columns = [_left_align(x[chosen], real[chosen], micro_prompts, shape.targets)
                   for x in (per_token, sampled, completions)]
        part = jax.tree.map(lambda x, chosen=chosen: x[chosen], padded)
        none_yet = np.zeros(columns[0].shape, np.float32)
        passes.append(GroupBatch(squeeze(part, micro_prompts, shape, pad_id), *map(jnp.asarray, (none_yet, *columns))))
    return passes


def with_advantages(passes: Sequence[GroupBatch], advantages: Float[np.ndarray, "P G"]) -> list[GroupBatch]:
    """The passes with each completion's advantage at its tokens; rows lie in the order of the prompts.

    Advantages ``[[5, 7]]`` of a row whose completions are ``[0, 0, 1]`` and a padded place give ``[5, 5, 7, 0]``.
    """
    out, start = [], 0
    for group in passes:
        columns = np.zeros(np.shape(group.advantages), np.float32)
        real = np.asarray(group.rows.target_weights) > 0
        for row, mine in enumerate(advantages[start:start + len(columns)]):
            columns[row] = np.where(real[row], mine[np.asarray(group.completions)[row]], 0)
        out.append(replace(group, advantages=jnp.asarray(columns)))
        start += len(columns)
    return out


def rows_used(group: GroupBatch) -> int:
    """How many rows of a pass are no padding."""
    return int((np.asarray(group.rows.segments) > 0).any(axis=1).sum())


def squeeze(batch: Batch, rows: int, shape: RowShape, pad_id: int = 0) -> Batch:
    """The same rows with the padding between their segments taken out, in a batch of another shape.

    ``[5, 6, 0 | 7, 2 | 8, 0]`` becomes ``[5, 6, 7, 2, 8, ...]``; indices of targets follow their tokens, and padded
    targets (weight 0) move to the end.

    Raises:
        ValueError: when a row or its targets do not fit.
    """
    real, trained = np.asarray(batch.segments) > 0, np.asarray(batch.target_weights) > 0
    tokens, targets = int(real.sum(axis=1).max()), int(trained.sum(axis=1).max())
    if tokens > shape.length or targets > shape.targets or len(real) > rows:
        raise ValueError(f"a batch must hold at most {rows} rows of {shape.length} tokens and {shape.targets} targets; "
                         f"got {len(real)} rows of up to {tokens} and {targets}")
    new_index = np.take_along_axis(np.cumsum(real, axis=1) - 1, np.asarray(batch.target_index), axis=1)

    def tokens_of(old: Any, fill: int = 0) -> np.ndarray:
        return _left_align(old, real, rows, shape.length, fill)

    def targets_of(old: Any) -> np.ndarray:
        return _left_align(old, trained, rows, shape.targets)

    return Batch(
        tokens=tokens_of(batch.tokens, pad_id), positions=tokens_of(batch.positions),
        segments=tokens_of(batch.segments), parents=tokens_of(batch.parents),
        target_index=targets_of(new_index.astype(np.int32)), target_tokens=targets_of(batch.target_tokens),
        target_weights=targets_of(batch.target_weights))


def _left_align(values: Any, wanted: np.ndarray, rows: int, width: int, fill: int = 0) -> np.ndarray:
    """The wanted values of each row, moved to its front; ``fill`` behind them and in further rows."""
    out = np.full((rows, width), fill, np.asarray(values).dtype)
    counts = wanted.sum(axis=1)
    out[: len(wanted)][np.arange(width) < counts[:, None]] = np.asarray(values)[wanted]
    return out
