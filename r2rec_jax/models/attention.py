"""Attention over rows that hold several segments: one function, three backends.

The XLA path (``blockwise``) runs everywhere; on a GPU ``cudnn`` calls the fused kernel through
``jax.nn.dot_product_attention``, on a TPU ``splash`` (``splash``) jax's own kernel, both with the mask as an array.
:func:`attend` is the plain form that all are held against. Which tokens see which is stated by three integers a token,
never inferred from a pad id:

    token q sees token k  iff  index k <= index q  and  segment[k] > 0
                               and (segment[k] == segment[q] or segment[k] == parent[q])

Example: a prompt of two tokens and two completions of two tokens (one padded), sharing the prompt:

    index      0  1 | 2  3 | 4  5
    segment    1  1 | 2  2 | 3  0
    parent     0  0 | 1  1 | 1  0
    token 3 sees 0, 1, 2, 3;  token 4 sees 0, 1, 4;  nobody sees 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from r2rec_jax.config.check import check
from r2rec_jax.models.blockwise import attend_rows
from r2rec_jax.models.splash import attend_masked

ResolvedBackend = Literal["xla", "cudnn", "splash"]
AttentionBackend = Literal["auto", ResolvedBackend]

FUSED_MULTIPLE = 128
"""Row lengths that cuDNN's kernel is given."""

FUSED_WIDTHS = range(8, 129, 8)
"""Widths of a head that cuDNN's kernel takes on every GPU from Ampere on."""

MASKED = -1e30
"""Score of a masked pair: finite, so that a row that sees nothing gives a number and no NaN."""


def segment_mask(segments: Int[Array, "B T"], parents: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Which keys (last axis) each query sees, by the rule in the module's docstring."""
    length = segments.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))
    query, key = segments[:, :, None], segments[:, None, :]
    related = (query == key) | (parents[:, :, None] == key)
    return causal[None] & related & (key > 0)


def resolve_backend(backend: AttentionBackend, dtype: Any = jnp.bfloat16, width: int = 128) -> ResolvedBackend:
    """``auto`` is cuDNN where jax's default backend is a GPU, splash where it is a TPU, XLA elsewhere.

    A backend that is named is taken as it is, so that programs can be lowered for a platform that is not here.

    Args:
        backend: as configured.
        dtype: of the activations; cuDNN's kernel takes 16-bit types only, so ``auto`` is XLA for float32 on a GPU.
        width: of a head; for others than :data:`FUSED_WIDTHS` ``auto`` is XLA on a GPU.

    Raises:
        ValueError: cuDNN is named for heads of another width.
    """
    if backend != "auto":
        check(backend != "cudnn" or width in FUSED_WIDTHS, "backbone.attention",
              f"'auto' or 'xla' with heads of width {width}", backend, "cuDNN takes multiples of 8 up to 128")
        return backend
    platform = jax.default_backend()
    if platform == "tpu":
        return "splash"
    fused = platform == "gpu" and jnp.dtype(dtype).itemsize == 2 and width in FUSED_WIDTHS
    return "cudnn" if fused else "xla"


def check_backend(backend: AttentionBackend, dtype: Any) -> None:
    """Refuse a backend that cannot run here, before anything is loaded.

    Args:
        backend: as configured.
        dtype: of the activations.

    Raises:
        ValueError: a kernel was asked for that jax's default backend, or this dtype, does not have.
    """
    platform, bits = jax.default_backend(), 8 * jnp.dtype(dtype).itemsize
    runs = {"cudnn": platform == "gpu" and bits == 16, "splash": platform == "tpu"}
    check(runs.get(backend, True), "backbone.attention", f"'auto' or 'xla' on a {platform} with {bits} bits",
          backend, "'cudnn' needs a GPU and 16 bits, 'splash' a TPU")


def attend_segments(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    segments: Int[Array, "B T"],
    parents: Int[Array, "B T"],
    backend: ResolvedBackend = "xla",
) -> Float[Array, "B T N H"]:
    """Attention of whole rows by the rule in the module's docstring: what training, scoring and prefill call.

    The output of a token that sees no key (padding) must not be used.
    """
    if backend == "cudnn":
        padded, mask = fused_inputs((q, k, v), segments, parents)
        out = jax.nn.dot_product_attention(*padded, mask=mask, implementation="cudnn")
        return out[:, :q.shape[1]].astype(q.dtype)
    if backend == "splash":
        return attend_masked(q, k, v, segment_mask(segments, parents))
    return attend_rows(q, k, v, segments, parents)


def fused_inputs(arrays: Sequence[Float[Array, "B T _ H"]], segments: Int[Array, "B T"], parents: Int[Array, "B T"]
                 ) -> tuple[tuple[Float[Array, "B L _ H"], ...], Bool[Array, "B 1 L L"]]:
    """Queries, keys and values filled up to L, a multiple of :data:`FUSED_MULTIPLE`, and a mask without blind rows.

    cuDNN's backward gives NaN for rows whose scores are very low, as those of a query that sees no key, with any mask
    where T % 128 = 64 (pytorch#196678, trl#7181). A NaN at padding reaches every weight. So what would see nothing
    sees itself; its output is used by nobody, and its gradient is zero.
    """
    more = -segments.shape[1] % FUSED_MULTIPLE
    padded = tuple(jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))) for x in arrays)
    mask = segment_mask(*(jnp.pad(x, ((0, 0), (0, more))) for x in (segments, parents)))
    blind = ~mask.any(axis=-1, keepdims=True)
    return padded, (mask | (blind & jnp.eye(mask.shape[-1], dtype=bool)))[:, None]


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    mask: Bool[Array, "B T S"],
) -> Float[Array, "B T N H"]:
    """Grouped-query attention under any mask, written plainly: the oracle of the other paths.

    Scores are scaled by 1/sqrt(H), the softmax is float32. Query head n reads key/value head n // (N // K). A query
    that sees no key gets the mean of all values.
    """
    batch, length, heads, width = q.shape
    kv_heads = k.shape[2]
    grouped = q.reshape(batch, length, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum("BTKGH,BSKH->BKGTS", grouped, k, preferred_element_type=jnp.float32) * width**-0.5
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("BKGTS,BSKH->BTKGH", probs, v)
    return out.reshape(batch, length, heads, width)
