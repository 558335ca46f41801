"""Measure `prepare` on made-up data of Amazon Books' size and skew: wall time, rows a second, peak resident memory.

    taskset -c 0,1 .venv/bin/python launch/measure_prepare.py --millions 1 10 30 --work /var/tmp/prepare-scale

Each size is generated once into the work folder (30 million ratings: 1.1 GB as csv.gz and 0.3 GB of metadata; then a
further 6 GB or so while `prepare` runs) and prepared by a child process of its own, to frozen users, queries,
candidates of all three samplers, the CSR graph and five chains for each of 10,000 queries: 1,000 test, 1,000
validation, 4,000 SFT and 4,000 RL. A second child reads the folder back, every hash checked. Peak memory is that of
the child (VmHWM).

Writes results/prepare_scale.json. The bar, at 30 million: 15 minutes, 8 GB, two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from made_ratings import write_ratings

ABOUT = "about.json"
QUERIES: dict[str, Any] = {"eval_users": 1000, "validation_users": 1000, "sft_queries": 4000, "rl_queries": 4000}
BAR = {"ratings": 30_000_000, "seconds": 900.0, "peak_gb": 8.0, "cores": 2}


def main() -> None:
    """Generate what is missing, measure, write the result file and print the rows."""
    given = _arguments()
    if given.child:
        _child(given.child, Path(given.work), given)
        return
    from r2rec_jax.config import as_plain, fingerprint
    from r2rec_jax.evaluation.tables import result_file
    from r2rec_jax.files import write_json

    if len(os.sched_getaffinity(0)) > BAR["cores"]:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: BAR["cores"]])
    rows = [_measure(given, round(millions * 1e6)) for millions in given.millions]
    config = _config(Path(), given.memory_gb)  # where the data lies is no setting of the measurement
    write_json(given.out, result_file(
        "prepare on made-up data of Amazon Books' size and skew", rows, fingerprint(as_plain(config)),
        command=f"launch/measure_prepare.py --millions {' '.join(f'{m:g}' for m in given.millions)} "
                f"--form {given.form} --memory_gb {given.memory_gb:g} --seed {given.seed}",
        bar=BAR, queries=QUERIES, growth=_growth(rows), memory_gb=given.memory_gb, seed=given.seed))
    for row in rows:
        print(json.dumps(row))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 10, 30], help="millions of ratings")
    parser.add_argument("--work", required=True, help="folder for the data; what was generated there is used again")
    parser.add_argument("--form", choices=["csv", "csv.gz", "parquet"], default="csv.gz", help="of the ratings")
    parser.add_argument("--memory_gb", type=float, default=3.0, help="data.memory_gb, DuckDB's share")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="results/prepare_scale.json")
    parser.add_argument("--child", choices=["generate", "prepare", "load"], help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(given: argparse.Namespace, ratings: int) -> dict[str, Any]:
    """One row of the result: generate (not timed), prepare, read back."""
    work = Path(given.work) / f"{ratings}-{given.form}-{given.seed}"
    about = work / ABOUT
    if not about.is_file():
        shutil.rmtree(work, ignore_errors=True)
        print(f"generating {ratings:,} ratings in {work}", file=sys.stderr, flush=True)
        made = _run_child(given, "generate", work, "--millions", str(ratings / 1e6))
        about.write_text(json.dumps(made["report"]))
    shutil.rmtree(work / "prepared", ignore_errors=True)
    prepared = _run_child(given, "prepare", work)
    loaded = _run_child(given, "load", work)
    manifest = json.loads((work / "prepared" / "manifest.json").read_text())
    coverage: dict[str, int] = {}
    for split in manifest["counts"]["chain_coverage"].values():
        for chains, queries in split.items():
            coverage[chains] = coverage.get(chains, 0) + queries
    seconds = prepared["seconds"]
    return {
        "work": "prepare", "dataset": "made-up amazon-books", "form": given.form, "seed": given.seed,
        **json.loads(about.read_text()), "source_bytes": _size(work / "source"),
        "events": manifest["counts"]["interactions"], "duplicates": manifest["counts"]["duplicates"],
        "eligible_users": manifest["counts"]["eligible_users"],
        "queries": sum(coverage.values()), "chains_a_query": coverage,
        "cores": len(os.sched_getaffinity(0)), "seconds": seconds, "cpu_seconds": prepared["cpu_seconds"],
        **{f"{phase}_seconds": value for phase, value in prepared["report"].items()},
        "rows_per_s": ratings / seconds, "peak_gb": prepared["peak_gb"], "prepared_bytes": _size(work / "prepared"),
        "load_seconds": loaded["seconds"], "load_peak_gb": loaded["peak_gb"],
        "within_bar": seconds <= BAR["seconds"] and prepared["peak_gb"] <= BAR["peak_gb"], "repeats": 1,
    }


def _run_child(given: argparse.Namespace, what: str, work: Path, *more: str) -> dict[str, Any]:
    """Run one phase in a process of its own; its wall and CPU seconds, peak memory in GB, and what it reports."""
    command = [sys.executable, __file__, "--child", what, "--work", str(work), "--memory_gb", str(given.memory_gb),
               "--form", given.form, "--seed", str(given.seed), *more]
    started = time.perf_counter()
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False,
                             env={**os.environ, "JAX_PLATFORMS": "cpu"})
    if process.returncode:
        raise SystemExit(f"error: {what} in {work} ended with exit code {process.returncode}")
    return {"seconds": time.perf_counter() - started, **json.loads(process.stdout.splitlines()[-1])}


def _child(what: str, work: Path, given: argparse.Namespace) -> None:
    from r2rec_jax.stages.prepare import prepare
    from r2rec_jax.stages.prepared import Prepared

    report: dict[str, Any] = {}
    if what == "generate":
        report |= write_ratings(work / "source", round(given.millions[0] * 1e6), form=given.form, seed=given.seed)
    elif what == "prepare":
        prepare(_config(work, given.memory_gb), work / "prepared", seconds=report)
    else:
        Prepared.load(work / "prepared")
    print(json.dumps({"report": report, "peak_gb": _peak_gb(), "cpu_seconds": time.process_time()}))


def _peak_gb() -> float:
    """Peak resident memory of this process: VmHWM, since ru_maxrss also counts what forked it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e9
    raise SystemExit("error: /proc/self/status has no VmHWM; measure on Linux")


def _config(work: Path, memory_gb: float) -> Any:
    from r2rec_jax.config import DataConfig, GraphConfig, TrainConfig

    return TrainConfig(data=DataConfig(name="amazon-books", path=str(work / "source"), memory_gb=memory_gb,
                                       threads=BAR["cores"], temp_dir=str(work), **QUERIES),
                       graph=GraphConfig(chains=5))


def _growth(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Exponents of time and memory from each size to the next: 1 is linear."""
    steps = []
    for small, large in pairwise(rows):
        factor = math.log(large["ratings"] / small["ratings"])
        steps.append({"from": small["ratings"], "to": large["ratings"],
                      **{name: math.log(large[name] / small[name]) / factor
                         for name in ("seconds", "cpu_seconds", "peak_gb")}})
    return steps


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
