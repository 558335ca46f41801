from __future__ import annotations

import json

import numpy as np
import pytest

from r2rec_jax.reporting.plots import (
    LOSS_PANELS,
    REWARD_PANELS,
    curve,
    moving_average,
    plot_losses,
    plot_rewards,
    read_metrics,
)


def make_rows(steps: int = 40) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = [{"stage": "pretrain", "step": i + 1, "loss": 7 * float(np.exp(-i / 15)) + 1} for i in range(steps)]
    rows += [{"stage": "sft", "step": i + 1, "loss": 2 / (i + 1) + float(rng.random()) / 5} for i in range(steps)]
    rows += [{"stage": "grpo", "step": i + 1, "reward_rank": 0.2 + 0.01 * i, "reward_step": 0.9, "reward": 1.3,
              "valid_rate": 1.0, "kl": 1e-4 * i, "entropy": 1.1} for i in range(steps)]
    return rows


def size_of(path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def test_loss_plot_has_a_panel_for_each_stage(tmp_path):
    both = size_of(plot_losses(make_rows(), tmp_path / "plots" / "loss.png", title="runs/tiny"))
    rows = [row for row in make_rows() if row["stage"] != "pretrain"]
    one = size_of(plot_losses(rows, tmp_path / "one.png", title="runs/tiny"))
    assert both[0] == 2 * one[0] and both[1] == one[1]
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["loss.png"]


def test_reward_plot_draws_what_is_there(tmp_path):
    whole = size_of(plot_rewards(make_rows(), tmp_path / "reward.png"))
    few = [{"stage": "grpo", "step": 1, "reward_rank": 0.5, "kl": None}]
    part = size_of(plot_rewards(few, tmp_path / "few.png"))
    assert whole[0] == 3 * part[0] and whole[1] == 2 * part[1]


def test_a_plot_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"reward\.png needs rows .*grpo: reward_rank.* got 1 rows"):
        plot_rewards([{"stage": "sft", "step": 1, "loss": 1.0}], tmp_path / "reward.png")
    with pytest.raises(ValueError, match="needs rows"):
        plot_losses([{"stage": "sft", "step": 1, "loss": float("nan")}], tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())


def test_both_rewards_have_panels_of_their_own():
    titles = [panel.title for panel in REWARD_PANELS]
    assert "Ranking reward R_rank" in titles and "Step reward R_step" in titles
    steps, ranks = curve(make_rows(), REWARD_PANELS[0])
    assert steps.tolist() == list(range(1, 41)) and ranks[0] == pytest.approx(0.2)
    assert set(curve(make_rows(), REWARD_PANELS[titles.index("Step reward R_step")])[1]) == {0.9}


def test_curve_takes_its_own_stage_sorted_and_the_last_row_of_a_step():
    rows = [{"stage": "sft", "step": 2, "loss": 5.0}, {"stage": "grpo", "step": 1, "loss": 9.0},
            {"stage": "sft", "step": 1, "loss": 3.0}, {"stage": "sft", "step": 2, "loss": 4.0},
            {"stage": "sft", "step": 3, "loss": None}, {"stage": "sft", "step": 4, "loss": True}]
    steps, values = curve(rows, LOSS_PANELS[1])
    assert (steps.tolist(), values.tolist()) == ([1, 2], [3.0, 4.0])


def test_moving_average_is_the_mean_of_the_last_values():
    values = np.random.default_rng(0).random(30)
    want = [values[max(0, i - 6):i + 1].mean() for i in range(30)]
    np.testing.assert_allclose(moving_average(values, 7), want)
    np.testing.assert_allclose(moving_average(values, 100)[-1], values.mean())


def test_metrics_are_read_up_to_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = make_rows(3)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"stage": "sf')
    assert read_metrics(path) == rows
    path.write_text('{"stage": "sft"}\n[1]\n')
    with pytest.raises(ValueError, match="line 2, must be a JSON object"):
        read_metrics(path)
    path.write_text('{"stage"\n')
    with pytest.raises(ValueError, match="line 1, is not JSON"):
        read_metrics(path)
