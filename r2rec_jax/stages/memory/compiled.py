"""Temporaries of the gradient program as XLA's compiler for this CPU lays them out: compiled from shapes, never run.

That is the memory of a run on this CPU. It says nothing of a GPU or TPU: their compilers fuse otherwise, recompute by
default, and keep bfloat16, which a CPU widens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from r2rec_jax.config import TrainConfig
from r2rec_jax.stages.memory.formula import Shapes, recomputes, widened
from r2rec_jax.tokens.examples import Batch
from r2rec_jax.training.grpo import SUMS as GRPO_SUMS
from r2rec_jax.training.grpo import make_grpo_loss
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.pretrain import NO_ADAPTER, make_pretrain_loss, pretrain_graphdef
from r2rec_jax.training.pretrain import SUMS as PRETRAIN_SUMS
from r2rec_jax.training.rollouts import GroupBatch
from r2rec_jax.training.rows import RowShape
from r2rec_jax.training.sft import SUMS as SFT_SUMS
from r2rec_jax.training.sft import make_sft_loss
from r2rec_jax.training.updates import make_add_gradient


def abstract_batch(rows: int, shape: RowShape) -> Batch:
    """A batch of B rows as shapes."""
    arrays: dict[str, Any] = dict.fromkeys(("tokens", "positions", "segments", "parents"),
                                           jax.ShapeDtypeStruct((rows, shape.length), jnp.int32))
    arrays |= dict.fromkeys(("target_index", "target_tokens"), jax.ShapeDtypeStruct((rows, shape.targets), jnp.int32))
    return Batch(**arrays, target_weights=jax.ShapeDtypeStruct((rows, shape.targets), jnp.float32))  # pyright: ignore[reportArgumentType]


def gradient_temporaries(shapes: Shapes, config: TrainConfig, stage: str, row: RowShape, rows: int) -> int:
    """Bytes of temporaries of one device pass of a stage's gradient, compiled for this CPU.

    Args:
        shapes: of the model, on one device.
        config: the run's.
        stage: ``pretrain``, ``sft`` or ``grpo``.
        row: T and C.
        rows: B.
    """
    model = FrozenModel(shapes.graphdef, shapes.base, "xla", recomputes(config, on_cpu=True))
    if stage == "pretrain":
        model = replace(model, graphdef=pretrain_graphdef(shapes.config, config.backbone.matmul_dtype))
    function, args = gradient_program(model, shapes, config, stage, row, rows)
    analysis: Any = jax.jit(function, donate_argnums=1).lower(*args).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def gradient_program(model: FrozenModel, shapes: Shapes, config: TrainConfig, stage: str, row: RowShape, rows: int
                     ) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """One device pass of a stage's gradient and the shapes of its arguments, of which 1 is donated.

    Args:
        model: how it is computed.
        shapes, config, stage, row, rows: as of :func:`gradient_temporaries`; rows of all devices together.
    """
    batch = abstract_batch(rows, row)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    column = jax.ShapeDtypeStruct((rows, row.targets), jnp.float32)
    trained, frozen = shapes.lora, shapes.base
    if stage == "pretrain":
        trained, frozen = widened(shapes).base, NO_ADAPTER
        loss, sums, inputs = make_pretrain_loss(model), PRETRAIN_SUMS, (batch, number)
    elif stage == "sft":
        loss, sums, inputs = make_sft_loss(model), SFT_SUMS, (batch, number)
    else:
        arrays: dict[str, Any] = dict.fromkeys(("advantages", "weights", "sampled"), column)
        arrays["completions"] = jax.ShapeDtypeStruct(column.shape, jnp.int32)
        arrays |= {name: column for name, used in (("reference", config.grpo.beta > 0),
                                                   ("old", config.grpo.iterations > 1)) if used}
        group = GroupBatch(batch, **arrays)
        loss, sums, inputs = make_grpo_loss(model, config.grpo), GRPO_SUMS, (group,)
    total = {"grads": trained, **{name: number for name in ("loss", *sums)}}
    return make_add_gradient(loss), (trained, total, frozen, *inputs)
