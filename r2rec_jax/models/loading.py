"""From checkpoint tensors to placed parameters, one tensor on the host at a time.

A stacked parameter [L, in, out] is room on the device first, with its sharding; then each layer's tensor is read,
transposed, cast, hashed, placed with the sharding of one layer, and written into its slice in place (the room is
donated). Tensors come in the order in which they lie in their files. Beside the placed parameters the host holds one
tensor, its transpose, and what of the file is mapped meanwhile: at 8B 3.2 GB for the output head, 0.4 GB for a layer's
largest. Whole parameters would be 3.8 GB for one of the MLP's, twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from r2rec_jax.models.quantize import Quantize, quantize_channels
from r2rec_jax.models.weights import TensorSource, WeightSlot, copy_into, digest_tensor
from r2rec_jax.parallel.sharding import put, sharding_of

ParameterPath = tuple[str, ...]


def read_parameters(
    source: TensorSource, slots: Sequence[WeightSlot], dtype: Any, quantize: Quantize = "none",
    mesh: Mesh | None = None,
) -> tuple[dict[ParameterPath, jax.Array], dict[str, str]]:
    """Read and place every parameter.

    Args:
        source: the checkpoint; it has the tensors of ``slots``.
        slots: of ``weights.weight_slots``.
        dtype: of the parameters.
        quantize: ``int8`` quantises the linears of the layers, from the checkpoint's own values.
        mesh: where parameters are laid out by the table of ``parallel.sharding``; None for the default device.

    Returns:
        Parameters by path, and the digest of every tensor as the checkpoint has it.
    """
    values = {path: _room(shape, kind, sharding_of(path, shape, mesh))
              for slot in slots for path, shape, kind in _parameters(slot, dtype, quantize) if slot.stacked}
    where = {name: (slot, i) for slot in slots for i, name in enumerate(slot.names)}
    digests: dict[str, str] = {}
    with ThreadPoolExecutor(1) as hasher:
        for name in source.shapes:
            if name not in where:
                continue
            slot, layer = where[name]
            tensor = source.read(name)
            digest = hasher.submit(digest_tensor, name, tensor)
            # int8 is made from what the checkpoint holds, not from what other parameters are rounded to.
            kept = quantize == "int8" and is_linear(slot) and tensor.dtype.itemsize <= 4
            _place(slot, layer, _as_ours(slot, tensor, tensor.dtype if kept else dtype), values, quantize, mesh)
            digests[name] = digest.result()
            del tensor, digest
    return values, digests


def is_linear(slot: WeightSlot) -> bool:
    """Whether this is one of the seven linears of the layers: what adapters stand beside and int8 is for."""
    return slot.path[-1] == "kernel"


def _parameters(slot: WeightSlot, dtype: Any, quantize: Quantize) -> list[tuple[ParameterPath, tuple[int, ...], Any]]:
    """(path, shape, dtype) of what a slot becomes: itself, or an int8 kernel and its scales."""
    if quantize == "none" or not is_linear(slot):
        return [(slot.path, slot.our_shape, dtype)]
    return [(slot.path, slot.our_shape, jnp.int8), (scale_path(slot.path), scale_shape(slot.our_shape), jnp.float32)]


def scale_path(path: ParameterPath) -> ParameterPath:
    """Where an int8 kernel's scales are: ``("layers", "q", "kernel_scale")`` for ``("layers", "q", "kernel")``."""
    return (*path[:-1], "kernel_scale")


def scale_shape(kernel: tuple[int, ...]) -> tuple[int, ...]:
    """[L, in, out] -> [L, out]."""
    return (*kernel[:-2], kernel[-1])


def _room(shape: tuple[int, ...], dtype: Any, sharding: Any) -> jax.Array:
    return jax.jit(partial(jnp.zeros, shape, dtype), out_shardings=sharding)()


def _as_ours(slot: WeightSlot, tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """One tensor as the model has it: transposed where it is, in its dtype; the tensor itself where nothing changes."""
    if not slot.transposed and tensor.dtype == dtype:
        return tensor
    out = np.empty(tensor.shape[::-1] if slot.transposed else tensor.shape, dtype)
    copy_into(out, tensor, slot.transposed)
    return out


def _place(slot: WeightSlot, layer: int, tensor: np.ndarray, values: dict[ParameterPath, jax.Array], quantize: Quantize,
           mesh: Mesh | None) -> None:
    """Write one tensor into ``values``; when it returns, the host's copy is no longer needed."""
    sharding = sharding_of(slot.path, slot.our_shape, mesh)
    if not slot.stacked:
        values[slot.path] = jax.block_until_ready(put(tensor, sharding))
        return
    placed = put(tensor, one_layer(sharding))
    if quantize == "none" or not is_linear(slot):
        values[slot.path] = jax.block_until_ready(_write(values[slot.path], placed, np.int32(layer)))
        return
    scales = scale_path(slot.path)
    values[slot.path], values[scales] = jax.block_until_ready(
        _write_int8(values[slot.path], values[scales], placed, np.int32(layer)))


def one_layer(sharding: NamedSharding | None) -> NamedSharding | None:
    """The sharding of a slice along the leading axis of what has this one (that axis is never split)."""
    return None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


@partial(jax.jit, donate_argnums=0)
def _write(stack: jax.Array, layer: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0)


@partial(jax.jit, donate_argnums=(0, 1))
def _write_int8(stack: jax.Array, scales: jax.Array, layer: jax.Array, index: jax.Array
                ) -> tuple[jax.Array, jax.Array]:
    kernel, scale = quantize_channels(layer)
    return (jax.lax.dynamic_update_index_in_dim(stack, kernel, index, 0),
            jax.lax.dynamic_update_index_in_dim(scales, scale, index, 0))


def quantize_parameters(base: Mapping[ParameterPath, jax.Array], slots: Sequence[WeightSlot]
                        ) -> dict[ParameterPath, jax.Array]:
    """The same parameters with the layers' linears in int8 (weights that are in memory already)."""
    values = dict(base)
    for slot in slots:
        if is_linear(slot):
            values[slot.path], values[scale_path(slot.path)] = jax.jit(quantize_channels)(base[slot.path])
    return values
