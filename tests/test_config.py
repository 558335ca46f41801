"""Settings of different sections that do not go together are refused on construction."""

from __future__ import annotations

import pytest

from r2rec_jax.config import PromptConfig, TrainConfig


def test_thoughts_are_shown_with_chains_or_not_at_all() -> None:
    with pytest.raises(ValueError, match=r"^prompts\.thoughts must be completion or none when prompts\.chains is false "
                                         r".*; got 'prompt'$"):
        TrainConfig(prompts=PromptConfig(chains=False, thoughts="prompt"))
    for thoughts in ("completion", "none"):
        TrainConfig(prompts=PromptConfig(chains=False, thoughts=thoughts))
