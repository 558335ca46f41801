"""Supervised fine-tuning of the adapter (Eq. 3).

    L = - 1/M sum over the M completion tokens of the update of log pi(token | what came before it)

Cross-entropy on completions only; each token of an update weighs the same, whatever example, row or device pass it is
in. Short and long examples are packed into rows together (``rows``), each a segment of its own. The paper gives loss,
learning rate, batch and epochs; packing, schedule and clipping are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from r2rec_jax.config import SftConfig
from r2rec_jax.parallel.compiling import Report, silent
from r2rec_jax.parallel.distributed import check_stop
from r2rec_jax.parallel.sharding import place
from r2rec_jax.tokens.examples import Batch, Example
from r2rec_jax.tokens.loader import Loader
from r2rec_jax.training.checkpoints import Checkpoints
from r2rec_jax.training.metrics import LOOK, MetricsWriter
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.programs import Program
from r2rec_jax.training.rows import pack_update, row_shapes
from r2rec_jax.training.session import Session, Trained, steps_of
from r2rec_jax.training.shared import SharedCheckpoints
from r2rec_jax.training.state import init_state, learning_rate, make_optimizer, make_schedule
from r2rec_jax.training.updates import LossFn, Updates

SUMS = ("tokens", "entropy_sum")


def make_sft_loss(model: FrozenModel) -> LossFn:
    """``loss(lora, base, batch, scale)``: minus the summed log-probability of the targets, times ``scale``.

    With ``scale`` 1 / (targets of the whole update), the losses of an update's passes add up to its mean.
    """
    def loss(lora: nnx.State, base: nnx.State, batch: Batch, scale: Float[Array, ""]) -> tuple[Array, dict[str, Any]]:
        logprobs, entropy = model.score(lora, base, batch)
        weights = batch.target_weights
        summed = jnp.sum(jnp.where(weights > 0, weights * logprobs, 0))
        sums = {"tokens": jnp.sum(weights), "entropy_sum": jnp.sum(jnp.where(weights > 0, entropy, 0))}
        return -summed * scale, jax.lax.stop_gradient(sums)

    return loss


def sft_passes(batches: Sequence[Batch]) -> list[tuple[Batch, np.ndarray]]:
    """The passes of one update with their common scale, one over its targets."""
    targets = sum(float(np.sum(batch.target_weights)) for batch in batches)
    return [(batch, np.asarray(1 / max(targets, 1.0), np.float32)) for batch in batches]


def make_held_out_loss(model: FrozenModel, examples: Sequence[Example], config: SftConfig, report: Report = silent,
                       pad_id: int = 0) -> Callable[[nnx.State], dict[str, float]]:
    """``measure(lora)``: the loss on examples that the adapter is not trained on, in rows of their own lengths.

    Returns:
        A function of the adapter; it gives ``eval_loss`` and ``eval_entropy`` (nats a completion token, each token
        alike) and ``eval_examples``, how many they are of.
    """
    loss = make_sft_loss(model)
    shapes = row_shapes(examples)
    passes = sft_passes(pack_update(examples, shapes, config.micro_batch * model.row_shards, pad_id))

    def forward(lora: nnx.State, base: nnx.State, batch: Batch, scale: Array) -> dict[str, Array]:
        value, sums = loss(lora, base, batch, scale)
        return {"loss": value, "entropy": sums["entropy_sum"] * scale}

    program = Program("held-out loss", forward, report=report, mesh=model.mesh)

    def measure(lora: nnx.State) -> dict[str, float]:
        parts = []
        for batch, scale in passes:
            check_stop()
            parts.append(program(lora, model.base, batch, scale))
        found = jax.device_get(parts)
        return {f"{LOOK}{name}": float(sum(part[name] for part in found)) for name in ("loss", "entropy")} | {
            f"{LOOK}examples": len(examples)}

    return measure


def train_sft(
    model: FrozenModel,
    lora: nnx.State,
    examples: Sequence[Example],
    config: SftConfig,
    *,
    seed: int,
    held_out: Sequence[Example] = (),
    checkpoints: Checkpoints | SharedCheckpoints | None = None,
    metrics: MetricsWriter | None = None,
    pad_id: int = 0,
) -> Trained:
    """Train the adapter on prompt-completion examples.

    Args:
        model: the frozen backbone.
        lora: adapter to start from; left as it is.
        examples: ranking and thought examples, mixed as wished.
        config: epochs, batch, learning rate, rows; ``micro_batch`` is rows a device and pass.
        seed: order of the examples.
        held_out: examples whose loss is measured before the first update, after every ``eval_every`` and after the last
            (:func:`make_held_out_loss`), and that are not trained on. None are read where ``eval_every`` is 0.
        checkpoints: resumed from and saved to.
        metrics: one row an update: loss and entropy (nats a token), tokens, grad_norm, lr, skipped,
            padding (share of row places that hold no token). What held-out examples gave has a row of its own, with the
            number of updates before it.
        pad_id: written where there is no token; never read.

    Returns:
        The trained adapter, or the one whose look had the lowest ``eval_loss`` (``config.keep``), and counts.

    Raises:
        ValueError: no examples, or a bucket too short.
        RuntimeError: three updates in a row were not finite.
    """
    shapes = row_shapes(examples, config.buckets)
    loader = Loader(examples, config.batch_size, config.epochs, seed)
    total = steps_of("sft", len(loader), config.steps)
    settings = (config.lr, config.schedule, config.warmup, total)
    optimizer, schedule = make_optimizer(*settings, config.weight_decay, config.max_grad_norm), make_schedule(*settings)
    state = place(init_state(lora, optimizer, keep_best=config.keep == "best"), model.mesh)
    session = Session("sft", state, loader, total, checkpoints=checkpoints, metrics=metrics,
                      checkpoint_every=config.checkpoint_every, log_every=config.log_every)
    if held_out and config.eval_every:
        measure = make_held_out_loss(model, held_out, config, session.report, pad_id)
        session.watch(config.eval_every, lambda: measure(session.state.params), lambda values: -values["eval_loss"])
    with session:
        updates = Updates(make_sft_loss(model), SUMS, optimizer, session.report, mesh=model.mesh)
        for step in session.steps():
            chosen = next(loader)
            lr = learning_rate(schedule, session.state)
            batches = pack_update(chosen, shapes, config.micro_batch * model.row_shards, pad_id)
            state, values = updates.run(session.state, model.base, sft_passes(batches))
            values["entropy"] = values.pop("entropy_sum") / max(values["tokens"], 1.0)
            values |= {"lr": lr, "padding": float(np.mean([np.mean(batch.segments == 0) for batch in batches]))}
            session.finish(step, state, values, [example.example_id for example in chosen])
    return session.trained()
