"""Rotary position embedding (Su et al., 2021) with the ``llama3`` frequency scaling of Llama 3.1.

Angles are computed in float32. The rotation pairs element h with h + H/2, as the HF checkpoints expect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's scaling: long wavelengths are stretched by ``factor``, short ones kept, the band between blended.

    Attributes:
        factor: stretch of the low frequencies.
        low_freq_factor, high_freq_factor: the band, in periods within the original context.
        original_max_positions: context length the model was first trained at.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Angular frequency of each rotated pair, float32 [H/2], radians a position."""
    inv = 1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        wavelength = 2 * math.pi / inv
        low = scaling.original_max_positions / scaling.low_freq_factor
        high = scaling.original_max_positions / scaling.high_freq_factor
        smooth = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor)
        blended = (1 - smooth) * inv / scaling.factor + smooth * inv
        inv = np.where(wavelength > low, inv / scaling.factor, np.where(wavelength < high, inv, blended))
    return inv.astype(np.float32)


def rotate(x: Float[Array, "... T N H"], cos: Float[Array, "... T H2"], sin: Float[Array, "... T H2"]
           ) -> Float[Array, "... T N H"]:
    """Rotate pairs (h, h + H/2) of every head by its token's angles; returns x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def angles(positions: Int[Array, "... T"], inv_freq: Float[Array, " H2"]
           ) -> tuple[Float[Array, "... T H2"], Float[Array, "... T H2"]]:
    """cos and sin of position times frequency, float32."""
    theta = positions[..., None].astype(jnp.float32) * inv_freq
    return jnp.cos(theta), jnp.sin(theta)
