"""Checkpoint tensors by their HF names, and where each of them lies in the stacked model.

An HF linear is stored [out, in] and one tensor a layer; ours is [L, in, out]. :func:`weight_slots` is the one table of
that correspondence: reading, writing, hashing and merging all go through it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from r2rec_jax.models.llama import LlamaConfig

LINEARS = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj",
}
"""Our short name of a linear -> its path inside an HF layer."""

NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}

HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"

DIGEST_PIECE = 1 << 18
"""Values hashed at a time: their float32 form stays in a core's cache."""


@dataclass(frozen=True)
class TensorSource:
    """The tensors of one checkpoint, read one at a time.

    Attributes:
        where: the file or folder, for messages.
        shapes: every tensor's shape as HF stores it, by HF name.
        read: the values of one tensor.
    """

    where: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


@dataclass(frozen=True)
class WeightSlot:
    """One parameter of ours and the checkpoint tensors it is made of.

    Attributes:
        path: place in the base state, such as ("layers", "q", "kernel").
        names: one HF name, or L of them when ``stacked``.
        shape: shape of each of those tensors, as HF stores it.
        stacked: the parameter has a leading layer axis.
        transposed: ours is the transpose of HF's.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]
    stacked: bool
    transposed: bool

    @property
    def our_shape(self) -> tuple[int, ...]:
        """Shape of the parameter in the model."""
        inner = self.shape[::-1] if self.transposed else self.shape
        return (len(self.names), *inner) if self.stacked else inner


def linear_shape(config: LlamaConfig, name: str) -> tuple[int, int]:
    """(out, in) of a linear by its short name."""
    c = config
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    return {
        "q": (queries, c.hidden_size), "k": (keys, c.hidden_size), "v": (keys, c.hidden_size),
        "o": (c.hidden_size, queries), "gate": (c.ffn, c.hidden_size), "up": (c.ffn, c.hidden_size),
        "down": (c.hidden_size, c.ffn),
    }[name]


def weight_slots(config: LlamaConfig) -> tuple[WeightSlot, ...]:
    """Every parameter of a Llama of this shape, in the order in which checkpoints are written."""
    c = config

    def stacked(path: tuple[str, ...], module: str, shape: tuple[int, ...]) -> WeightSlot:
        names = tuple(f"model.layers.{i}.{module}.weight" for i in range(c.layers))
        return WeightSlot(path, names, shape, True, len(shape) == 2)

    slots = [WeightSlot(("embed",), (EMBEDDING,), (c.vocab_size, c.hidden_size), False, False)]
    slots += [stacked(("layers", n, "scale"), module, (c.hidden_size,)) for n, module in NORMS.items()]
    slots += [stacked(("layers", n, "kernel"), module, linear_shape(c, n)) for n, module in LINEARS.items()]
    slots.append(WeightSlot(("norm", "scale"), ("model.norm.weight",), (c.hidden_size,), False, False))
    if not c.tied:
        slots.append(WeightSlot(("lm_head",), (HEAD,), (c.vocab_size, c.hidden_size), False, True))
    return tuple(slots)


def check_tensors(source: TensorSource, config: LlamaConfig) -> None:
    """Refuse a checkpoint that lacks tensors, has others, or has them in other shapes, naming them.

    Rotary tables that old checkpoints carry are no weights and are passed over; so is a head beside a tied embedding,
    if it equals the embedding.

    Raises:
        ValueError: with the first five names and how many there are.
    """
    wanted = {name: slot.shape for slot in weight_slots(config) for name in slot.names}
    missing = [name for name in wanted if name not in source.shapes]
    unused = [name for name in source.shapes if name not in wanted and not name.endswith("rotary_emb.inv_freq")]
    if config.tied and HEAD in unused:
        unused.remove(HEAD)
        if not np.array_equal(source.read(HEAD), source.read(EMBEDDING)):
            raise ValueError(f"{source.where}: config.json ties the head to the embedding, but {HEAD} differs from "
                             f"{EMBEDDING}; set tie_word_embeddings to false")
    if missing or unused:
        parts = [f"{len(names)} {kind}: {first_names(names)}"
                 for kind, names in (("missing", missing), ("unused", unused)) if names]
        raise ValueError(f"{source.where}: the tensors must be those of the Llama in config.json; " + "; ".join(parts))
    wrong = [f"{name} is {list(source.shapes[name])}, not {list(shape)}" for name, shape in wanted.items()
             if tuple(source.shapes[name]) != shape]
    if wrong:
        raise ValueError(f"{source.where}: {len(wrong)} tensors do not have the shape that config.json gives: "
                         f"{first_names(wrong)}")


def first_names(names: Iterable[str], count: int = 5) -> str:
    """``"a, b, c, ..."``: the first ``count`` of them."""
    listed = list(names)
    return ", ".join(listed[:count]) + (", ..." if len(listed) > count else "")


def copy_into(out: np.ndarray, tensor: np.ndarray, transposed: bool) -> None:
    """Write ``tensor`` (or its transpose) into ``out``, cast to its dtype, without another whole copy.

    The transpose goes in strips of 64 rows, which is twice as fast as one assignment for large matrices.
    """
    if not transposed:
        out[...] = tensor
        return
    for start in range(0, tensor.shape[0], 64):
        out[:, start:start + 64] = tensor[start:start + 64].T.astype(out.dtype, copy=False)


def digest_tensor(name: str, tensor: np.ndarray) -> str:
    """Sha256 of a tensor's name, shape and values as little-endian float32, in hexadecimal.

    The wide values exist a piece at a time, so that a large tensor of a narrow type needs no second copy.
    """
    digest = hashlib.sha256(f"{name}{list(tensor.shape)}".encode())
    flat = np.ascontiguousarray(tensor).reshape(-1)
    for start in range(0, flat.size, DIGEST_PIECE):
        digest.update(widen(flat[start:start + DIGEST_PIECE]).data)
    return digest.hexdigest()


def widen(values: np.ndarray) -> np.ndarray:
    """The same numbers as little-endian float32; bfloat16 is its upper half: a shift, ten times as fast as a cast."""
    if values.dtype == ml_dtypes.bfloat16:
        return (values.view(np.uint16).astype("<u4") << np.uint32(16)).view("<f4")
    return values.astype("<f4", copy=False)


def combine_digests(digests: Mapping[str, str]) -> str:
    """One sha256 for a whole model from :func:`digest_tensor` of each tensor, whatever their order.

    Equal weights have equal digests however they are stored: one file or shards, float32 or a narrower type that
    holds the same values.
    """
    return hashlib.sha256("".join(f"{n}={digests[n]};" for n in sorted(digests)).encode()).hexdigest()
