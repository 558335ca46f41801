"""Weight-only int8 of the frozen linears: one float32 scale an output channel, dequantised in the matmul.

    W[:, o] ~ scale[o] Q[:, o],   scale[o] = max |W[:, o]| / 127,   Q = round(W / scale) in [-127, 127]
    y = (x Q) * scale        the scale is the same for a whole column of W, so it leaves the product

Symmetric, nearest rounding, no calibration data. The seven linears of every layer are quantised; embedding, output head
and norms are not: the head decides every probability, and a tied head is the embedding. The adapter beside a quantised
weight stays float32 and is the only thing trained. qwix 0.1.8 was tried first: its ``PtqProvider`` finds no weight in
layers that are stacked and merged inside a scan, and leaves them as they are without a word.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

Quantize = Literal["none", "int8"]

LARGEST = 127


def quantize_channels(kernel: Float[Array, "*L I O"]) -> tuple[Int8[Array, "*L I O"], Float[Array, "*L O"]]:
    """(Q, scale) of a kernel; a column of zeros gets scale 1.

    Example: the columns (1, -2) and (0, 0) give Q (64, -127) and (0, 0), scales 2/127 and 1.
    """
    wide = kernel.astype(jnp.float32)
    top = jnp.max(jnp.abs(wide), axis=-2)
    scale = jnp.where(top > 0, top / LARGEST, 1)
    return jnp.round(wide / scale[..., None, :]).astype(jnp.int8), scale


def dequantize_channels(kernel: Int8[Array, "*L I O"], scale: Float[Array, "*L O"]) -> Float[Array, "*L I O"]:
    """scale * Q, float32."""
    return kernel.astype(jnp.float32) * scale[..., None, :]


def identity(weights_sha256: str, quantize: Quantize) -> str:
    """What an adapter, a checkpoint and a prediction name as their base: the weights' sha256 when they are used as
    they are, and another one when they are quantised, since that is another model.
    """
    if quantize == "none":
        return weights_sha256
    return hashlib.sha256(f"{quantize} of {weights_sha256}".encode()).hexdigest()
