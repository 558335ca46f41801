"""What training changes, and the one place where it changes: a guarded AdamW update.

The trained tree is a LoRA adapter (SFT, GRPO) or the base itself (pretraining). Gradients
arrive summed over micro-batches, in float32. An update whose loss or gradient is not finite leaves tree and optimiser
as they were and is counted; the loop stops after three in a row (:func:`check_progress`).

Randomness is never stored: a stream is ``fold_in(fold_in(key(seed), name), step)`` (:func:`stream_key`), so a resumed
run draws what the run that never stopped would have drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from r2rec_jax.models.lora import copy_tree

MAX_SKIPPED_IN_A_ROW = 3

Schedule = Literal["constant", "linear", "cosine"]


@flax.struct.dataclass
class Best:
    """The best of the trees that held-out data have judged.

    Attributes:
        params: the tree.
        score: what it got, the more the better; minus infinity before the first was judged.
        step: after which step that was.
    """

    params: Any
    score: Float[Array, ""]
    step: Int[Array, ""]


@flax.struct.dataclass
class TrainState:
    """Everything an update changes; donated to it whole.

    Attributes:
        params: the trained tree: a LoRA tree, or the base when pretraining.
        opt_state: optax state.
        step: updates done, skipped ones included.
        skipped: updates skipped because their loss or gradient was not finite.
        skipped_in_a_row: how many of the latest updates were skipped.
        best: of the trees that were judged so far, where the best is to be kept; no update changes it.
    """

    params: Any
    opt_state: Any
    step: Int[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    best: Best | None = None


def make_schedule(lr: float, schedule: Schedule, warmup: float, total: int, final: float = 0.0) -> optax.Schedule:
    """Learning rate of update 0, 1, ..., total - 1.

    Args:
        lr: peak.
        schedule: after the warm-up: constant, or linear or cosine down to ``final * lr`` at update ``total``.
        warmup: fraction of the updates that rise linearly; update i of W warm-up updates has lr * (i + 1) / W, so that
            no update is wasted at zero.
        total: updates of the whole run.
        final: last learning rate as a fraction of the peak.

    Returns:
        A function of the update's number. ``make_schedule(1.0, "linear", 0.4, 5)`` gives .5, 1, 1, 2/3, 1/3.
    """
    rising = round(warmup * total)
    falling = max(1, total - rising)
    if schedule == "constant":
        after = optax.constant_schedule(lr)
    elif schedule == "linear":
        after = optax.linear_schedule(lr, final * lr, falling)
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(lr, falling, alpha=final)
    else:
        raise ValueError(f"the schedule must be 'constant', 'linear' or 'cosine'; got {schedule!r}")
    if rising == 0:
        return after
    rise = optax.linear_schedule(lr / rising, lr * (rising + 1) / rising, rising)
    return optax.join_schedules([rise, after], [rising])


def learning_rate(schedule: optax.Schedule, state: TrainState) -> float:
    """The rate of the next update; skipped updates do not move the schedule."""
    return float(np.asarray(schedule(int(state.step) - int(state.skipped))))


def make_optimizer(
    lr: float, schedule: Schedule, warmup: float, total: int, weight_decay: float, max_grad_norm: float,
    final: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW (b1 .9, b2 .999, eps 1e-8; decoupled decay) after clipping by the global norm; moments in float32.

    Args:
        lr, schedule, warmup, total, final: see :func:`make_schedule`.
        weight_decay: decay a step, times the learning rate.
        max_grad_norm: gradients longer than this are scaled down to it.
    """
    return optax.chain(
        optax.clip_by_global_norm(max_grad_norm),
        optax.adamw(make_schedule(lr, schedule, warmup, total, final), b1=0.9, b2=0.999, eps=1e-8,
                    weight_decay=weight_decay),
    )


def init_state(params: Any, optimizer: optax.GradientTransformation, *, keep_best: bool = False) -> TrainState:
    """A state at update 0. It owns a copy of ``params``: the caller's tree survives the donation.

    Args:
        params: the tree to train.
        optimizer: made by :func:`make_optimizer`.
        keep_best: have a place for the best tree.
    """
    params = copy_tree(params)
    zero = [jnp.zeros((), jnp.int32) for _ in range(3)]
    best = Best(copy_tree(params), jnp.float32(-jnp.inf), jnp.int32(0)) if keep_best else None
    return TrainState(params, optimizer.init(params), *zero, best=best)


def apply_or_skip(
    state: TrainState, grads: Any, loss: Float[Array, ""], optimizer: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser update, or none where the loss or the gradient's norm is not finite.

    Args:
        state: before the update (donate it).
        grads: tree like ``state.params``.
        loss: of the whole update.
        optimizer: made by :func:`make_optimizer`.

    Returns:
        The state after it, and ``grad_norm`` (before clipping), ``skipped`` and ``skipped_in_a_row``.
    """
    norm = optax.global_norm(grads)
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    bad = 1 - good.astype(jnp.int32)
    after = replace(
        state, params=keep(params, state.params), opt_state=keep(opt_state, state.opt_state), step=state.step + 1,
        skipped=state.skipped + bad, skipped_in_a_row=(state.skipped_in_a_row + 1) * bad)
    return after, {"grad_norm": norm, "skipped": after.skipped, "skipped_in_a_row": after.skipped_in_a_row}


def check_progress(stage: str, step: int, skipped_in_a_row: int, example_ids: Sequence[str]) -> None:
    """Stop a run that skips update after update.

    Raises:
        RuntimeError: when three updates in a row were skipped, naming the step and the examples of the last one.
    """
    if skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
        named = ", ".join(dict.fromkeys(example_ids))
        raise RuntimeError(
            f"{stage} stopped: loss or gradient was not finite in {skipped_in_a_row} updates in a row, the last at "
            f"step {step} with examples {named}; the last good checkpoint is untouched; lower {stage}.lr or look at "
            "those examples")


def stream_key(seed: int, name: str, step: int) -> Array:
    """Typed key of one stream at one step: ``fold_in(fold_in(key(seed), hash of name), step)``."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), number), step)
