"""A larger vocabulary for a pretrained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float

from r2rec_jax.models.backbone import Backbone, parameter, with_base
from r2rec_jax.models.llama import abstract_llama, split_llama
from r2rec_jax.parallel.sharding import place, to_host


def with_vocabulary(backbone: Backbone, pieces: Mapping[int, Sequence[int]], mesh: Mesh | None = None) -> Backbone:
    """The same model with more tokens, each of which begins as the mean of those that spelled it until now.

    In the embedding, and in the output projection where that is not tied. A mean keeps what the model knows of the
    pieces, and the logit of the new token lies between theirs.

    Args:
        backbone: with full weights.
        pieces: the tokens that spelled a new token, by its id. Ids below the present size, which tokenizers leave free
            when embeddings are padded, take over the row that is there.
        mesh: where the result is placed; None for a single device.

    Raises:
        ValueError: the backbone is quantised, ids leave a gap behind the present vocabulary, or nothing spelled one.
    """
    if backbone.quantize != "none":
        raise ValueError(f"a vocabulary is enlarged in full weights; {backbone.source} is {backbone.quantize}")
    old = backbone.config.vocab_size
    size = max(old, 1 + max(pieces, default=0))
    if missing := set(range(old, size)) - set(pieces):
        raise ValueError(f"new tokens must leave no gap behind a vocabulary of {old}; got none of id {min(missing)}")
    if bare := [index for index, spelled in pieces.items() if not spelled]:
        raise ValueError(f"something must have spelled a new token; got nothing for id {bare[0]}")

    def grown(table: Float[np.ndarray, "V D"]) -> Float[np.ndarray, "W D"]:
        rows = np.concatenate([table, np.zeros((size - old, table.shape[1]), table.dtype)])
        for index, spelled in pieces.items():
            rows[index] = table[list(spelled)].astype(np.float32).mean(axis=0)
        return rows

    def changed(path: tuple[Any, ...], value: np.ndarray) -> np.ndarray:
        if path == ("embed",):
            return grown(value)
        return grown(value.T).T if path == ("lm_head",) else value

    flat = [(path, variable.replace(changed(path, variable[...])))
            for path, variable in nnx.to_flat_state(to_host(backbone.base))]
    config = replace(backbone.config, vocab_size=size)
    dtype = parameter(backbone.base, ("embed",)).dtype
    model = abstract_llama(config, backbone.lora_config, dtype, matmul_dtype=backbone.matmul_dtype)
    graphdef, _, _ = split_llama(model)
    larger = replace(backbone, graphdef=graphdef, config=config, hf_config={**backbone.hf_config, "vocab_size": size})
    whole = with_base(larger, nnx.from_flat_state(flat), backbone.source)  # hashed on the host: a mesh spans processes
    base = jax.tree.map(jnp.asarray, whole.base) if mesh is None else place(whole.base, mesh)
    return replace(whole, base=base)
