"""The one training loop of all recommenders: updates, early stopping, checkpoints, exact resume.

The host makes batches in a thread of its own while the device works, and never waits for a single update: what a loss
or a skipped update was is read about once a second and at the end of an epoch. Which epoch is best is decided by the
validation value alone. Batches and random streams are functions of seed, epoch and step, so a run that was killed and
started again gives the parameters of one that was not.

After three updates in a row that were not finite the device refuses every further one (``update.py``), and the loop
stops as soon as it sees that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r2rec_jax import progress
from r2rec_jax.baselines.model import Batch, Params, Recommender
from r2rec_jax.baselines.update import MAX_SKIPPED_IN_A_ROW, LoopState, first_state, make_update
from r2rec_jax.checkpoints import TreeCheckpoints
from r2rec_jax.config import as_plain, fingerprint

LOOK_EVERY_S = 1.0
"""Seconds between two looks at the device while an epoch runs."""

AHEAD = 4
"""Batches that the host makes in advance."""

Validate = Callable[[Params], float]
"""``validate(params)``: the value that decides which epoch is best; higher is better."""


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: from 1.
        loss: mean over its updates; None where none was finite.
        validation: the value of ``validate`` after it.
        seconds: updates, without compilation and validation.
        validation_s: seconds of ``validate``.
    """

    epoch: int
    loss: float | None
    validation: float
    seconds: float
    validation_s: float


@dataclass(frozen=True)
class Trained:
    """What training hands back.

    Attributes:
        params: of the best epoch (a closed-form model's solution).
        validation: their validation value.
        best_epoch: from 1; 0 for closed form.
        history: every epoch.
        steps: updates, skipped ones included.
        skipped: updates that were not finite.
        seconds: learning and validation, over all sittings; compilation not counted.
        compile_s: seconds of compilation in this sitting.
        n_parameters: numbers in the parameters.
    """

    params: Params
    validation: float
    best_epoch: int
    history: tuple[EpochRecord, ...]
    steps: int
    skipped: int
    seconds: float
    compile_s: float
    n_parameters: int


@dataclass
class _Progress:
    """What the loop knows between two epochs, apart from the state."""

    history: list[EpochRecord] = field(default_factory=list)
    best: Params = None
    best_epoch: int = 0
    best_value: float = -np.inf

    @property
    def epoch(self) -> int:
        return len(self.history)


def train(model: Recommender, *, seed: int, validate: Validate, folder: Path | None = None,
          identity: str = "", checkpoint_every_s: float = 15.0) -> Trained:
    """Train a model to its best epoch.

    Args:
        model: what to train.
        seed: of parameters, batches and dropout.
        validate: decides which epoch is best and when to stop; must read validation targets only.
        folder: where checkpoints are kept and looked for; None keeps none.
        identity: fingerprint of what the result depends on besides model, settings and seed (the prepared data).
        checkpoint_every_s: after an epoch a checkpoint is written when the last one is older than this; 0 writes one
            every epoch.

    Returns:
        The parameters of the best epoch, and how they came about.

    Raises:
        RuntimeError: three updates in a row, or a validation value, were not finite.
        ValueError: the folder holds checkpoints of something else.
        OSError: a checkpoint could not be written.
    """
    root = jax.random.key(seed)
    init_key, loss_key = jax.random.split(root)
    if model.epochs == 0:
        return _solve(model, init_key, validate)
    run = _Run(model, seed, loss_key, validate, checkpoint_every_s)
    state, done = run.start(init_key)
    if folder is None:
        return run.loop(state, done, None)
    own = {"model": model.name, "config": fingerprint(as_plain(model.config)), "seed": seed, "data": identity}
    labels = {"model": "another model", "config": "other settings", "seed": "another seed", "data": "other data"}
    with closing(TreeCheckpoints(folder, model.name, own, labels)) as checkpoints:
        state, done = _restore(checkpoints, state, done)
        return run.loop(state, done, checkpoints)


def _solve(model: Recommender, key: jax.Array, validate: Validate) -> Trained:
    started = time.monotonic()
    params = jax.block_until_ready(model.init(key=key))
    value = _finite(model, 0, validate(params))
    return Trained(params, value, 0, (), 0, 0, time.monotonic() - started, 0.0, _count(params))


def _copy(params: Params) -> Params:
    return jax.tree.map(lambda x: jnp.array(x, copy=True), params)


def _count(params: Params) -> int:
    return sum(int(np.size(x)) for x in jax.tree.leaves(params))


def _finite(model: Recommender, epoch: int, value: float) -> float:
    if not np.isfinite(value):
        raise RuntimeError(f"the validation value of {model.name} must be finite; got {value} after epoch {epoch}; "
                           "lower its learning rate")
    return float(value)


class _Run:
    """One training run: the compiled update and the loop over epochs."""

    def __init__(self, model: Recommender, seed: int, key: jax.Array, validate: Validate, every_s: float) -> None:
        self.model, self.seed, self.key, self.validate, self.every_s = model, seed, key, validate, every_s
        self.optimizer = model.optimizer()
        self.compile_s = 0.0
        self._jitted = jax.jit(make_update(model, self.optimizer), donate_argnums=0)
        self._compiled: dict[Any, Any] = {}

    def start(self, key: jax.Array) -> tuple[LoopState, _Progress]:
        """The state before the first epoch."""
        state = first_state(self.model, self.optimizer, key)
        return state, _Progress(best=_copy(state.params))

    def _step(self, state: LoopState, batch: Batch, constants: Any, bar: progress.Bar) -> LoopState:
        leaves, structure = jax.tree.flatten(batch)
        shape = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        program = self._compiled.get(shape)
        if program is None:
            started = time.monotonic()
            program = self._compiled[shape] = self._jitted.lower(state, batch, constants, self.key).compile()
            seconds = time.monotonic() - started
            self.compile_s += seconds
            bar.compiled("update", seconds)
        return program(state, batch, constants, self.key)

    def loop(self, state: LoopState, done: _Progress, checkpoints: TreeCheckpoints | None) -> Trained:
        """Epochs until the last one or until patience runs out."""
        model = self.model
        constants = jax.tree.map(jnp.asarray, model.constants)
        saved_at = time.monotonic()
        with progress.bar(f"{model.name} seed {self.seed}", model.epochs, "epochs", done=done.epoch) as bar:
            while not self._finished(done):
                state = self._epoch(state, done, constants, bar)
                if checkpoints is not None and (self._finished(done)
                                                or time.monotonic() - saved_at >= self.every_s):
                    _save(checkpoints, state, done)
                    saved_at = time.monotonic()
        seconds = sum(record.seconds + record.validation_s for record in done.history)
        return Trained(done.best, done.best_value, done.best_epoch, tuple(done.history), int(state.step),
                       int(state.skipped), seconds, self.compile_s, _count(done.best))

    def _finished(self, done: _Progress) -> bool:
        waited = done.epoch - done.best_epoch
        return done.epoch >= self.model.epochs or (done.best_epoch > 0 and waited >= self.model.patience)

    def _epoch(self, state: LoopState, done: _Progress, constants: Any, bar: progress.Bar) -> LoopState:
        """One epoch and its validation, recorded in ``done``."""
        number = done.epoch + 1
        compile_s, started = self.compile_s, time.monotonic()
        looked, count = started, 0
        state = replace(state, loss_sum=jnp.zeros(()), losses=jnp.zeros((), jnp.int32))
        with closing(_ahead(self.model.batches(seed=self.seed, epoch=number - 1))) as batches:
            for batch in batches:
                state = self._step(state, batch, constants, bar)
                count += 1
                if time.monotonic() - looked >= LOOK_EVERY_S:
                    self._look(state, number, bar, count)
                    looked = time.monotonic()
        loss = self._look(state, number, bar, count)
        seconds = time.monotonic() - started - (self.compile_s - compile_s)
        started = time.monotonic()
        value = _finite(self.model, number, self.validate(state.params))
        done.history.append(EpochRecord(number, loss, value, seconds, time.monotonic() - started))
        if value > done.best_value:
            done.best_value, done.best_epoch = value, number
            done.best = _copy(state.params)
        shown = {} if loss is None else {"loss": loss}
        bar.advance(1, **shown, validation=value, best=done.best_value)
        return state

    def _look(self, state: LoopState, epoch: int, bar: progress.Bar, batches: int) -> float | None:
        """Wait for the device; the mean loss of the epoch so far.

        Raises:
            RuntimeError: three updates in a row were not finite.
        """
        values = jax.device_get((state.skipped_in_a_row, state.loss_sum, state.losses, state.skipped))
        in_a_row, loss_sum, losses, skipped = (float(value) for value in values)
        if in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise RuntimeError(f"{self.model.name} stopped: loss or gradient was not finite in {MAX_SKIPPED_IN_A_ROW} "
                               f"updates in a row of epoch {epoch} (seed {self.seed}); the last good checkpoint is "
                               f"untouched; lower its learning rate")
        shown = {"skipped": int(skipped)} if skipped else {}
        if losses:
            bar.advance(0, epoch=epoch, batches=batches, loss=loss_sum / losses, **shown)
        return loss_sum / losses if losses else None


def _save(checkpoints: TreeCheckpoints, state: LoopState, done: _Progress) -> None:
    meta = {"history": [as_plain(record) for record in done.history], "best_epoch": done.best_epoch,
            "best_value": done.best_value}
    checkpoints.save_trees(done.epoch, {"state": state, "best": done.best}, meta)


def _restore(checkpoints: TreeCheckpoints, state: LoopState, done: _Progress) -> tuple[LoopState, _Progress]:
    """The newest checkpoint, or what was handed in where there is none."""
    stored = checkpoints.restore_trees({"state": state, "best": done.best})
    if stored is None:
        return state, done
    history = [EpochRecord(**record) for record in stored.meta["history"]]
    progress.say(f"{checkpoints.what}: going on after epoch {stored.step}")
    return stored.trees["state"], _Progress(history, stored.trees["best"], stored.meta["best_epoch"],
                                            stored.meta["best_value"])


def _ahead(batches: Iterator[Batch], size: int = AHEAD) -> Generator[Batch]:
    """The same batches, made in a thread of their own up to ``size`` in advance; its errors come out here."""
    end = object()
    worker = ThreadPoolExecutor(1, "batches")
    try:
        made = deque(worker.submit(next, batches, end) for _ in range(size))
        while (batch := made.popleft().result()) is not end:
            made.append(worker.submit(next, batches, end))
            yield batch
    finally:
        worker.shutdown(cancel_futures=True)
