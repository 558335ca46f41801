"""What a call of the decoder returns, and the host's side of it while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from r2rec_jax.parallel.sharding import to_host
from r2rec_jax.sampling.program import DecodeState

OnProgress = Callable[[int], None]


@dataclass(frozen=True)
class Rollout:
    """What :meth:`Decoder.generate` returns.

    Attributes:
        tokens: int32 [P, G, T], the pad id after each row's length.
        lengths: int32 [P, G], tokens of each row, the end token included.
        logprobs: float32 [P, G, T], log softmax(logits / temperature) of each token over the whole vocabulary, nats
            (temperature 1 when greedy); 0 after the length.
        finished: bool [P, G]; False where the limit cut the row off.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    logprobs: np.ndarray
    finished: np.ndarray

    def of(self, prompts: np.ndarray | slice) -> Rollout:
        """The completions of some of the prompts."""
        return Rollout(*(getattr(self, field.name)[prompts] for field in fields(self)))


class Rows:
    """Where each prompt of the device batch belongs, and what it has produced so far.

    Args:
        places: the prompt of each row of the device batch, -1 for none.
        prompts, group, limit: P, G and T.
        pad_id: written after the end.
    """

    def __init__(self, places: np.ndarray, prompts: int, group: int, limit: int, pad_id: int) -> None:
        self.limit, self.places = limit, places
        shape = (prompts, group, limit)
        self.tokens, self.logprobs = np.full(shape, pad_id, np.int32), np.zeros(shape, np.float32)
        self.lengths, self.finished = np.zeros(shape[:2], np.int32), np.zeros(shape[:2], bool)

    def collect(self, state: DecodeState, on_progress: OnProgress | None) -> np.ndarray:
        """Copy what the device has; returns which prompts of its batch still have a row running."""
        done, lengths, tokens, logprobs = to_host((state.done, state.lengths, state.tokens, state.logprobs))
        real = self.places >= 0
        at, width = self.places[real], min(self.limit, tokens.shape[2])
        new = int(lengths[real].sum() - self.lengths[at].sum())
        self.tokens[at, :, :width] = tokens[real, :, :width]
        self.logprobs[at, :, :width] = logprobs[real, :, :width]
        self.lengths[at], self.finished[at] = lengths[real], done[real]
        if on_progress is not None and new:
            on_progress(new)
        return real & ~done.all(axis=1)

    def keep(self, kept: np.ndarray) -> None:
        """The device batch now holds these of its prompts."""
        self.places = self.places[kept]

    def rollout(self) -> Rollout:
        """What the call returns."""
        return Rollout(self.tokens, self.lengths, self.logprobs, self.finished)
