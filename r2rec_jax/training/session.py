"""What surrounds every stage's loop: resume, progress, metric rows, checkpoints, and a save when it is asked to stop.

A request to stop (``r2rec_jax.stopping``) waits until the step is done, since within an update the state is donated and
there is nothing to save. What cuts a step in two all the same (a second Ctrl-C) leaves the last checkpoint as it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import jax.numpy as jnp
import numpy as np

from r2rec_jax import progress, stopping
from r2rec_jax.checkpoints import is_alive, let_go
from r2rec_jax.models.lora import copy_tree
from r2rec_jax.parallel.distributed import StoppedTogether, check_stop, several
from r2rec_jax.tokens.loader import Loader
from r2rec_jax.training.checkpoints import Checkpoints
from r2rec_jax.training.metrics import JsonLines, MetricsWriter
from r2rec_jax.training.shared import SharedCheckpoints
from r2rec_jax.training.state import Best, TrainState, check_progress


class RewardError(RuntimeError):
    """A reward function failed; the updates before it are saved."""


@dataclass(frozen=True)
class Trained:
    """What a stage hands back.

    Attributes:
        params: the trained tree, owned by the caller.
        steps: steps done, those of earlier runs included.
        skipped: updates skipped as not finite.
        kept: after how many steps the tree was what it is.
    """

    params: Any
    steps: int
    skipped: int
    kept: int


def steps_of(stage: str, available: int, asked: int | None) -> int:
    """Steps of a stage: as many as its epochs have, or fewer where fewer are asked for; more there are not, and it says
    so (trl's ``max_steps`` repeats the data instead)."""
    if asked is not None and asked > available:
        progress.say(f"{stage}: {stage}.steps asks for {asked} steps, and {stage}.epochs end after {available}; raise "
                     f"{stage}.epochs for more")
    return min(available, asked or available)


class Session:
    """A stage's loop, from the last checkpoint to its last step.

        with Session("sft", state, loader, total, ...) as session:
            for step in session.steps():
                state, values = updates.run(session.state, ...)
                session.finish(step, state, values, example_ids)

    Args:
        stage: name in rows and messages.
        state: the state to start from when there is no checkpoint; the session owns it.
        loader: restored from the checkpoint too.
        total: steps of the whole stage.
        checkpoints: None keeps nothing.
        metrics: None logs nothing.
        log: further rows of the steps, each with its ``step``; cut back and made durable like the metrics.
        checkpoint_every: steps between checkpoints; the last step is always saved. While updates are being skipped as
            not finite nothing is, so that the last good checkpoint is not pushed out.
        log_every: steps between rows.
        shown: names of the values to show beside the bar.
    """

    def __init__(self, stage: str, state: TrainState, loader: Loader[Any], total: int, *,
                 checkpoints: Checkpoints | SharedCheckpoints | None = None, metrics: MetricsWriter | None = None,
                 log: JsonLines | None = None, checkpoint_every: int = 1, log_every: int = 1,
                 shown: Sequence[str] = ("loss",)) -> None:
        self.stage, self.total, self.start = stage, total, 0
        self.compile_s = 0.0
        self._loader, self._checkpoints, self._metrics, self._log = loader, checkpoints, metrics, log
        self._checkpoint_every, self._log_every, self._shown = checkpoint_every, log_every, shown
        restored = None
        if checkpoints is not None and checkpoints.latest_step is not None:
            restored = checkpoints.restore(let_go(state))  # of a large model there must not be two
        if restored is not None:
            state, self.start = restored.state, restored.step
            loader.set_state(restored.loader_state)
            progress.say(f"{stage}: going on after step {self.start} of {total}")
        # One attribute, so that an interrupt can never see the state of one step with the place of another.
        self._latest = (state, loader.get_state(), self.start)
        self._mark = 0.0
        self._saving = False
        self._around = ExitStack()
        self._look_every = 0
        self._measure: Callable[[], Mapping[str, Any]] = dict
        self._score: Callable[[Mapping[str, Any]], float] = lambda values: -math.inf

    def __enter__(self) -> Session:
        if self._metrics is not None:
            self._metrics.resume(self.start)
        if self._log is not None:
            self._log.keep(lambda row: row["step"] <= self.start)
        self._around.enter_context(stopping.deferred())
        self._bar = self._around.enter_context(
            progress.bar(self.stage.upper(), self.total, "steps", done=self.start))
        self._mark = time.monotonic()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            alone = isinstance(error, KeyboardInterrupt) and not several()
            if alone or isinstance(error, StoppedTogether | RewardError):
                self._save_interrupted()
        finally:
            for log in (self._metrics, self._log):
                if log is not None:
                    log.close()
            self._around.__exit__(kind, error, trace)

    @property
    def state(self) -> TrainState:
        """After the latest step that is done."""
        return self._latest[0]

    def report(self, what: str, seconds: float) -> None:
        """Tell the bar of a compilation."""
        self._mark += seconds
        self.compile_s += seconds
        self._bar.compiled(what, seconds)

    def watch(self, every: int, measure: Callable[[], Mapping[str, Any]],
              score: Callable[[Mapping[str, Any]], float]) -> None:
        """Measure something on held-out data before the first step, after every so many and after the last, and log it
        in a row of its own (:data:`~r2rec_jax.training.metrics.LOOK`). A run that goes on from such a place measures it
        again.

        Args:
            every: steps between two looks; 0 never looks.
            measure: of the state as it stands (:attr:`state`).
            score: of what was measured, the more the better, for a state that keeps its best tree.
        """
        self._look_every, self._measure, self._score = every, measure, score

    def _look(self) -> None:
        state, loader_state, step = self._latest
        if not self._look_every or (step % self._look_every and step != self.total):
            return
        values = self._measure()
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        if self._metrics is not None:
            self._metrics.write(step, values, seconds)
        score = float(np.float32(self._score(values)))  # as it is stored
        if state.best is not None and score > float(state.best.score):
            best = Best(copy_tree(state.params), jnp.full_like(state.best.score, score),
                        jnp.full_like(state.best.step, step))
            self._latest = (replace(state, best=best), loader_state, step)

    def steps(self) -> Iterator[int]:
        """Numbers of the steps that are left, from 1.

        Raises:
            Interrupted: between two steps, when the run was asked to stop.
        """
        self._look()
        for step in range(self.start + 1, self.total + 1):
            check_stop()
            yield step

    def finish(self, step: int, state: TrainState, values: Mapping[str, Any], example_ids: Sequence[str]) -> None:
        """Log a step that is done, save it where a checkpoint is due, and look at held-out data where that is.

        Args:
            step: its number.
            state: after it.
            values: to log; ``skipped_in_a_row`` must be among them.
            example_ids: what it was trained on; logged, and named when the run must stop.

        Raises:
            RuntimeError: after three skipped updates in a row.
            OSError: when a checkpoint cannot be written.
        """
        now = time.monotonic()
        seconds, self._mark = now - self._mark, now
        check_progress(self.stage, step, int(values["skipped_in_a_row"]), example_ids)
        last = step == self.total
        if self._metrics is not None and (step % self._log_every == 0 or last):
            logged = {name: value for name, value in values.items() if name != "skipped_in_a_row"}
            self._metrics.write(step, logged | {"examples": list(example_ids)}, seconds)
        self._latest = (state, self._loader.get_state(), step)
        self._bar.advance(1, **{name: values[name] for name in self._shown if name in values})
        if last or (step % self._checkpoint_every == 0 and not values["skipped_in_a_row"]):
            self._save()
        self._look()

    def trained(self) -> Trained:
        """The result, once the loop has ended: the last tree, or the best where that is kept and any was judged."""
        state, _, step = self._latest
        if state.best is None or not np.isfinite(state.best.score):
            return Trained(state.params, step, int(state.skipped), step)
        kept = int(state.best.step)
        progress.say(f"{self.stage}: the best look at held-out data was after step {kept} of {step}; that is kept")
        return Trained(state.best.params, step, int(state.skipped), kept)

    def _save(self) -> None:
        if self._checkpoints is None:
            return
        for log in (self._metrics, self._log):
            if log is not None:
                log.sync()
        state, loader_state, step = self._latest
        self._saving = True
        self._checkpoints.save(step, state, loader_state)
        self._saving = False

    def _save_interrupted(self) -> None:
        state, _, step = self._latest
        if self._checkpoints is None or step == self.start:
            return
        if self._saving or not is_alive(state):
            within = "a save" if self._saving else "an update"
            progress.say(f"{self.stage}: interrupted within {within}; the last checkpoint stays")
            return
        self._save()
        progress.say(f"{self.stage}: interrupted; saved after step {step} of {self.total}")
