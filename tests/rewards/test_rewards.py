"""Rewards: Eq. 5-7 by hand, the traps of format rewards, and any text without an exception."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.config import RewardConfig
from r2rec_jax.rewards.ranking import rank_reward
from r2rec_jax.rewards.steps import Band, band_from_targets, resolve_band, step_reward
from r2rec_jax.rewards.total import compute

TITLES = ("Heat (1995)", "Big (1988)", "Fargo (1996)", "Alien (1979)")
REASONING = "The recent likes are crime stories.\nTwo come from the nineties.\nSo crime fits best here."
BAND = Band(3, 5)
CONFIG = RewardConfig()


def rewards(*texts: str, target: int = 2, config: RewardConfig = CONFIG, opened: bool = False):
    return compute(texts, [target] * len(texts), [TITLES] * len(texts), config, BAND, opened_think=opened)


def test_step_reward_by_hand() -> None:
    expected = {0: 0, 1: 1 / 4, 3: 3 / 4, 4: 1, 10: 1, 11: 0.9, 15: 0.5, 20: 0, 50: 0}
    assert {n: step_reward(n, Band(4, 10)) for n in expected} == pytest.approx(expected)
    assert [step_reward(n, Band(0, 0)) for n in (0, 1)] == [1, 0]


@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 20))
def test_step_reward_is_bounded_and_one_peaked(n: int, low: int, width: int) -> None:
    band = Band(low, low + width)
    value = step_reward(n, band)
    assert 0 <= value <= 1 and (value == 1) == (band.low <= n <= band.high)
    assert step_reward(n + 1, band) >= value or n + 1 > band.high
    assert step_reward(n + 1, band) <= value or n < band.low


def test_rank_reward_by_hand() -> None:
    by_hand = [1, 0.63093, 0.5, 1 / math.log2(21)]
    assert [rank_reward(r, 20, "log") for r in (1, 2, 3, 20)] == pytest.approx(by_hand, abs=1e-5)
    assert [rank_reward(r, 20, "reciprocal") for r in (1, 2, 4, 20)] == [1, 0.5, 0.25, 0.05]
    assert [rank_reward(r, 20, "linear") for r in (1, 2, 20)] == pytest.approx([1, 0.95, 0.05])
    assert [rank_reward(None, 20, form) for form in ("log", "reciprocal", "linear")] == [0, 0, 0]  # type: ignore[arg-type]
    for rank in (0, 21):
        with pytest.raises(ValueError, match=r"rank must be in 1\.\.20"):
            rank_reward(rank, 20)


def test_band_from_targets() -> None:
    assert band_from_targets([7]) == Band(7, 7)
    assert band_from_targets(list(range(1, 102))) == Band(6, 96)
    assert band_from_targets([9, 10, 10, 10]) == Band(9, 10)
    assert resolve_band(RewardConfig(steps_low=2, steps_high=4), []) == Band(2, 4)
    assert resolve_band(CONFIG, [3, 3]) == Band(3, 3)
    with pytest.raises(ValueError, match="at least one SFT target"):
        band_from_targets([])
    with pytest.raises(ValueError, match="0 <= low <= high"):
        Band(3, 2)


def test_total_by_hand() -> None:
    text = f"<think>\n{REASONING}\n</think>\n<answer>1, 3, 3, 9</answer>"
    batch = rewards(text, "<answer>3</answer>", "nothing", f"<think>{REASONING}</think><answer>1, 2</answer>")
    assert batch.step.tolist() == [1, 0, 0, 1]
    assert batch.rank.tolist() == pytest.approx([1 / math.log2(3), 1, 0, 0])
    assert batch.total.tolist() == pytest.approx([1 + 2 / math.log2(3), 2, 0, 1])
    assert batch.valid.tolist() == [True, True, False, True]
    assert batch.rank_of_target.tolist() == [2, 1, 4, 4] and batch.listed.tolist() == [True, True, False, False]
    assert batch.duplicates.tolist() == [1, 0, 0, 0] and batch.outside.tolist() == [1, 0, 0, 0]
    assert batch.copied_order.tolist() == [False, False, False, True]
    assert batch.statements.tolist() == [3, 0, 0, 3]
    weighted = rewards(text, config=RewardConfig(step_weight=0.5, rank_weight=3, rank_form="reciprocal"))
    assert weighted.total[0] == pytest.approx(0.5 + 3 / 2)


def test_true_statements_are_rewarded_where_somebody_can_tell() -> None:
    texts, weight = ["<answer>3</answer>", "nothing"], RewardConfig(true_weight=0.5)
    arguments = (texts, [2, 2], [TITLES] * 2)
    told = compute(*arguments, weight, BAND, true=[0.5, 1.0])
    assert told.total.tolist() == [2 + 0.25, 0.5] and told.true.tolist() == [0.5, 1.0]
    logged = compute(*arguments, CONFIG, BAND, true=[0.5, 1.0])
    assert logged.total.tolist() == [2, 0] and logged.true.tolist() == [0.5, 1.0], "logged at any weight"
    unknown = rewards(*texts)
    assert unknown.total.tolist() == [2, 0] and np.isnan(unknown.true).all()
    with pytest.raises(ValueError, match=r"true_weight must be 0 where nobody can tell .* got 0\.5"):
        compute(*arguments, weight, BAND)
    with pytest.raises(ValueError, match="one number for each of 2 completions; got 1"):
        compute(*arguments, weight, BAND, true=[1.0])


def test_trap_numbered_answer_lines_are_no_reasoning_steps() -> None:
    listed = "\n".join(f"{k}. {title}" for k, title in enumerate(TITLES, start=1))
    batch = rewards(f"<think>\n{listed}\n</think>\n<answer>3</answer>", f"<think>\n{chr(10).join(TITLES)}\n</think>")
    assert batch.statements.tolist() == [0, 0] and batch.step.tolist() == [0, 0]


def test_trap_repeating_one_line_is_no_reasoning() -> None:
    batch = rewards("<think>" + "They like crime stories.\n" * 4 + "</think><answer>3</answer>")
    assert batch.statements.tolist() == [1]


def test_trap_what_is_no_candidate_costs_nothing_unless_written_places_count() -> None:
    """GRPO from scratch learned to open with it (EVIDENCE.md)."""
    texts = ["<answer>9, 3</answer>", "<answer>1, 1, 3</answer>", "<answer>3, 3, 9</answer>", "<answer>9, 8, 7, 6, 5, 3"
             "</answer>", "<answer>9, 1</answer>", "no"]
    rank = [rewards(*texts, config=RewardConfig(rank_places=kind)).rank.tolist() for kind in ("candidates", "written")]
    assert rank[0] == pytest.approx([1, 1 / math.log2(3), 1, 1, 0, 0])
    assert rank[1] == pytest.approx([1 / math.log2(3), 0.5, 1, 1 / math.log2(5), 0, 0]), "never behind the last place"
    written = rewards(*texts, config=RewardConfig(rank_places="written"))
    assert written.rank_of_target.tolist() == [1, 2, 1, 1, 4, 4], "metrics stay those of the evaluation"


def test_trap_the_template_already_opened_think() -> None:
    text = f"\n{REASONING}\n</think>\n<answer>3</answer>"
    assert rewards(text, opened=True).step.tolist() == [1]
    assert rewards(text, opened=False).step.tolist() == [0]


def test_trap_copying_the_candidate_order_is_visible() -> None:
    texts = ["<answer>1, 2, 3, 4</answer>", "<answer>1, 2</answer>", "<answer>2, 1, 3, 4</answer>",
             "<answer>1</answer>"]
    assert rewards(*texts).copied_order.tolist() == [True, True, False, False]


def test_an_empty_batch() -> None:
    batch = compute([], [], [], CONFIG, BAND)
    assert all(column.shape == (0,) for column in vars(batch).values())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="got 1 completions, 0 targets, 1 lists"):
        compute(["x"], [], [TITLES], CONFIG, BAND)
    with pytest.raises(ValueError, match=r"0\.\.3; got 4"):
        rewards("x", target=4)


def test_ten_thousand_fuzzed_outputs() -> None:
    rng = random.Random(1)
    pieces = ["<think>", "</think>", "<answer>", "</answer>", "\n", ", ", "1", "3", "99", "9" * 6000, "٣", "²", "\x00",
              "\ud800", "They like crime stories.", "Heat (1995)", "-2", "1.5"]
    texts = [rng.randbytes(rng.randrange(80)).decode("latin-1") if k % 3 == 0
             else "".join(rng.choice(pieces) for _ in range(rng.randrange(20))) for k in range(10_000)]
    for opened in (False, True):
        batch = compute(texts, [2] * len(texts), [TITLES] * len(texts), CONFIG, BAND, opened_think=opened)
        assert np.isfinite(batch.total).all() and batch.total.min() >= 0 and batch.total.max() <= 3
        assert (batch.rank[~batch.valid] == 0).all() and batch.valid.sum() > 50
        assert ((batch.rank_of_target >= 1) & (batch.rank_of_target <= len(TITLES))).all()
