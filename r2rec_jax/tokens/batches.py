"""Batches of token rows: what the model is fed, and which targets are trained.

A token belongs to a segment; which tokens it may look at follows from segments and parents alone, and what is trained
follows from ``target_weights`` alone. Nothing is ever inferred from a pad id.

    token q sees token k  iff  index k <= index q  and  segments[k] > 0
                               and (segments[k] == segments[q] or segments[k] == parents[q])

:func:`group_rows` lays a prompt and its G completions into one row (GRPO, Eq. 4). Every completion sees the prompt and
itself, never another completion, and its positions go on after the prompt's true length, so that each gets what it
would get alone in a row, at the cost of computing the prompt once.
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.struct
import numpy as np
from jaxtyping import Array, Float32, Int, Int32


@flax.struct.dataclass
class Batch:
    """Rows of tokens and the targets predicted from them (B rows, T tokens a row, C targets a row).

    Attributes:
        tokens: token ids, right-padded.
        positions: RoPE position of a token within its own sequence.
        segments: which sequence of the row a token belongs to, from 1; 0 is padding.
        parents: a further segment the token may look at (the shared prompt of a group row); 0 for none.
        target_index: index within the row of the token whose hidden state predicts the target.
        target_tokens: the token to predict.
        target_weights: 1 for a real target, 0 for padding.
    """

    tokens: Int32[np.ndarray | Array, "B T"]
    positions: Int32[np.ndarray | Array, "B T"]
    segments: Int32[np.ndarray | Array, "B T"]
    parents: Int32[np.ndarray | Array, "B T"]
    target_index: Int32[np.ndarray | Array, "B C"]
    target_tokens: Int32[np.ndarray | Array, "B C"]
    target_weights: Float32[np.ndarray | Array, "B C"]


def empty(rows: int, length: int, targets: int, pad_id: int = 0) -> Batch:
    """A batch of padding alone, to be written into."""
    def zeros(columns: int) -> np.ndarray:
        return np.zeros((rows, columns), np.int32)

    return Batch(
        tokens=np.full((rows, length), pad_id, np.int32),
        positions=zeros(length),
        segments=zeros(length),
        parents=zeros(length),
        target_index=zeros(targets),
        target_tokens=zeros(targets),
        target_weights=np.zeros((rows, targets), np.float32),
    )


def group_rows(
    prompts: Sequence[Sequence[int]],
    completions: Int[np.ndarray, "P G L"] | Sequence[Sequence[Sequence[int]]],
    prompt_length: int,
    completion_length: int,
    lengths: Int[np.ndarray, "P G"] | None = None,
    pad_id: int = 0,
) -> Batch:
    """Lay out P prompts with G completions each as P rows of S + G * T tokens.

    A row is ``[prompt padded to S | completion 1 padded to T | ... | completion G padded to T]``. The prompt is segment
    1; completion g (from 0) is segment g + 2 with parent 1. The first token of every completion is predicted from the
    prompt's last token, token j > 0 from token j - 1. Targets lie as ``[P, G * T]``: reshape to ``[P, G, T]``.

    Args:
        prompts: P prompts of 1 to S tokens.
        completions: G completions a prompt, of 0 to T tokens each; lists, or the sampler's padded array with
            ``lengths``.
        prompt_length: S.
        completion_length: T.
        lengths: true lengths of a padded ``completions`` array, end token included.
        pad_id: written where there is no token; never read.

    Returns:
        A batch of NumPy arrays. ``group_rows([[5, 6]], [[[7, 2], [8]]], prompt_length=3, completion_length=2)`` gives

            tokens         [[5, 6, 0 | 7, 2 | 8, 0]]
            positions      [[0, 1, 0 | 2, 3 | 2, 0]]
            segments       [[1, 1, 0 | 2, 2 | 3, 0]]
            parents        [[0, 0, 0 | 1, 1 | 1, 0]]
            target_index   [[1, 3 | 1, 1]]
            target_tokens  [[7, 2 | 8, 0]]
            target_weights [[1, 1 | 1, 0]]

        A padded target points at the prompt's last token, a real place, with weight 0.

    Raises:
        ValueError: when groups differ in size, or a prompt or completion does not fit.
    """
    stacked, counts = _stack(completions, lengths, completion_length)
    n_prompts, group, width = stacked.shape[0], stacked.shape[1], completion_length
    prompt_counts = np.array([len(prompt) for prompt in prompts], np.int32)
    if len(prompts) != n_prompts:
        raise ValueError(f"group rows must have one group a prompt; got {len(prompts)} prompts, {n_prompts} groups")
    _check_range("prompt", prompt_counts, 1, prompt_length)

    head = np.arange(prompt_length) < prompt_counts[:, None]
    prompt_tokens = np.full((n_prompts, prompt_length), pad_id, np.int32)
    prompt_tokens[head] = np.concatenate([np.asarray(prompt, np.int32) for prompt in prompts])

    step = np.arange(width)
    real = step < counts[:, :, None]
    tail_shape = (n_prompts, group, width)
    segments = np.broadcast_to(np.arange(2, group + 2)[:, None], tail_shape)
    last = (prompt_counts - 1)[:, None, None]
    start = (prompt_length + np.arange(group) * width)[:, None]
    index = np.where(step == 0, last, start + step - 1)

    def row(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.concatenate([left, right.reshape(n_prompts, -1)], axis=1).astype(np.int32)

    return Batch(
        tokens=row(prompt_tokens, np.where(real, stacked, pad_id)),
        positions=row(head * np.arange(prompt_length), real * (prompt_counts[:, None, None] + step)),
        segments=row(head, real * segments),
        parents=row(np.zeros_like(head), real),
        target_index=np.where(real, index, last).reshape(n_prompts, -1).astype(np.int32),
        target_tokens=np.where(real, stacked, 0).reshape(n_prompts, -1).astype(np.int32),
        target_weights=real.reshape(n_prompts, -1).astype(np.float32),
    )


def _stack(
    completions: np.ndarray | Sequence[Sequence[Sequence[int]]], lengths: np.ndarray | None, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Completions as int32[P, G, width] and their lengths as int32[P, G]."""
    if lengths is None:
        sizes = {len(group) for group in completions}
        if len(sizes) > 1:
            raise ValueError(f"all groups must have the same number of completions; got {sorted(sizes)}")
        n_prompts, group = len(completions), sizes.pop() if sizes else 0
        counts = np.array([[len(c) for c in members] for members in completions], np.int32).reshape(n_prompts, group)
        _check_range("completion", counts, 0, width)
        stacked = np.zeros((n_prompts, group, width), np.int32)
        stacked[np.arange(width) < counts[:, :, None]] = [t for members in completions for c in members for t in c]
        return stacked, counts
    padded, counts = np.asarray(completions, np.int32), np.asarray(lengths, np.int32)
    if padded.ndim != 3 or counts.shape != padded.shape[:2]:
        raise ValueError(f"padded completions must be [P, G, L] with lengths [P, G]; "
                         f"got {padded.shape} and {counts.shape}")
    _check_range("completion", counts, 0, min(width, padded.shape[2]))
    padded = padded[:, :, :width]
    return np.pad(padded, ((0, 0), (0, 0), (0, width - padded.shape[2]))), counts


def _check_range(name: str, counts: np.ndarray, low: int, high: int) -> None:
    if counts.size and (counts.min() < low or counts.max() > high):
        wrong = counts[(counts < low) | (counts > high)][0]
        raise ValueError(f"a {name} must have {low} to {high} tokens; got {wrong}; use a larger bucket")
