"""Bytes of every kind of memory, per device, from shapes alone.

Weights, adapter, optimiser and caches are exact: their trees are built as shapes and divided by the sharding table.
What a program holds besides, its temporaries, is a formula here, counted in activations a token; on a CPU the compiled
program itself is asked instead (``compiled``). For n tokens on a device, B rows, in the model's letters:

    saved for the backward pass   L n D with recomputation, L n A without,  A = 6 D + 3 N H + 3 K H + 3 F
    one layer at work             2 n A, and 3 tiles of scores [B, N, Q, S] in float32 (``models.blockwise``)
    or the head at work           4 arrays [256, V] in float32, beside the scored states [C, D] twice
    gathered weights (fsdp > 1)   two layers, the embedding and the head, whole

``A`` lists what a layer keeps of a token: the residual stream before and after attention, both inputs before and after
their norm's scale; queries before and after rotation and the attention's output; keys twice and values; gate, up, and
what SwiGLU makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from r2rec_jax.config import TrainConfig
from r2rec_jax.models.blockwise import ACCELERATOR_BLOCK, CPU_BLOCK, tile_sizes
from r2rec_jax.models.llama import LlamaConfig, abstract_llama, split_llama
from r2rec_jax.models.logprobs import CHUNK
from r2rec_jax.models.products import resolve_matmul_dtype
from r2rec_jax.parallel.sharding import names_of, spec_of
from r2rec_jax.sampling.decoder import Buckets, size_bucket
from r2rec_jax.sampling.program import empty_caches
from r2rec_jax.training.rollouts import SHARES
from r2rec_jax.training.rows import RowShape, round_up


@dataclass(frozen=True)
class Shapes:
    """The model of a plan as shapes.

    Attributes:
        config: of the backbone.
        graphdef, lora, base: of ``models.llama.split_llama``, shapes for arrays.
        dtype: of activations and of what is not quantised.
        sizes: devices on each axis of the mesh.
        on_cpu: the run's device is the CPU: no recomputation by default, merged layers when decoding in float32.
    """

    config: LlamaConfig
    graphdef: Any
    lora: Any
    base: Any
    dtype: Any
    sizes: Mapping[str, int]
    on_cpu: bool

    @property
    def row_shards(self) -> int:
        """Parts that rows are split into."""
        return self.sizes["data"] * self.sizes["fsdp"]


def make_shapes(hf_config: Mapping[str, Any], config: TrainConfig, sizes: Mapping[str, int], on_cpu: bool) -> Shapes:
    """The model of a configuration on a mesh, without an array."""
    shape = LlamaConfig.from_hf(dict(hf_config))
    auto = "float32" if on_cpu else "bfloat16"
    dtype = jnp.dtype(auto if config.backbone.dtype == "auto" else config.backbone.dtype)
    graphdef, lora, base = split_llama(abstract_llama(
        shape, config.lora, dtype, config.backbone.quantize, resolve_matmul_dtype(config.backbone.matmul_dtype, dtype)))
    return Shapes(shape, graphdef, lora, base, dtype, sizes, on_cpu)


def device_bytes(tree: Any, sizes: Mapping[str, int]) -> int:
    """Bytes of a tree on one device, by the sharding table."""
    total = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = math.prod(sizes[axis] for axes in spec_of(names_of(path), leaf.shape, sizes)
                          for axis in ((axes,) if isinstance(axes, str) else axes or ()))
        total += math.prod(leaf.shape) * leaf.dtype.itemsize // parts
    return total


def count(tree: Any) -> int:
    """Numbers in a tree."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def recomputes(config: TrainConfig, on_cpu: bool) -> bool:
    """Whether the backward pass recomputes layers, as ``training.policy.FrozenModel`` decides."""
    return not on_cpu if config.backbone.remat == "auto" else config.backbone.remat == "on"


def held(shapes: Shapes, adapters: int) -> dict[str, int]:
    """What stays on the device for a whole training stage.

    Args:
        shapes: of the model.
        adapters: LoRA trees alive: the zero one, the one training started from, the trained one, GRPO's reference, and
            the best one where it is kept.
    """
    lora = device_bytes(shapes.lora, shapes.sizes)
    return {"weights": device_bytes(shapes.base, shapes.sizes), "adapter": adapters * lora, "optimiser": 2 * lora,
            "gradients": 2 * lora}


def widened(shapes: Shapes) -> Shapes:
    """The model as pretraining trains it: every parameter and all activations in float32."""
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), shapes.base)
    return replace(shapes, base=wide, dtype=jnp.dtype(jnp.float32))


def held_whole(shapes: Shapes) -> dict[str, int]:
    """What stays on the device while pretraining trains the whole backbone: the one it starts from, and the trained one
    with its moments and gradients."""
    trained = device_bytes(widened(shapes).base, shapes.sizes)
    return {"weights": device_bytes(shapes.base, shapes.sizes), "adapter": device_bytes(shapes.lora, shapes.sizes),
            "trained weights": trained, "optimiser": 2 * trained, "gradients": 2 * trained}


def pretrain_row(config: TrainConfig) -> RowShape:
    """A row of pretraining: any of its tokens may be trained."""
    return RowShape(config.pretrain.max_tokens, config.pretrain.max_tokens)


def sft_row(config: TrainConfig, prompt: int, completion: int) -> RowShape:
    """The longest row of SFT for examples of these lengths: the configured bucket, or the longest example."""
    length = max(config.sft.buckets) if config.sft.buckets else round_up(prompt + completion)
    return RowShape(length, min(length, round_up(completion)))


def grpo_row(config: TrainConfig, prompt: int, completion: int) -> RowShape:
    """The longest row of a GRPO update: a prompt and its whole group, each completion at full length."""
    need = config.grpo.group_size * completion
    sizes = [round_up(share * config.grpo.group_size * config.grpo.max_new_tokens) for share in SHARES]
    targets = next((size for size in sizes if size >= need), sizes[-1])
    return RowShape(round_up(prompt) + targets, targets)


def layer_numbers(c: LlamaConfig) -> int:
    """A of the module's docstring: what one layer computes of one token, in numbers."""
    return 6 * c.hidden_size + 3 * c.heads * c.head_dim + 3 * c.kv_heads * c.head_dim + 3 * c.ffn


def logit_bytes(shapes: Shapes, scored: int) -> int:
    """What the head needs beside its weight, for this many scored positions."""
    c = shapes.config
    chunk = 4 * min(CHUNK, scored) * c.vocab_size * 4 // shapes.sizes["tensor"]
    return chunk + 2 * scored * c.hidden_size * shapes.dtype.itemsize


def gathered_bytes(shapes: Shapes) -> int:
    """Whole weights that an fsdp mesh gathers for the layer at work, the next one, the embedding and the head."""
    if shapes.sizes["fsdp"] == 1:
        return 0
    c, whole = shapes.config, {**shapes.sizes, "fsdp": 1}
    layers = device_bytes(shapes.base["layers"], whole)
    return 2 * layers // c.layers + (device_bytes(shapes.base, whole) - layers)


def training_temporaries(shapes: Shapes, row: RowShape, rows: int, remat: bool) -> dict[str, int]:
    """Temporaries of one pass of ``rows`` rows on each device that has rows of its own."""
    c, size = shapes.config, shapes.dtype.itemsize
    tokens, split = rows * row.length, shapes.sizes["tensor"]
    numbers = layer_numbers(c) // split
    # Narrow heads have smaller tiles on a CPU, and copies beside them that make up for it.
    queries, keys = tile_sizes(row.length, CPU_BLOCK if shapes.on_cpu else ACCELERATOR_BLOCK)
    scores = 3 * rows * c.heads // split * queries * keys * 4
    saved = c.layers * tokens * (c.hidden_size if remat else numbers) * size
    at_work = max(2 * tokens * numbers * size + scores, logit_bytes(shapes, rows * row.targets))
    return {"saved activations": saved, "layer or head at work": at_work, "gathered weights": gathered_bytes(shapes)}


def _wide(shapes: Shapes) -> Any:
    """The layers as decoding may hold them a second time: int8 kernels cast once, outside the token loop.

    The CPU's compiler does so whatever the program says; of GPUs and TPUs it is assumed.
    """
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, shapes.dtype if x.dtype == jnp.int8 else x.dtype),
                        shapes.base["layers"])


def rollout_parts(shapes: Shapes, config: TrainConfig, prompts: int, group: int, prompt: int, completion: int
                  ) -> dict[str, int]:
    """Key and value caches of a rollout at its full length, what prefilling takes, and the decoder's own weights."""
    c, size, buckets = shapes.config, shapes.dtype.itemsize, Buckets()
    here, slots = size_bucket(-(-prompts // shapes.row_shards)), size_bucket(prompt, buckets.prompt_tokens)
    batch = here * shapes.row_shards
    capacity = round_up(completion, 32)
    caches = jax.eval_shape(lambda: empty_caches(c, batch, group, slots, capacity, shapes.dtype))
    filled = max(1, min(here, buckets.prefill_tokens // slots)) * slots
    merged = shapes.on_cpu and shapes.dtype == jnp.float32 and config.backbone.quantize == "none"
    layers = device_bytes(_wide(shapes), shapes.sizes)
    if merged and (matmul_dtype := resolve_matmul_dtype(config.backbone.matmul_dtype, shapes.dtype)) is not None:
        head = c.vocab_size * c.hidden_size // shapes.sizes["tensor"]  # XLA copies it once, outside the token loop
        layers = layers * matmul_dtype.itemsize // shapes.dtype.itemsize + head * matmul_dtype.itemsize
    prefill = filled * (2 * layer_numbers(c) // shapes.sizes["tensor"] + 2 * c.layers * c.kv_heads * c.head_dim) * size
    drawn = 6 * here * group * c.vocab_size * 4 // shapes.sizes["tensor"]
    return {"kv cache": device_bytes(caches, shapes.sizes), "merged layers" if merged else "sliced layers": layers,
            "prefill and logits": max(prefill, drawn), "gathered weights": gathered_bytes(shapes)}

