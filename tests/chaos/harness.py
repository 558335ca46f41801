"""Trials: a stage's processes killed and started again until it is done, then compared with a run never killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from r2rec_jax.parallel.kept import VARIABLE
from tests.chaos.folder import (
    MORE,
    assert_same_files,
    left_over,
    metric_rows,
    names_of,
    newest_row,
    read_state,
    size_of,
    steps_of,
)
from tests.chaos.moments import LIFE_LIMIT_S, Moment, wait_for
from tests.synthetic import SMALL

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs" / "ci.yaml"
STEPS = ["--sft.epochs=6", "--sft.checkpoint_every=2", "--grpo.epochs=8", "--grpo.checkpoint_every=1",
         "--sft.eval_every=3", "--sft.keep=best", "--grpo.eval_every=5", "--grpo.keep=best"]
STAGES = {"sft": ("sft",), "grpo": ("grpo", "export")}
"""What each trial runs and is killed in."""

PRODUCTS = {"sft": ("sft/adapter",), "grpo": ("grpo/adapter", "export/peft", "export/merged")}
DONE = "nothing to aim at before the end"


@dataclass
class Life:
    """One process of a trial.

    Attributes:
        aim: of its moment; ``none`` for one that was left alone.
        seconds: of its life.
        code: exit code.
        left: what it left half done: temporary files and folders, unlisted and supernumerary checkpoints, torn lines.
        saved, logged: steps of the newest checkpoint, and of the newest metrics row, when it was gone.
        logged_at_signal: step of the newest row when the signal was sent.
        exit_s: seconds from the signal to the exit.
        trained: it has begun an update.
    """

    aim: str
    seconds: float
    code: int
    left: list[str] = field(default_factory=list)
    saved: int = 0
    logged: int = 0
    logged_at_signal: int = 0
    exit_s: float = 0.0
    trained: bool = False


@dataclass(frozen=True)
class Harness:
    """Where trials happen.

    Attributes:
        work: scratch folder, with the data in ``data``. Every run is in ``run`` while it runs, since exports name the
            folder of their base; a run of every stage that was never killed is kept in ``finished``.
    """

    work: Path

    @property
    def run(self) -> Path:
        """The run that is being killed."""
        return self.work / "run"

    @property
    def finished(self) -> Path:
        """The run that never was."""
        return self.work / "finished"

    def command(self, stages: Sequence[str]) -> list[str]:
        """The command line of a run."""
        return [sys.executable, "-m", "r2rec_jax.train", "--stages", ",".join(stages), *self.arguments()]

    def arguments(self) -> list[str]:
        """Its arguments but for the stages."""
        return ["--config", str(CONFIG), "--data.path", str(self.work / "data"), "--run_dir", str(self.run), *SMALL,
                *STEPS]

    def keep_finished(self) -> None:
        """Keep the run that has just been done as the one to compare with."""
        self.run.rename(self.finished)

    @property
    def environment(self) -> dict[str, str]:
        """One compilation for all lives: a run is killed some 20 times, and each would compile the same programs."""
        others = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        return {VARIABLE: str(self.work / "compiled"), **others, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}

    def begin(self, stage: str) -> None:
        """A copy of the finished run in which ``stage`` and what follows have not been run."""
        from r2rec_jax.config import STAGES as RECIPE
        from r2rec_jax.stages.run import RunFolder

        shutil.rmtree(self.run, ignore_errors=True)
        shutil.copytree(self.finished, self.run)
        for later in RECIPE[RECIPE.index(stage):]:
            RunFolder.existing(self.run).clear(later)

    def live(self, stage: str, moment: Moment | None, stage_s: float = 0.0) -> Life:
        """One process on the run, and the signal at its moment."""
        run, log = self.run, self.work / "log"
        folder, began = run / stage, time.monotonic()
        seen = {"temporary": set(names_of(folder / "checkpoints")), "metrics": size_of(run / "metrics.jsonl"),
                "step": max([0, *steps_of(folder / "checkpoints")])}
        with log.open("w") as out:
            process = subprocess.Popen(self.command(STAGES[stage]), env=self.environment, stdout=out,
                                       stderr=subprocess.STDOUT)
        life = Life(moment.aim if moment else "none", 0.0, 0)
        sent = None
        if moment is not None and wait_for(process, moment, run, folder, log, seen, stage_s):
            life.logged_at_signal = newest_row(run, stage)
            sent = time.monotonic()
            process.send_signal(moment.number)
        life.code = process.wait(LIFE_LIMIT_S)
        ended = time.monotonic()
        life.seconds, life.exit_s = round(ended - began, 2), round(ended - (sent or ended), 3)
        life.left = left_over(run, stage)
        life.saved, life.logged = max([0, *steps_of(folder / "checkpoints")]), newest_row(run, stage)
        killed = sent is not None and moment is not None and moment.number == signal.SIGKILL
        if moment is not None and (sent is None or (killed and life.code == 0)):
            life.aim, killed = DONE, False
        life.trained = "compiled update: optimiser" in log.read_text()
        expected = -signal.SIGKILL if killed else 0
        assert life.code == expected, f"{life} must exit with {expected}: {log.read_text()[-2000:]}"
        self.check_products(stage)
        return life

    def check_products(self, stage: str) -> None:
        """Every adapter and export that has its name is whole."""
        for product in PRODUCTS[stage]:
            if (self.run / product).exists():
                assert_same_files(self.run / product, self.finished / product)

    def compare(self, stage: str) -> None:
        """A run that is done is the one that was never killed.

        Raises:
            AssertionError: naming what differs.
        """
        run = self.run
        for product in PRODUCTS[stage]:
            assert (run / product).is_dir(), f"{product} is missing"
        self.check_products(stage)
        own, other = (read_state(folder / stage / "checkpoints") for folder in (run, self.finished))
        for name in own.keys() | other.keys():
            assert own.get(name) == other.get(name), f"{stage}: {name} of the last checkpoint differs"
        rows, others = (metric_rows(folder, stage) for folder in (run, self.finished))
        assert rows == others, f"{stage}: metrics differ"
        if stage == "grpo":
            name = "grpo/completions.jsonl"
            assert (run / name).read_bytes() == (self.finished / name).read_bytes(), "completions differ"
        leftovers = [name for name in left_over(run, stage) if name != MORE]  # the next save would delete the oldest
        assert not leftovers, f"{stage}: left behind: {leftovers}"


def trial(harness: Harness, stage: str, moments: Sequence[Moment], kills_a_run: int, stage_s: float | None = None
          ) -> list[Life]:
    """Send every moment's signal to some process of ``stage``, and compare each run that comes to its end.

    Args:
        harness: where.
        stage: ``sft`` or ``grpo``.
        moments: in this order; one whose run ended before it came is tried again in the next run, after half the time
            (the stage may have become faster than when it was measured).
        kills_a_run: after as many signals a run is left alone.
        stage_s: seconds that the stage takes; measured with a run of its own when not given.
    """
    waiting, lives, number = list(moments), [], 0
    stage_s = _timed(harness, stage, lives) if stage_s is None else stage_s
    while waiting:
        number += 1
        if number > 10 * len(moments):
            raise AssertionError(f"{len(waiting)} moments of {stage} never come: {waiting[0]}")
        harness.begin(stage)
        left = kills_a_run
        while True:
            life = harness.live(stage, waiting[0] if waiting and left else None, stage_s)
            lives.append(life)
            left -= 1
            if life.aim == DONE:
                waiting[0] = replace(waiting[0], delay=waiting[0].delay / 2)
            if life.aim in ("none", DONE):
                break
            if life.code == 0 and _is_done(harness.run, stage):
                waiting.pop(0)
                break
            waiting.pop(0)
        harness.compare(stage)
    return lives


def _timed(harness: Harness, stage: str, lives: list[Life]) -> float:
    """Seconds that the stages of a trial take from their start when nobody disturbs them."""
    harness.begin(stage)
    lives.append(harness.live(stage, None))
    harness.compare(stage)
    done = json.loads((harness.run / "stages.json").read_text())
    return sum(done[name]["seconds"] for name in STAGES[stage])


def _is_done(run: Path, stage: str) -> bool:
    return set(STAGES[stage]) <= json.loads((run / "stages.json").read_text()).keys()
