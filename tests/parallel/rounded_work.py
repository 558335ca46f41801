"""Gradients of weights and of adapters with rounded factors (``backbone.matmul_dtype``), on a mesh and on one device.

    python -m tests.parallel.rounded_work OUT.json

Writes, for each tree, how far the mesh's gradient is from one device's, as a share of its length, and how far that is
from the gradient of unrounded products.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from r2rec_jax.config import LoraConfig, ParallelConfig
from r2rec_jax.models.backbone import Backbone, random_backbone, tiny_hf_config, with_matmul_dtype
from r2rec_jax.parallel.mesh import make_mesh
from r2rec_jax.parallel.sharding import place, to_host
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.pretrain import NO_ADAPTER, Text, make_pretrain_loss, pretrain_graphdef, row_batch
from tests.models.conftest import TINY

MESH = ParallelConfig(data=2, fsdp=2, tensor=2)


def gradients(backbone: Backbone, rounded: bool, mesh: Any) -> dict[str, np.ndarray]:
    """Of the adapter under the frozen weights, and of the weights without an adapter; each [parameters]."""
    name = "bfloat16" if rounded else None
    backbone = with_matmul_dtype(backbone, name)
    rows = [[Text.whole(range(3 + i, 60 + i))] for i in range(8)]
    trees = backbone.base, spread(backbone.lora), row_batch(rows, 8, 64, 2)
    base, lora, batch = (place(tree, mesh) for tree in trees)
    model = FrozenModel(backbone.graphdef, base, mesh=mesh)
    bare = make_pretrain_loss(replace(model, graphdef=pretrain_graphdef(backbone.config, name)))
    scale = np.float32(1 / 64)
    adapter = jax.jit(jax.grad(lambda x: make_pretrain_loss(model)(base, x, batch, scale)[0]))
    weights = jax.jit(jax.grad(lambda x: bare(x, NO_ADAPTER, batch, scale)[0]))
    with jax.set_mesh(mesh) if mesh is not None else jax.default_device(jax.devices()[0]):
        found = {"adapter": adapter(lora), "weights": weights(base)}
    return {kind: np.concatenate([np.ravel(x) for x in jax.tree.leaves(to_host(tree))]).astype(float)
            for kind, tree in found.items()}


def spread(lora: Any) -> Any:
    """The adapter with every matrix drawn, as B begins at zero."""
    leaves, treedef = jax.tree.flatten(lora)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(treedef, [0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


def main(out: str) -> None:
    hf_config = tiny_hf_config(TINY, vocab_size=96, bos_id=0, eos_id=1, pad_id=2)
    backbone = random_backbone(hf_config, LoraConfig(rank=4, alpha=8.0), "float32", 0)
    plain, alone = gradients(backbone, False, None), gradients(backbone, True, None)
    divided = gradients(backbone, True, make_mesh(MESH))
    found = {kind: {"mesh": apart(divided[kind], alone[kind]), "rounding": apart(plain[kind], alone[kind])}
             for kind in alone}
    with open(out, "w") as file:
        json.dump(found, file)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


if __name__ == "__main__":
    main(sys.argv[1])
