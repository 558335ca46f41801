"""Next-token training of a whole backbone: every parameter, no adapter.

Texts are packed into rows of ``max_tokens`` in an order drawn from the seed; a text is a segment of its own, so that
nothing is predicted from another text. Only texts longer than a row are cut: one that is trained throughout into parts,
each of which stands for itself; of one that answers what it was given the end is read. The
paper has no such stage: it starts from a chat model. This one gives tests and laptops a model of a few million
parameters that has seen the language of the prompts, and tells a pretrained one who likes what (domain-adaptive
pretraining, Gururangan et al., 2020, https://arxiv.org/abs/2004.10964).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from r2rec_jax.config import PretrainConfig
from r2rec_jax.models.llama import LlamaConfig, abstract_llama, split_llama
from r2rec_jax.models.products import resolve_matmul_dtype
from r2rec_jax.parallel.sharding import place
from r2rec_jax.tokens.batches import empty
from r2rec_jax.tokens.examples import Batch, plan_packing
from r2rec_jax.tokens.loader import Loader
from r2rec_jax.training.checkpoints import Checkpoints
from r2rec_jax.training.metrics import MetricsWriter
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.session import Session, Trained
from r2rec_jax.training.shared import SharedCheckpoints
from r2rec_jax.training.state import init_state, learning_rate, make_optimizer, make_schedule
from r2rec_jax.training.updates import LossFn, Updates

WARMUP, FINAL_LR, WEIGHT_DECAY, MAX_GRAD_NORM = 0.05, 0.1, 0.01, 1.0
PACKED_TOGETHER = 256
SUMS = ("tokens",)
NO_ADAPTER = nnx.State({})
"""The LoRA tree of :func:`pretrain_graphdef`."""


def pretrain_graphdef(config: LlamaConfig, matmul_dtype: str | None = None) -> Any:
    """The structure that is pretrained: in float32, and without room for an adapter, whose zeros would cost as much as
    any other numbers."""
    factors = resolve_matmul_dtype(matmul_dtype, jnp.float32)
    return split_llama(abstract_llama(config, None, jnp.float32, matmul_dtype=factors))[0]


def make_pretrain_loss(model: FrozenModel) -> LossFn:
    """``loss(base, lora, batch, scale)``: as in SFT, with the base as the trained tree; ``lora`` is of the model's
    structure (:data:`NO_ADAPTER` for that of :func:`pretrain_graphdef`)."""
    def loss(base: nnx.State, lora: nnx.State, batch: Batch, scale: Float[Array, ""]) -> tuple[Array, dict[str, Any]]:
        logprobs, _ = model.score(lora, base, batch)
        summed = jnp.sum(jnp.where(batch.target_weights > 0, logprobs, 0))
        return -summed * scale, jax.lax.stop_gradient({"tokens": jnp.sum(batch.target_weights)})

    return loss


@dataclass(frozen=True)
class Text:
    """A text as tokens.

    Attributes:
        ids: begin and end tokens included.
        trained: for each of them, whether it is to be predicted; the first never is. What nobody could predict, such as
            a drawn list of items, is better left out.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]

    @classmethod
    def whole(cls, ids: Sequence[int]) -> Text:
        """A text all of which is trained."""
        return cls(tuple(ids), (True,) * len(ids))

    @property
    def in_parts(self) -> bool:
        """Whether it says as much in parts: all of it is trained, but for a begin token."""
        return all(self.trained[1:])

    def end(self, length: int) -> Text:
        """Its last ``length`` tokens, or all of it."""
        return Text(self.ids[-length:], self.trained[-length:])

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.trained):
            raise ValueError(f"trained must have an entry a token; got {len(self.trained)} for {len(self.ids)} tokens")


def pack_texts(texts: Sequence[Text], length: int, seed: int) -> list[list[Text]]:
    """Rows of texts that have at most ``length`` tokens together, in an order drawn from the seed; a longer text is in
    parts (:attr:`Text.in_parts`), or has lost its beginning.

    Example: texts of 3, 12 and 4 tokens, the second in parts, in rows of 5 tokens give rows of ``[5]``, ``[5]``,
    ``[3, 2]`` and ``[4]`` in some order.
    """
    rng = np.random.default_rng(seed)
    parts = []
    for index in rng.permutation(len(texts)):
        text = texts[index]
        if text.in_parts:
            parts += [Text(text.ids[start:start + length], text.trained[start:start + length])
                      for start in range(0, len(text.ids), length)]
        else:
            parts.append(text.end(length))
    rows = []
    for start in range(0, len(parts), PACKED_TOGETHER):
        some = parts[start:start + PACKED_TOGETHER]
        plan = plan_packing([len(part.ids) for part in some], length)
        rows += [[some[i] for i in plan[row]] for row in rng.permutation(len(plan))]
    return rows


def row_batch(rows: Sequence[Sequence[Text]], count: int, length: int, pad_id: int = 0) -> Batch:
    """Rows of texts as a batch: every trained token but a text's first is a target."""
    batch = empty(count, length, length, pad_id)
    for row, texts in enumerate(rows):
        start = target = 0
        for segment, text in enumerate(texts, start=1):
            end = start + len(text.ids)
            batch.tokens[row, start:end] = text.ids
            batch.positions[row, start:end] = np.arange(len(text.ids))
            batch.segments[row, start:end] = segment
            wanted = start + np.flatnonzero(text.trained[1:])
            more = target + len(wanted)
            batch.target_index[row, target:more] = wanted
            batch.target_tokens[row, target:more] = batch.tokens[row, wanted + 1]
            batch.target_weights[row, target:more] = 1
            start, target = end, more
    return batch


def train_pretrain(
    model: FrozenModel,
    phases: Sequence[Sequence[Text]],
    config: PretrainConfig,
    *,
    seed: int,
    checkpoints: Checkpoints | SharedCheckpoints | None = None,
    metrics: MetricsWriter | None = None,
    pad_id: int = 0,
) -> Trained:
    """Train the base on texts.

    Args:
        model: structure, from :func:`pretrain_graphdef`, and the base to start from; left as it is. Training is in
            float32 whatever its dtype; the result has that dtype again.
        phases: what is read, one after the other; texts of one phase in a drawn order.
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
    rows = [row for texts in phases for row in pack_texts(texts, config.max_tokens, seed)]
    loader = Loader(rows, config.batch_size, None, seed, shuffle=False)
    settings = (config.lr, "cosine", WARMUP, config.steps)
    optimizer = make_optimizer(*settings, WEIGHT_DECAY, MAX_GRAD_NORM, FINAL_LR)
    schedule = make_schedule(*settings, FINAL_LR)
    state = init_state(jax.tree.map(lambda x: x.astype(jnp.float32), model.base), optimizer)
    session = Session("pretrain", place(state, model.mesh), loader, config.steps,
                      checkpoints=checkpoints, metrics=metrics, checkpoint_every=config.checkpoint_every)
    del state  # of a large model there must not be two
    held = -(-config.batch_size // model.row_shards) * model.row_shards
    with session:
        updates = Updates(make_pretrain_loss(model), SUMS, optimizer, session.report, mesh=model.mesh)
        for step in session.steps():
            batch = row_batch(next(loader), held, config.max_tokens, pad_id)
            scale = np.asarray(1 / max(float(batch.target_weights.sum()), 1.0), np.float32)
            lr = learning_rate(schedule, session.state)
            state, values = updates.run(session.state, NO_ADAPTER, [(batch, scale)])
            session.finish(step, state, values | {"lr": lr}, [f"rows of step {step}"])
    trained = session.trained()
    return replace(trained, params=jax.tree.map(lambda x, old: x.astype(old.dtype), trained.params, model.base))
