"""Where every array of a run lies on the mesh: one table of rules by parameter name.

A rule names the mesh axes of each dimension. Linears are split over ``tensor`` on the axis that the next product
contracts over and its partner (q k v gate up on the output, o down on the input: one reduction after attention and one
after the MLP), and over ``fsdp`` on the other; batches and caches are split by rows. Optimiser moments have the paths
of their parameters behind a prefix, so they follow them.

A dimension that an axis does not divide is replicated on that axis: the result is the same, the memory is not.
:func:`undivided` says where that happens, and a run says it of its backbone.

Example: ``layers/q/kernel`` [30, 576, 576] with fsdp 4 and tensor 2 lies as ``P(None, "fsdp", "tensor")``, 144 x 288 a
layer and device; with tensor 5 as ``P(None, "fsdp", None)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Axes = str | tuple[str, ...] | None

ROWS = ("data", "fsdp")
"""Axes that rows are split over."""

_SPLIT_OUT = ("q", "k", "v", "gate", "up")
_SPLIT_IN = ("o", "down")

RULES: dict[tuple[str, ...], tuple[Axes, ...]] = {
    ("embed",): ("tensor", "fsdp"),  # [V, D]
    ("lm_head",): ("fsdp", "tensor"),  # [D, V]
    ("scale",): (),  # norms
    **{(n, "kernel"): (None, "fsdp", "tensor") for n in _SPLIT_OUT},  # [L, in, out]
    **{(n, "kernel_scale"): (None, "tensor") for n in _SPLIT_OUT},  # [L, out], beside an int8 kernel
    **{(n, "lora_a"): (None, "fsdp", None) for n in _SPLIT_OUT},  # [L, in, R]
    **{(n, "lora_b"): (None, None, "tensor") for n in _SPLIT_OUT},  # [L, R, out]
    **{(n, "kernel"): (None, "tensor", "fsdp") for n in _SPLIT_IN},
    **{(n, "kernel_scale"): (None, "fsdp") for n in _SPLIT_IN},
    **{(n, "lora_a"): (None, "tensor", None) for n in _SPLIT_IN},
    **{(n, "lora_b"): (None, None, "fsdp") for n in _SPLIT_IN},
    # decoding: layers of the merged layout [out, in] (joined outputs are cut apart again, so they stay whole: CPUs
    # only), key and value caches [prompts x heads (x group), ...]
    **{(n,): (None, "fsdp") for n in ("qkv", "gate_up")},
    **{(n,): ("fsdp", None) for n in _SPLIT_IN},
    **{(n,): ((*ROWS, "tensor"),) for n in ("prefix_k", "prefix_v", "suffix_k", "suffix_v")},
    **{(n,): (None, (*ROWS, "tensor")) for n in ("keys", "values")},  # of all layers
    # batches [B, ...], groups of GRPO [B, C] and the decoder's rows [P, ...]
    **{(n,): (ROWS,) for n in (
        "tokens", "positions", "segments", "parents", "target_index", "target_tokens", "target_weights", "advantages",
        "weights", "sampled", "completions", "old", "reference", "row_ids", "prompt_lengths", "done", "lengths",
        "logprobs", "last")},
}
"""End of an array's path -> mesh axes of its first dimensions; what is not named is replicated, and so are scalars."""


@dataclass(frozen=True)
class Undivided:
    """An array that is replicated on axes of its rule because they do not divide it.

    Attributes:
        path: of the array, names joined by ``/``.
        shape: its shape.
        nbytes: its size, whole.
        axes: the mesh axes.
    """

    path: str
    shape: tuple[int, ...]
    nbytes: int
    axes: tuple[str, ...]


def rule_of(path: tuple[str, ...]) -> tuple[Axes, ...]:
    """The rule of an array with dimensions.

    Raises:
        ValueError: the table has none for this path.
    """
    for length in (2, 1):
        if path[-length:] in RULES and len(path) >= length:
            return RULES[path[-length:]]
    raise ValueError(f"an array on the mesh must have a rule in r2rec_jax.parallel.sharding.RULES; got "
                     f"{'/'.join(path)}; add one for the end of its path")


def spec_of(path: tuple[str, ...], shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Where an array lies, from axis sizes alone (no device is needed).

    Args:
        path: names from the root to the array.
        shape: of the array.
        sizes: devices on each axis, ``mesh.shape`` or ``ParallelConfig.sizes``.

    Raises:
        ValueError: no rule for this path.
    """
    rule = rule_of(path) if shape else ()
    return PartitionSpec(*(_divide(axes, size, sizes) for axes, size in zip(rule, shape, strict=False)))


def _divide(axes: Axes, size: int, sizes: Mapping[str, int]) -> Axes:
    """The axes that together divide a dimension."""
    kept: list[str] = []
    parts = 1
    for axis in _names(axes):
        if size % (parts * sizes[axis]) == 0:
            kept.append(axis)
            parts *= sizes[axis]
    return None if not kept else kept[0] if len(kept) == 1 else tuple(kept)


def _names(axes: Axes) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes or ()


def undivided(tree: Any, sizes: Mapping[str, int]) -> list[Undivided]:
    """What is replicated although its rule would split it, the largest first.

    Args:
        tree: arrays or shapes.
        sizes: devices on each axis.
    """
    found = []
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path, shape = names_of(keys), tuple(leaf.shape)
        lost = [axis for axes, kept in zip(rule_of(path) if shape else (), spec_of(path, shape, sizes), strict=False)
                for axis in _names(axes) if axis not in _names(kept)]
        if lost:
            found.append(Undivided("/".join(path), shape, int(np.prod(shape)) * leaf.dtype.itemsize, tuple(lost)))
    return sorted(found, key=lambda entry: -entry.nbytes)


def names_of(path: tuple[Any, ...]) -> tuple[str, ...]:
    """A pytree path as names, without the level of NNX's variables: ``("layers", "q", "kernel")``."""
    names = tuple(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))
    return names[:-1] if names[-1] == "value" else names


def sharding_of(path: tuple[str, ...], shape: tuple[int, ...], mesh: Mesh | None) -> NamedSharding | None:
    """The sharding of one array; None without a mesh."""
    return None if mesh is None else NamedSharding(mesh, spec_of(path, shape, mesh.shape))


def shardings(tree: Any, mesh: Mesh) -> Any:
    """The shardings of a tree of arrays or shapes, in its structure."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: sharding_of(names_of(path), leaf.shape, mesh), tree)


def put(value: Any, sharding: NamedSharding | None) -> jax.Array:
    """A host array, or one on a device of this process, laid out; each process hands over the parts of its own devices.

    Args:
        value: the whole array, the same in every process. One that lies right already is returned as it is.
        sharding: None puts it on the default device.
    """
    if sharding is None:
        return jax.device_put(value)
    if isinstance(value, jax.Array) and value.sharding.is_equivalent_to(sharding, value.ndim):
        return value
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(put(jax.random.key_data(value), sharding), impl=jax.random.key_impl(value))
    host = np.asarray(value)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def place(tree: Any, mesh: Mesh | None) -> Any:
    """A tree laid out by the table; without a mesh, the tree itself."""
    if mesh is None:
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: put(leaf, sharding_of(names_of(path), np.shape(leaf), mesh)), tree)


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """A tree with a whole copy on every device; without a mesh, the tree itself."""
    if mesh is None:
        return tree
    return jax.tree.map(lambda leaf: put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def place_rows(value: Any, mesh: Mesh | None) -> Any:
    """One array of rows, split over them; without a mesh, the array itself.

    Raises:
        ValueError: the rows are no multiple of data x fsdp.
    """
    return value if mesh is None else put(value, NamedSharding(mesh, PartitionSpec(ROWS)))


def axes_of_rows_and_heads(rows: int, kv_heads: int) -> tuple[Axes, Axes] | None:
    """Inside a program: the mesh axes that activations of so many rows and key heads are split over.

    Heads are split where ``tensor`` divides those of the keys, so that queries, keys and values lie alike, as kernels
    for attention want them.

    Returns:
        (axes of rows, axis of heads); None where the program is compiled for no mesh.
    """
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    return (_divide(ROWS, rows, sizes), _divide("tensor", kv_heads, sizes)) if sizes else None


def by_rows(x: jax.Array, kv_heads: int = 0) -> jax.Array:
    """Inside a program: activations lie by rows, so that the weights come to the rows and not the other way round.

    Left to itself the compiler may split them like the weights or the caches, and move them back and forth in every
    layer. Nothing where the program is compiled for no mesh.

    Args:
        x: rows first; [rows, tokens, heads, width] with ``kv_heads``.
        kv_heads: heads are split as :func:`axes_of_rows_and_heads` has it.
    """
    found = axes_of_rows_and_heads(x.shape[0], kv_heads)
    if found is None:
        return x
    axes: list[Axes] = [None] * x.ndim
    axes[0] = found[0]
    if kv_heads:
        axes[2] = found[1]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*axes))


def table_by_vocabulary(table: jax.Array) -> jax.Array:
    """Inside a program: an embedding [V, D] whose columns come together before rows are looked up in it; otherwise the
    compiler gathers what was looked up, for all rows on every device."""
    sizes = dict(jax.sharding.get_abstract_mesh().shape)
    if not sizes:
        return table
    return jax.lax.with_sharding_constraint(table, PartitionSpec(_divide("tensor", table.shape[0], sizes), None))


def to_host(tree: Any) -> Any:
    """A tree as NumPy arrays, whole, in every process. Arrays that span processes are gathered: call it in all."""
    def fetch(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(fetch, tree)
