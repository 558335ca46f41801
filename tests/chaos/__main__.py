"""Fault harness: real training processes, killed at seeded moments and started again until they are done, must end as a
run that was never killed: the same adapter, optimiser state, metrics (but for times), order of examples and exports,
bit for bit.

    .venv/bin/python -m tests.chaos --kills 20 --stops 5 --seed 0 --out results/chaos.json          (make chaos)

The harness only watches the run folder: a kill (SIGKILL) is aimed by waiting until a certain file appears, or falls at
a random moment of the process's life. After each kill the folder must hold no product that is not whole. A stop is a
SIGTERM at a random moment: the process must exit with 0 within a step, its last step saved. A run that ends before its
moment has come is compared, and the next begins from the same start.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tests.chaos.harness import DONE, ROOT, STAGES, Harness, Life, trial
from tests.chaos.moments import Moment, draw
from tests.synthetic import write_ml100k


def check_stops(lives: Sequence[Life], moments: Sequence[Moment]) -> list[Life]:
    """The lives that a SIGTERM ended, each with its last step saved and at most one more than when it came.

    Raises:
        AssertionError: a stop lost a step, or took more than the one that was being done.
    """
    sent = [life for life in lives if life.aim not in ("none", DONE)]
    stopped = [life for life, moment in zip(sent, moments, strict=True) if moment.number == signal.SIGTERM]
    for life in stopped:
        assert life.code == 0 and (life.saved == life.logged or not life.trained), life
        assert life.logged - life.logged_at_signal <= 1, life
    return stopped


def summarise(stage: str, lives: Sequence[Life], moments: Sequence[Moment]) -> dict[str, Any]:
    """A row of the result file."""
    stopped = check_stops(lives, moments)
    killed = [life for life in lives if life.code == -signal.SIGKILL]
    return {
        "work": "chaos", "stage": stage, "processes": len(lives), "killed": len(killed), "stopped": len(stopped),
        "runs_compared": sum(life.aim in ("none", DONE) for life in lives), "identical": True,
        "aims": dict(Counter(life.aim for life in killed)),
        "left_something": sum(bool(life.left) for life in killed),
        "left_half_a_checkpoint": sum(any("-tmp" in name for name in life.left) for life in killed),
        "left_half_a_product": sum(any(".tmp" in name and "/." in name for name in life.left) for life in killed),
        "steps_redone": sum(max(0, life.logged - life.saved) for life in killed),
        "longest_stop_s": max([0.0, *(life.exit_s for life in stopped)])}


def main() -> None:
    """Run both trials and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs a stage")
    parser.add_argument("--stops", type=int, default=5, help="SIGTERMs a stage")
    parser.add_argument("--kills_a_run", type=int, default=7, help="signals after which a run is left alone")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "chaos", help="scratch folder; emptied first")
    parser.add_argument("--out", type=Path, default=None, help="result file")
    given = parser.parse_args()
    from r2rec_jax.config import as_plain, fingerprint
    from r2rec_jax.evaluation.tables import result_file
    from r2rec_jax.files import write_json
    from r2rec_jax.stages.run import RunFolder

    work = given.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_ml100k(work / "data")
    harness = Harness(work)
    subprocess.run(harness.command(["all"]), env=harness.environment, check=True)
    harness.keep_finished()
    rng, rows, lives = np.random.default_rng(given.seed), [], {}
    for stage in STAGES:
        moments = draw(stage, given.kills, given.stops, rng)
        lives[stage] = trial(harness, stage, moments, given.kills_a_run)
        rows.append(summarise(stage, lives[stage], moments))
        print(json.dumps(rows[-1]), flush=True)
    if given.out is not None:
        config = RunFolder.existing(harness.finished).config
        write_json(given.out, result_file(
            "training processes killed and stopped at seeded moments, against one never killed", rows,
            fingerprint(as_plain(config), given.kills, given.stops, given.seed),
            command=f"python -m tests.chaos --kills {given.kills} --stops {given.stops} --seed {given.seed}",
            seed=given.seed, lives={stage: [asdict(life) for life in found] for stage, found in lives.items()}))
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
