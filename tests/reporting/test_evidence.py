"""The report and the plots: every figure from the file, a reward that rises by its steps alone called what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2rec_jax.reporting.cells import table
from r2rec_jax.reporting.evidence import evidence_report, ratio_line, result_table
from r2rec_jax.reporting.evidence_plots import band, plot_hits, plot_rewards
from r2rec_jax.reporting.evidence_rewards import reward_lines, reward_rise, reward_table
from r2rec_jax.reporting.overview import anchor, overview

PLACES = [{"number": n, "users": 5, "hr@1": 0.4, "hr@3": 0.6} for n in range(1, 21)]
BUCKETS = [{"bucket": n, "edges": [n, 9 * n], "users": 20, "hr@1": n / 10, "hr@3": 0.5} for n in range(1, 6)]


def row(system: str, seed: int, hit: float, **more: Any) -> dict[str, Any]:
    return {"system": system, "experiment": "main", "headline": True, "method": "generate", "chains": "own",
            "seed": seed, "users": 100, "hr@1": hit, "hr@3": hit + 0.1, "ndcg@3": hit + 0.05, "valid_rate": 0.9,
            "first@1": hit - 0.05, "outside_per_answer": 0.3, "order_copying_rate": 0.1,
            "tokens_per_answer": 100.0, "dataset": "ml-1m", "negatives": "uniform",
            "split": "last-positive", **more}


def curve(system: str, seed: int, rank: float, step: float, steps: int = 40) -> dict[str, Any]:
    rise = np.linspace(0, 1, steps)
    return {"experiment": f"e {system}", "system": system, "seed": seed, "steps": list(range(1, steps + 1)),
            "reward_rank": (0.3 + rank * rise).tolist(), "reward_step": (0.5 + step * rise).tolist(),
            "kl": (0.1 * rise).tolist()}


@pytest.fixture
def found() -> dict[str, Any]:
    test = {"system": "sft+grpo", "minus": "base", "metric": "hr@1", "mean": 0.46, "mean_minus": 0.2,
            "difference": 0.26, "low": 0.2, "high": 0.3, "p": 0.0002, "p_holm": 0.0018, "users": 150, "draws": 10_000,
            "pairs": 200, "seeds": [0, 1], "by_seed": [0.3, 0.22], "experiments": ["main", "main"]}
    broken = {"by_position": PLACES, "position_p": 0.5, "by_popularity": BUCKETS}
    return {
        "name": "x", "title": "A title", "what": "Some prose.", "created": "2026-01-01", "hardware": "a GPU",
        "rows": [row("base", 0, 0.1), row("base", 1, 0.3), row("sft+grpo", 0, 0.4), row("sft+grpo", 1, 0.52),
                 row("sft", 0, 0.7, experiment="search", headline=False, split="last-positive-but-one")],
        "experiments": [{"name": "main", "why": "to see", "set": {"grpo.lr": 0.1}}],
        "status": [{"experiment": "main", "seed": 0, "status": "done", "seconds": 3600},
                   {"experiment": "main", "seed": 1, "status": "failed", "reason": "no memory"}],
        "significance": [test], "variants": [], "searches": [],
        "curves": [curve("sft+grpo", 0, 0.2, 0.1), curve("sft+grpo", 1, 0.2, 0.1, steps=30),
                   curve("grpo", 0, -0.1, 0.3)],
        "breakdowns": [{"experiment": "main", "system": name, **broken} for name in ("base", "sft+grpo")],
        "diagnostics": [{"experiment": "main", "system": "sft+grpo", "chains": chains, "users": 200, "hr@1": 0.4,
                         "hr@3": 0.5, "ndcg@3": 0.45, "first@1": 0.4, **broken,
                         "tests": [] if chains == "own" else [test | {"minus": "sft+grpo"}]}
                        for chains in ("own", "swapped")],
        "runs": [{"commit": "abcdef0123456789", "dirty": True, "trained": {
            "sft": {"commit": "0123456789abcdef", "dirty": False},
            "grpo": {"commit": "abcdef0123456789", "dirty": True}}}],
    }


def test_the_report_holds_what_the_file_holds(found: dict[str, Any]) -> None:
    text = evidence_report([(found, "Read **this**.\n", {"rewards": "results/r.png", "hits": "results/h.png"})])
    for part in ("## A title", "Some prose.", "done: 0; failed: 1; no memory", "`grpo.lr: 0.1`", "0.200 ± 0.141",
                 "**0.460 ± 0.085**", "+0.260 [+0.200, +0.300]", "yes, better", "2.30 times the HitRatio@1 of base",
                 "](results/r.png)", "](results/h.png)", "another user's", "### Reading\n\nRead **this**.",
                 "runs of commit abcdef012345 with changes (stages trained by 0123456789ab) on a GPU",
                 "seeds 0, 1 together"):
        assert part in text, part
    assert "## What has come out" not in text, "nobody has written any"
    search = text.split("### Searches, judged on validation queries")[1]
    assert "| search | sft | 0.700" in search and "last-positive-but-one" in search
    assert "0.700" not in text.split("### Searches")[0], "a search stands in no other table"


def test_conclusions_come_before_the_tables(found: dict[str, Any]) -> None:
    links = {"rewards": "results/r.png", "hits": "results/h.png"}
    text = evidence_report([(found, "", links)], "GRPO helps.\n")
    assert "\n\n## What has come out\n\nGRPO helps.\n\n## At a glance\n" in text
    assert text.replace("## What has come out\n\nGRPO helps.\n\n", "") == evidence_report([(found, "", links)])


def test_the_overview_has_a_line_a_list(found: dict[str, Any]) -> None:
    scores = [row("sasrec", seed, 0.5, method="scores") for seed in (0, 1)]
    weaker = [row("popularity", seed, 0.3, method="scores") for seed in (0, 1)]
    likely = [row("pretrained-likelihood", 0, 0.25, method="likelihood")]
    added = found["significance"][0] | {"minus": "popularity", "difference": 0.16, "p_holm": 0.03}
    full = found | {"rows": [*found["rows"], *scores, *weaker, *likely, row("pretrained", 0, 0.15)],
                    "significance": [*found["significance"], added]}
    first, second = overview([full, found | {"title": "SmolLM2-135M on MovieLens-100K, longer"}]).splitlines()[-2:]
    cells = [cell.strip() for cell in first.strip("|").split("|")]
    assert cells == ["[A title](#a-title)", "100", "0, 1", "0.150", "-", "0.460 ± 0.085", "0.250", "-", "-",
                     "0.300 ± 0.000", "sasrec 0.500 ± 0.000", "-", "+0.160 (0.030)"]
    assert "](#smollm2-135m-on-movielens-100k-longer) | 100 | 0, 1 | 0.200 ± 0.141 | - |" in second, "base"
    assert second.endswith("| - | - | - | - |")
    searches = found | {"rows": [one | {"headline": False} for one in found["rows"]]}
    assert overview([full, searches]) == overview([full]), "searches have no main row"
    assert anchor("What? A (b), c-d: 1.5") == "what-a-b-c-d-15"
    assert "](#a-title)" in evidence_report([(found, "", {"rewards": "r", "hits": "h"})])


def test_of_two_headlines_with_one_system_the_first_is_told(found: dict[str, Any]) -> None:
    second = [row("sft+grpo", seed, 0.9, experiment="second") for seed in (0, 1)]
    both = found | {"rows": [*second, *found["rows"]],
                    "experiments": [*found["experiments"], {"name": "second", "why": "", "set": {}}]}
    assert overview([both]) == overview([found]) and "0.900" not in overview([both])


def test_a_mean_likelihood_is_a_likelihood(found: dict[str, Any]) -> None:
    likely = [row(f"{name}-likelihood-mean", 0, rate, method="likelihood")
              for name, rate in (("base", 0.2), ("sft", 0.3))]
    line = overview([found | {"rows": [*found["rows"], *likely]}]).splitlines()[-1]
    assert "| 0.200 | 0.300 | - | - |" in line
    both = [row("sft-likelihood", 0, 0.1, method="likelihood"), *likely]
    assert "| 0.200 | 0.100 | - | - |" in overview([found | {"rows": [*found["rows"], *both]}]), "the first of two ways"
    test = found["significance"][0] | {"minus": "base-likelihood-mean"}
    assert "times the HitRatio@1 of base-likelihood-mean" in ratio_line(found | {"significance": [test]})


def test_the_best_is_bold_among_rows_of_the_same_queries_only() -> None:
    rows = [row("sft", 0, 0.3), row("sft+grpo", 0, 0.2), row("sft", 0, 0.5, experiment="few", users=60),
            row("sft", 0, 0.4, experiment="hard", negatives="popularity"),
            row("sft+grpo", 0, 0.6, experiment="hard", negatives="popularity")]
    lines = result_table(rows, by_experiment=True).splitlines()[2:]
    assert [("**0." in line.split("|")[3]) for line in lines] == [True, False, False, False, True]


def test_experiments_outside_the_main_table_have_tests_of_their_own(found: dict[str, Any]) -> None:
    plots = {"rewards": "r.png", "hits": "h.png"}
    drawn = row("sft+grpo", 0, 0.3, experiment="drawn", headline=False)
    test = found["significance"][0] | {"system": "sft+grpo", "minus": "sft", "experiments": ["drawn", "drawn"]}
    text = evidence_report([(found | {"rows": [*found["rows"], drawn], "variants": [test]}, "", plots)])
    others = text.split("### Other experiments")[1].split("### Searches")[0]
    assert "| drawn | sft+grpo | 0.300" in others and "| drawn | sft+grpo minus sft | HitRatio@1 |" in others
    assert "sft+grpo minus sft" not in text.split("## A title")[1].split("### Other experiments")[0]
    assert "minus sft of" not in others, "the same experiment needs no name"
    main = test | {"minus": "sft+grpo", "experiments": ["drawn", "main"], "p_holm": 0.06}
    text = evidence_report([(found | {"rows": [*found["rows"], drawn], "variants": [main]}, "", plots)])
    assert "sft+grpo minus sft+grpo of main | HitRatio@1 |" in text and "| 0.060 | no |" in text


def test_a_base_that_cannot_answer_has_no_multiple(found: dict[str, Any]) -> None:
    assert ratio_line(found).startswith("sft+grpo has 2.30 times the HitRatio@1 of base (the paper")
    mute = [entry | {"valid_rate": 0.1} if entry["system"] == "base" else entry for entry in found["rows"]]
    assert ratio_line(found | {"rows": mute}).startswith("base writes hardly an answer that can be read")


def test_a_rise_by_steps_alone_is_no_success(found: dict[str, Any]) -> None:
    first, second = reward_lines(found["curves"]).splitlines()
    assert first.startswith("- e sft+grpo") and "no success" not in first
    assert second.startswith("- e grpo") and "through R_step alone, which is no success" in second


def test_a_reward_for_steps_that_was_full_from_the_start_does_not_rise() -> None:
    scatter = [0.3, 0.5, 0.4, 0.2, 0.6, 0.4, 0.35, 0.45, 0.4, 0.4]
    curve = {"experiment": "e", "system": "sft+grpo", "seed": 0, "steps": list(range(50)),
             "reward_rank": [*scatter * 4, *(x + 0.004 for x in scatter)],
             "reward_step": np.linspace(0.985, 0.993, 50).tolist()}
    assert reward_lines([curve]).endswith("R_rank +0.004 ± 0.048, R_step +0.007 ± 0.000; R_rank's rise is within that "
                                          "scatter.")
    assert "no success" in reward_lines([curve | {"reward_step": np.linspace(0.5, 0.993, 50).tolist()}])


def test_a_rise_within_the_scatter_of_steps_is_none() -> None:
    rng = np.random.default_rng(0)
    curves = [{"reward_rank": rng.normal(0.4, 0.1, 1000).tolist()} for _ in range(4)]
    rise, error = reward_rise(curves, "reward_rank")
    assert error == pytest.approx(0.1 * (2 / 200) ** 0.5 / 2, rel=0.1) and abs(rise) < 4 * error
    noisy = [{"experiment": "e", "system": "grpo", "seed": 0, "steps": list(range(50)),
              "reward_rank": [0.0] * 50, "reward_step": rng.normal(0.5, 0.1, 50).tolist()}]
    assert "no success" not in reward_lines(noisy)
    noisy[0] |= {"reward_rank": (rng.normal(0.4, 0.1, 50) + 0.001 * np.arange(50)).tolist(),
                 "reward_step": np.linspace(0.9, 0.92, 50).tolist()}
    assert "R_rank's rise is within that scatter." in reward_lines(noisy)
    few = [{"experiment": "e", "system": "grpo", "seed": 0, "steps": [2, 4], "reward_rank": [0.1, 0.3],
            "reward_step": [0.5, 0.9]}]
    assert reward_rise(few, "reward_rank") == (pytest.approx(0.2), np.inf)
    assert reward_lines(few) == ("- e (grpo), first to last fifth, of too few steps for an error: R_rank +0.200, "
                                 "R_step +0.400.")


def test_held_out_prompts_have_a_line_and_a_panel(found: dict[str, Any], tmp_path: Path) -> None:
    assert "held-out" not in reward_lines(found["curves"])
    looks = [{"prompts": 32, "steps": [0, 20, 40], "reward_rank": [0.3, 0.5, 0.3 + up], "hit": [0.2, 0.9, 0.2 + up]}
             for up in (0.1, -0.02)]
    curves = [curve | {"held_out": look} for curve, look in zip(found["curves"][:2], looks, strict=True)]
    first, second = reward_lines([*curves, found["curves"][2]]).splitlines()
    assert first.endswith("; of the same 32 held-out prompts (seeds 0, 1), before the first step and after the last, "
                          "R_rank 0.300 to 0.340 (by seed +0.100, -0.020), HitRatio@1 0.200 to 0.240 (by seed +0.100, "
                          "-0.020).")
    assert "held-out" not in second
    steps, values = band([*curves, found["curves"][2]], "held_out/reward_rank")
    assert steps.tolist() == [0, 20, 40] and values == pytest.approx(np.array([[0.3, 0.5, 0.4], [0.3, 0.5, 0.28]]))
    three, four = (int.from_bytes(plot_rewards(found | {"curves": own}, tmp_path / "x.png").read_bytes()[16:20], "big")
                   for own in (found["curves"], curves))
    assert three * 4 == four * 3, "panels side by side"
    other = curves[0] | {"experiment": "another length", "steps": [step + 0.5 for step in curves[0]["steps"]]}
    assert plot_rewards(found | {"curves": [curves[0], other]}, tmp_path / "y.png").exists()


def test_the_signal_in_the_gradients_is_told_where_it_was_measured(found: dict[str, Any]) -> None:
    assert "signal" not in reward_lines(found["curves"])
    gradient = {"signal": 0.02 / 64, "signal_error": 0.004 / 64, "noise": 0.38 / 8, "groups": 8.0, "steps": 40}
    first = found["curves"][0]
    (line,) = reward_lines([first | {"gradient": gradient}]).splitlines()
    assert line.endswith("; signal is 5.0% ± 1.0% of a step's squared gradient norm, with 8.0 groups, and would equal "
                         "the noise with about 152, at least 109.")
    both = [first | {"gradient": gradient | {"signal": signal / 64}} for signal in (0.01, -0.01)]
    (line,) = reward_lines(both).splitlines()
    assert line.endswith("signal is 0.0% ± 0.7% of a step's squared gradient norm, with 8.0 groups, and would equal "
                         "the noise with 537 or more."), "not told from none"
    none = {"signal": 0.0, "signal_error": 0.0, "noise": 0.0, "groups": 8.0, "steps": 3}
    for entry in (none, gradient | {"signal": -1.0}):
        (line,) = reward_lines([first | {"gradient": entry}]).splitlines()
        assert line.endswith("; no signal is seen in the gradients of 8.0 groups a step.")


def test_tokens_of_scored_lines_are_no_answers() -> None:
    (line,) = result_table([row("base-likelihood", 0, 0.3, method="likelihood")]).splitlines()[2:]
    assert line.split(" | ")[5:9] == ["-", "-", "-", "-"]


def test_cells_cannot_break_a_table() -> None:
    assert table(["a", "b"], [["x|y", "1"]], right=1) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_bands_end_with_the_shortest_seed(found: dict[str, Any]) -> None:
    steps, values = band(found["curves"][:2], "reward_rank")
    assert steps.tolist() == list(range(1, 31)) and values.shape == (2, 30)
    assert values[0, 29] == found["curves"][0]["reward_rank"][29]
    apart = [{"steps": [0, 50, 100], "x": [1, 2, 3]}, {"steps": [50, 90, 100], "x": [4, 5, 6]}]
    steps, values = band(apart, "x")
    assert steps.tolist() == [50, 100] and values.tolist() == [[2, 3], [4, 6]]
    assert band(found["curves"], "entropy")[1].shape == (0, 0)


def test_r_true_has_a_column_where_it_was_measured(found: dict[str, Any]) -> None:
    assert "R_true" not in reward_table(found["curves"])
    measured = [curve | {"reward_true": curve["reward_rank"]} for curve in found["curves"][:2]]
    head, _, *lines = [line.split(" | ") for line in reward_table([*measured, found["curves"][2]]).splitlines()]
    rank, true = head.index("R_rank"), head.index("R_true")
    assert [line[true] for line in lines] == [*(line[rank] for line in lines[:2]), "-", "-"] and lines[0][rank] != "-"


def test_plots_are_drawn(found: dict[str, Any], tmp_path: Path) -> None:
    for plot in (plot_rewards, plot_hits):
        assert plot(found, tmp_path / f"{plot.__name__}.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="needs curves of GRPO"):
        plot_rewards(found | {"curves": []}, tmp_path / "none.png")
    with pytest.raises(ValueError, match="headline experiment"):
        plot_hits(found | {"breakdowns": [], "diagnostics": []}, tmp_path / "none.png")
