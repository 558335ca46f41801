"""Works that differ between the sides only in how completions are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

from r2rec_jax.bench.inputs import text_of
from r2rec_jax.bench.timing import timed

Draw = Callable[[int], tuple[Int[np.ndarray, "P G T"], Float[np.ndarray, "P G T"]]]
"""``draw(T)``: completions of exactly T tokens of a work's prompts, and their log-probabilities over the whole
vocabulary at the sampling temperature."""


class RolloutWork:
    """Groups of completions, with their log-probabilities: all T tokens, and the first one alone.

    Args:
        draw: the side's.
        new_tokens: T.
    """

    def __init__(self, draw: Draw, new_tokens: int) -> None:
        self.draw, self.new_tokens = draw, new_tokens

    def step(self) -> dict[str, float]:
        """Seconds of both."""
        first, _ = timed(lambda: self.draw(1))
        whole, _ = timed(lambda: self.draw(self.new_tokens))
        return {"seconds": whole, "first_seconds": first}


class RecommendWork(RolloutWork):
    """One answer a user, to its text."""

    def step(self) -> dict[str, float]:
        """Seconds from prompts to texts."""
        def answers() -> list[str]:
            return [text_of(row.tolist()) for row in self.draw(self.new_tokens)[0][:, 0]]

        return {"seconds": timed(answers)[0]}


DRAWN: Mapping[str, type[RolloutWork]] = {"rollout": RolloutWork, "recommend": RecommendWork}
"""Works by name; each has a shape of that name in the preset."""
