"""Next-token training of a whole backbone (the ``tiny`` one): every parameter, no adapter.

Texts are laid end to end in an order drawn from the seed and cut into rows of ``max_tokens``; a text is a segment of
its own, so nothing is predicted from another text, and the part of a text that falls into the next row starts anew
there. The paper has no such stage: it starts from a chat model. This one gives tests and laptops a model of a few
million parameters that has seen the language of the prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from r2rec_jax.config import PretrainConfig
from r2rec_jax.parallel.sharding import place
from r2rec_jax.tokens.batches import empty
from r2rec_jax.tokens.examples import Batch
from r2rec_jax.tokens.loader import make_loader
from r2rec_jax.training.checkpoints import Checkpoints
from r2rec_jax.training.metrics import MetricsWriter
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.session import Session, Trained
from r2rec_jax.training.shared import SharedCheckpoints
from r2rec_jax.training.state import init_state, learning_rate, make_optimizer, make_schedule
from r2rec_jax.training.updates import LossFn, Updates

WARMUP, FINAL_LR, WEIGHT_DECAY, MAX_GRAD_NORM = 0.05, 0.1, 0.01, 1.0


def make_pretrain_loss(model: FrozenModel) -> LossFn:
    """``loss(base, lora, batch, scale)``: as in SFT, with the base as the trained tree."""
    def loss(base: nnx.State, lora: nnx.State, batch: Batch, scale: Float[Array, ""]) -> tuple[Array, dict[str, Any]]:
        logprobs, _ = model.score(lora, base, batch)
        summed = jnp.sum(jnp.where(batch.target_weights > 0, logprobs, 0))
        return -summed * scale, jax.lax.stop_gradient({"tokens": jnp.sum(batch.target_weights)})

    return loss


def stream_rows(texts: Sequence[Sequence[int]], length: int, seed: int) -> list[list[list[int]]]:
    """Rows of text pieces: all texts in a drawn order, end to end, cut every ``length`` tokens.

    Example: texts of 3 and 4 tokens in rows of 5 give pieces of ``[[3, 2], [2]]`` tokens (or ``[[4, 1], [2]]``).
    """
    rows: list[list[list[int]]] = [[]]
    room = length
    for index in np.random.default_rng(seed).permutation(len(texts)):
        text = list(texts[index])
        while text:
            if room == 0:
                rows.append([])
                room = length
            piece, text = text[:room], text[room:]
            rows[-1].append(piece)
            room -= len(piece)
    return [row for row in rows if row]


def row_batch(rows: Sequence[Sequence[Sequence[int]]], count: int, length: int, pad_id: int = 0) -> Batch:
    """Rows of pieces as a batch: every token of a piece but its first is a target."""
    batch = empty(count, length, length, pad_id)
    for row, pieces in enumerate(rows):
        start = target = 0
        for segment, piece in enumerate(pieces, start=1):
            end, more = start + len(piece), len(piece) - 1
            batch.tokens[row, start:end] = piece
            batch.positions[row, start:end] = np.arange(len(piece))
            batch.segments[row, start:end] = segment
            batch.target_index[row, target:target + more] = np.arange(start, end - 1)
            batch.target_tokens[row, target:target + more] = piece[1:]
            batch.target_weights[row, target:target + more] = 1
            start, target = end, target + more
    return batch


def train_pretrain(
    model: FrozenModel,
    zero_lora: nnx.State,
    texts: Sequence[Sequence[int]],
    config: PretrainConfig,
    *,
    seed: int,
    checkpoints: Checkpoints | SharedCheckpoints | None = None,
    metrics: MetricsWriter | None = None,
    pad_id: int = 0,
) -> Trained:
    """Train the base on texts.

    Args:
        model: structure, and the base to start from; left as it is. Training is in float32 whatever its dtype; the
            result has that dtype again.
        zero_lora: the zero adapter.
        texts: token ids, begin and end tokens included.
        config: of the stage.
        seed: order of the texts.
        checkpoints: resumed from and saved to.
        metrics: one row a step: loss (nats a token), tokens, grad_norm, lr, skipped.
        pad_id: written where there is no token; never read.

    Returns:
        The trained base and counts.

    Raises:
        ValueError: no texts.
        RuntimeError: three updates in a row were not finite.
    """
    rows = stream_rows(texts, config.max_tokens, seed)
    loader = make_loader(rows, config.batch_size, None, seed)
    settings = (config.lr, "cosine", WARMUP, config.steps)
    optimizer = make_optimizer(*settings, WEIGHT_DECAY, MAX_GRAD_NORM, FINAL_LR)
    schedule = make_schedule(*settings, FINAL_LR)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), model.base)
    session = Session("pretrain", place(init_state(wide, optimizer), model.mesh), loader, config.steps,
                      checkpoints=checkpoints, metrics=metrics, checkpoint_every=config.checkpoint_every)
    zero_lora = place(zero_lora, model.mesh)
    held = -(-config.batch_size // model.row_shards) * model.row_shards
    with session:
        updates = Updates(make_pretrain_loss(model), ("tokens",), optimizer, session.report, mesh=model.mesh)
        for step in session.steps():
            batch = row_batch(next(loader), held, config.max_tokens, pad_id)
            scale = np.asarray(1 / max(float(batch.target_weights.sum()), 1.0), np.float32)
            lr = learning_rate(schedule, session.state)
            state, values = updates.run(session.state, zero_lora, [(batch, scale)])
            session.finish(step, state, values | {"lr": lr}, [f"rows of step {step}"])
    trained = session.trained()
    return replace(trained, params=jax.tree.map(lambda x, old: x.astype(old.dtype), trained.params, model.base))
