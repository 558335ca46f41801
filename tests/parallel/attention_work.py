"""Splash attention, interpreted, on a mesh of four devices, against the plain form on one.

    python -m tests.parallel.attention_work OUT.json

Writes, for each case, how far outputs and gradients are apart and how many heads and rows a device has.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp

from r2rec_jax.config import ParallelConfig
from r2rec_jax.models.attention import attend, segment_mask
from r2rec_jax.models.splash import attend_masked
from r2rec_jax.parallel.mesh import make_mesh

CASES = {"divided": (2, 4, 2), "undivided": (1, 3, 1)}  # rows, heads, key heads on 2 x 2 devices
LENGTH = 256


def apart(rows: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """One case; the rows hold a prompt, two completions and padding."""
    keys = jax.random.split(jax.random.key(0), 4)
    *qkv, weight = (jax.random.normal(key, (rows, LENGTH, n, 8))
                    for key, n in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True))
    row = jnp.asarray([(1, 0)] * 100 + [(2, 1)] * 60 + [(3, 1)] * 80 + [(0, 0)] * 16, jnp.int32)
    mask = jnp.tile(segment_mask(row[None, :, 0], row[None, :, 1]), (rows, 1, 1))

    def run(plain: bool) -> Any:
        def loss(*qkv: Any) -> Any:
            out = attend(*qkv, mask) if plain else attend_masked(*qkv, mask, block=128, interpret=True)
            out = jnp.where((row[:, 0] > 0)[None, :, None, None], out, 0)
            return jnp.sum(out * weight), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)

    wanted = run(plain=True)
    with jax.set_mesh(make_mesh(ParallelConfig(data=2, fsdp=1, tensor=2))):
        found = run(plain=False)
    local = found[1].addressable_shards[0].data.shape
    return {"apart": [float(abs(jnp.asarray(jax.device_get(a)) - b).max())
                      for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)],
            "largest": [float(abs(b).max()) for b in jax.tree.leaves(wanted)],
            "rows": local[0], "heads": local[2]}


if __name__ == "__main__":
    with open(sys.argv[1], "w") as file:
        json.dump({name: apart(*case) for name, case in CASES.items()}, file)
