"""Splash attention, the Pallas kernel for TPUs that comes with jax, over rows that hold several segments.

The kernel knows three ways of saying who sees whom, and the rule of ``attention`` fits one of them:

- Segment ids see equal ids only, one id a token; a completion sees its own segment *and* its prompt's.
- A mask function is computed in the kernel from one int32 of the query and the index of the key. Where segments are
  contiguous it would need the query's index, its segment's start and its prompt's end: 36 bits for 4,096 tokens.
- A mask handed over as an array, [T, T] for a row and all its heads, says anything. What the kernel needs to know of
  tiles is computed from it on the device: one that nobody sees is skipped, one that all see is not masked, and only the
  others (on the diagonal, and where a segment ends) are read. That is the way taken. A pair is four bytes on a TPU:
  67 MB for a row of 4,096 tokens, twice in the backward pass, while one layer is at work.

Two calls, for the own segment and for the prompt, could use segment ids, but their merger needs the log-sum-exp, which
the kernel does not differentiate.

Queries of a tile that sees no key are 0/0 in the kernel, and what is not a number would reach real tokens by way of the
next layer. The output of what sees no key is replaced by 0 and has no gradient; since all kernels have the same tiles,
those that would spread the 0/0 backward are skipped.

The compiler does not partition a kernel: on a mesh every device calls it for its own rows and heads (``shard_map``).
Heads, or rows, that an axis does not divide are computed by all devices of that axis, as ``sharding`` has it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from r2rec_jax.parallel.sharding import axes_of_rows_and_heads

BLOCK = 512
"""Queries, and keys, a tile at most (not tuned: this has never run on a TPU)."""

_LANES = 128


def tile_size(length: int, block: int) -> tuple[int, int]:
    """(tokens of a tile's sides, tokens of a row filled up to whole tiles); tiles are multiples of 128, of equal size.

    Example: with blocks of 512, 700 tokens give (384, 768), 1,024 give (512, 1024) and 75 give (128, 128).
    """
    blocks = -(-length // block)
    side = -(-length // (_LANES * blocks)) * _LANES
    return side, side * -(-length // side)


def attend_masked(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Bool[Array, "B T T"],
    *,
    block: int = BLOCK,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Grouped-query attention under any mask, scores scaled by 1/sqrt(H), softmax in float32; on the mesh, if any.

    Args:
        q, k, v: queries, keys and values; widths H and dtypes as they come.
        mask: which keys (last axis) each query sees.
        block: tokens of a tile's sides at most, a multiple of 128.
        interpret: compute the kernel by plain operations, on any platform (tests).

    Returns:
        The output; 0, without a gradient, where a query sees no key.
    """
    def attended(*local: Array) -> Array:
        return _on_device(*local, block=block, interpret=interpret)

    axes = axes_of_rows_and_heads(q.shape[0], k.shape[2])
    if axes is None:
        return attended(q, k, v, mask)
    rows, heads = axes
    each = PartitionSpec(rows, None, heads)
    # check_vma: the kernel's outputs do not say over which axes they vary.
    return jax.shard_map(attended, in_specs=(each, each, each, PartitionSpec(rows)), out_specs=each,
                         check_vma=False)(q, k, v, mask)


def _on_device(q: Array, k: Array, v: Array, mask: Array, *, block: int, interpret: bool) -> Array:
    length, width = q.shape[1], q.shape[3]
    side, room = tile_size(length, block)
    more = room - length
    mask = jnp.pad(mask, ((0, 0), (0, more), (0, more)))
    seeing = mask.any(axis=2)
    scaled = (q.astype(jnp.float32) * width**-0.5).astype(q.dtype)
    by_heads = [jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))).swapaxes(1, 2) for x in (scaled, k, v)]
    out = jax.vmap(lambda *row: _kernel(row[3], side, interpret)(*row[:3]))(*by_heads, mask)
    return jnp.where(seeing[:, :, None, None], out.swapaxes(1, 2), 0)[:, :length]


def _kernel(mask: Bool[Array, "T T"], side: int, interpret: bool) -> Any:
    """jax's kernel for one row: ([N T H], [K T H], [K T H]) to [N T H]."""
    from jax.experimental.pallas.ops.tpu import splash_attention  # half a second, and needed on TPUs only

    sizes = splash_attention.BlockSizes(
        block_q=side, block_kv=side, block_q_dkv=side, block_kv_dkv=side, block_q_dq=side, block_kv_dq=side)
    kernel = splash_attention.make_splash_mha_single_device(mask[None], block_sizes=sizes, interpret=interpret)
    # Made from a traced mask, the kernel holds this flag as a traced array, and then cannot read it.
    kernel.fwd_mask_info = kernel.fwd_mask_info._replace(is_dynamic_mask=True)
    return kernel
