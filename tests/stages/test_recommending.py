"""What a recommendation says where there is nothing to show."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from r2rec_jax.config import GraphConfig, PromptConfig, TrainConfig
from r2rec_jax.stages.recommending import no_chains, show


@pytest.mark.parametrize(("settings", "rendered", "reason"), [
    ({}, {"chains": ("a chain",)}, ""),
    ({}, {}, "nobody shares two items with this user"),
    ({}, {"dropped": 2, "left_out": 1}, "none fits in prompts.max_tokens"),
    ({}, {"left_out": 1}, "each holds a candidate"),
    ({"prompts": PromptConfig(chains=False)}, {}, "prompts.chains is off"),
    ({"graph": GraphConfig(chains=0)}, {}, "graph.chains is off"),
])
def test_why_no_chains_are_shown(settings: dict[str, Any], rendered: dict[str, Any], reason: str) -> None:
    query: Any = SimpleNamespace(**{"chains": (), "dropped": 0, "left_out": 0} | rendered)
    assert no_chains(query, replace(TrainConfig(), **settings)) == reason


@pytest.mark.parametrize(("output", "said"), [
    ("<think>\nThey like drama.\n<answer>1</answer>", "none that is closed; all that was written: <think>"),
    ("<answer>1</answer>", "none was written"),
])
def test_reasoning_that_never_ends_is_shown(capsys: pytest.CaptureFixture, output: str, said: str) -> None:
    show({"user": "1", "profile": "", "liked": [], "chains": [], "no_chains": "each holds a candidate", "reasoning": [],
          "valid": True, "truncated": False, "output": output, "candidates": ["Heat"], "checkpoint": "sft",
          "ranking": [{"place": 1, "title": "Heat", "is_held_out_item": True}]})
    shown = capsys.readouterr().out
    assert said in shown and "none: each holds a candidate" in shown
    assert ("They like drama." in shown) == ("They like drama." in output)
