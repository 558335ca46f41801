"""Show that the recipe learns at all: ``configs/tiny.yaml`` with several seeds, gathered into one result file.

    .venv/bin/python launch/overfit_tiny.py --seeds 0 1 2 --data ../shared/data/ml-100k

For each seed: the whole run, then HitRatio@1 of the SFT adapter on its own 32 queries, and the mean R_rank and R_step
of every GRPO step on the 8 fixed prompts. Writes results/overfit_tiny.json and results/overfit_tiny.png. A run that is
there already is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from r2rec_jax.config import as_plain, fingerprint
from r2rec_jax.evaluate import main as evaluate
from r2rec_jax.evaluation.tables import result_file
from r2rec_jax.files import write_json
from r2rec_jax.reporting.plots import read_metrics
from r2rec_jax.stages.run import RunFolder
from r2rec_jax.train import main as train

WINDOW = 5
"""Steps at each end that the gain is measured between."""


def run_seed(seed: int, runs: Path, data: str | None) -> tuple[dict, dict[str, list[float]]]:
    """(the row of SFT on its own queries with GRPO's gain, GRPO's curves)."""
    folder = runs / f"tiny-{seed}"
    path = [f"--data.path={data}"] if data else []
    config = ["--config", "configs/tiny.yaml", "--run_dir", str(folder), f"--train_seed={seed}", *path]
    if train(config):
        sys.exit(f"seed {seed}: the run failed")
    out = folder / "own-queries.json"
    if evaluate(["--run", str(folder), "--checkpoint", "sft", "--split", "sft", "--users", "32", "--json", str(out)]):
        sys.exit(f"seed {seed}: the evaluation failed")
    row = json.loads(out.read_text(encoding="utf-8"))["rows"][0]
    steps = [r for r in read_metrics(folder / "metrics.jsonl") if r["stage"] == "grpo"]
    curves = {name: [r[name] for r in steps] for name in ("reward_rank", "reward_step", "kl", "entropy")}
    stages = json.loads((folder / "stages.json").read_text(encoding="utf-8"))
    rank = curves["reward_rank"]
    row |= {
        "grpo_steps": len(steps), "r_rank_first": float(np.mean(rank[:WINDOW])),
        "r_rank_last": float(np.mean(rank[-WINDOW:])), "r_step_first": float(np.mean(curves["reward_step"][:WINDOW])),
        "r_step_last": float(np.mean(curves["reward_step"][-WINDOW:])),
        "minutes": round(sum(stage["seconds"] for stage in stages.values()) / 60, 2),
    }
    return row, curves


def plot(curves: list[dict[str, list[float]]], path: Path) -> None:
    """R_rank and R_step apart, each seed and their mean."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, name, label in zip(axes, ("reward_rank", "reward_step"), ("R_rank", "R_step"), strict=True):
        lines = np.array([c[name] for c in curves])
        for line in lines:
            axis.plot(range(1, len(line) + 1), line, color="tab:blue", alpha=0.3, linewidth=1)
        axis.plot(range(1, lines.shape[1] + 1), lines.mean(0), color="tab:blue", linewidth=2)
        axis.set(title=f"{label}, {len(curves)} seeds and their mean", xlabel="GRPO step", ylabel=f"mean {label}",
                 ylim=(0, 1.05))
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run the seeds and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data", default=None, help="folder of MovieLens-100K; downloaded when not given")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    given = parser.parse_args()
    rows, curves = [], []
    for seed in given.seeds:
        row, curve = run_seed(seed, given.runs, given.data)
        rows.append(row)
        curves.append(curve)
    gains = [row["r_rank_last"] - row["r_rank_first"] for row in rows]
    config = RunFolder.existing(given.runs / f"tiny-{given.seeds[0]}").config
    result = result_file(
        "tiny recipe: SFT on its own 32 queries, GRPO on 8 fixed prompts", rows, fingerprint(as_plain(config)),
        command=f"launch/overfit_tiny.py --seeds {' '.join(map(str, given.seeds))}", curves=curves,
        spread={"hr@1": [min(r["hr@1"] for r in rows), max(r["hr@1"] for r in rows)],
                "r_rank_gain_mean": float(np.mean(gains)), "r_rank_gain_min": min(gains),
                "r_rank_gain_max": max(gains)})
    write_json("results/overfit_tiny.json", result)
    plot(curves, Path("results/overfit_tiny.png"))
    print(json.dumps(result["spread"], indent=1))


if __name__ == "__main__":
    main()
