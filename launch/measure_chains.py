"""Time chain sampling on MovieLens-1M: five chains for every user, graph included, on one core.

    taskset -c 0 .venv/bin/python launch/measure_chains.py --data ../shared/data/ml-1m

Writes results/chains_ml1m.json.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from r2rec_jax.config import DataConfig, as_plain, fingerprint
from r2rec_jax.data.movielens import load_movielens
from r2rec_jax.data.splits import training_edges
from r2rec_jax.evaluation.tables import cpus, result_file
from r2rec_jax.files import write_json
from r2rec_jax.graph.bipartite import build
from r2rec_jax.graph.chains import sample_chains

CHAINS, REPEATS = 5, 5


def main() -> None:
    """Read the data, then time graph and chains together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of MovieLens-1M")
    given = parser.parse_args()
    config = DataConfig(name="ml-1m")
    dataset = load_movielens("ml-1m", given.data, config.split_seed)
    edges = training_edges(dataset, config)
    users = list(range(len(dataset.users)))
    places = np.diff(dataset.interactions.offsets).tolist()
    seconds = []
    for seed in range(REPEATS):
        started = time.perf_counter()
        drawn = sample_chains(build(dataset, edges), dataset, users, places, chains=CHAINS, seed=seed)
        seconds.append(time.perf_counter() - started)
    rows = [{"work": "chains", "dataset": "ml-1m", "users": len(users), "chains_a_user": CHAINS, "cores": len(cpus()),
             "users_with_chains": sum(bool(c) for c in drawn), "seconds_median": float(np.median(seconds)),
             "seconds_min": min(seconds), "seconds_max": max(seconds), "repeats": REPEATS, "seeds": REPEATS}]
    write_json("results/chains_ml1m.json", result_file(
        "five interaction chains for every MovieLens-1M user, graph building included", rows,
        fingerprint(as_plain(config)), command="taskset -c 0 python launch/measure_chains.py"))
    print(rows[0])


if __name__ == "__main__":
    main()
