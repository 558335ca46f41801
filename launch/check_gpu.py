"""The first thing to run on a new accelerator, in about a minute: are its kernels right, and what does a shape cost?

    .venv/bin/python launch/check_gpu.py --json check.json
    .venv/bin/python launch/check_gpu.py --small              # a model of two layers, for a CPU

Attention as `backbone.attention: auto` chooses it is held against the plain form in float32, values and gradients, in
rows with padding, rows of padding alone, and rows whose length is no multiple of 128. Then a model of SmolLM2's shape
with random weights gives the gradient of its adapter under both kinds of attention, and draws completions. Every row is
printed as soon as it is known; exit code 1 when a number is not finite or too far off.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r2rec_jax.config import LoraConfig
from r2rec_jax.evaluation.tables import result_file
from r2rec_jax.files import write_json
from r2rec_jax.models.attention import attend, attend_segments, resolve_backend, segment_mask
from r2rec_jax.models.backbone import Backbone, random_backbone, resolve_dtype
from r2rec_jax.models.lora import init_lora
from r2rec_jax.models.shapes import KNOWN, SMOLLM2_135M
from r2rec_jax.sampling.decoder import Decoder
from r2rec_jax.tokens.batches import Batch, empty, group_rows
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.pretrain import make_pretrain_loss

TOLERANCE, GRADIENT_TOLERANCE = 0.02, 0.05
"""Largest deviation that passes, as a share of the largest value: a few roundings of bfloat16."""

HEADS = {"SmolLM2-135M": (9, 3, 64), "Llama-8B": (32, 8, 128)}
LENGTHS = (192, 704, 1024)
GROUP, PROMPT, NEW, REPEATS = 8, 320, 64, 5


def laid_out(length: int) -> Batch:
    """A prompt with completions of falling length, a short text, and a row of padding alone."""
    width = length // (2 * GROUP)
    group = [[[7] * (width - 2 * g % width) for g in range(GROUP)]]
    grouped = group_rows([[5] * (length // 2 - 3)], group, length // 2, width)
    targets = grouped.target_tokens.shape[1]
    short, blank = (empty(1, length, targets) for _ in range(2))
    short.tokens[:], short.segments[0, :length // 3] = 9, 1
    short.positions[:] = np.arange(length)
    return jax.tree.map(lambda *parts: np.concatenate(parts), grouped, short, blank)


def off(ours: Any, plain: Any) -> float:
    """Largest deviation as a share of the largest value; infinite where a number is not finite."""
    ours, plain = (np.asarray(x, np.float32) for x in (ours, plain))
    return float(np.abs(ours - plain).max() / np.abs(plain).max()) if np.isfinite(ours).all() else float("inf")


def timed(call: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds of the first call, median seconds of the next ones)."""
    seconds = []
    for _ in range(REPEATS + 1):
        started = time.perf_counter()
        result = jax.block_until_ready(call())
        seconds.append(time.perf_counter() - started)
    return result, seconds[0], float(np.median(seconds[1:]))


def check_attention(shape: str, length: int) -> dict[str, Any]:
    """Values and gradients of one layer's attention, for one shape of heads and one length of row."""
    heads, kv_heads, width = HEADS[shape]
    batch, backend = laid_out(length), resolve_backend("auto", resolve_dtype("auto"))
    sizes = [(len(batch.tokens), length, n, width) for n in (heads, kv_heads, kv_heads, heads)]
    *qkv, weight = (jax.random.normal(jax.random.key(i), size, resolve_dtype("auto"))
                    for i, size in enumerate(sizes))
    segments, parents = jnp.asarray(batch.segments), jnp.asarray(batch.parents)
    real = (segments > 0)[..., None, None]

    def loss(plain: bool, q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array]:
        if plain:
            q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
            out = attend(q, k, v, segment_mask(segments, parents))
        else:
            out = attend_segments(q, k, v, segments, parents, backend)
        out = jnp.where(real, out.astype(jnp.float32), 0)
        return jnp.sum(out * weight), out

    ours, plain = (jax.jit(jax.grad(lambda *qkv, which=which: loss(which, *qkv), (0, 1, 2), has_aux=True))
                   for which in (False, True))
    (gradients, out), first, seconds = timed(lambda: ours(*qkv))
    with jax.default_matmul_precision("highest"):
        wanted, plain_out = plain(*qkv)
    return {"work": f"attention of {shape}", "backend": backend, "length": length, "off": off(out, plain_out),
            "gradient_off": max(map(off, gradients, wanted)), "first_s": first, "seconds": seconds}


def check_gradient(backbone: Backbone, length: int) -> dict[str, Any]:
    """The adapter's gradient under the chosen attention and under XLA's."""
    batch, lora = laid_out(length), init_lora(backbone.lora, jax.random.key(1))
    found = {}
    for attention in ("auto", "xla"):
        loss = make_pretrain_loss(replace(FrozenModel(backbone.graphdef, backbone.base), attention=attention))
        run = jax.jit(jax.grad(lambda lora, base, loss=loss: loss(base, lora, batch, np.float32(1e-3))[0]))
        found[attention] = timed(lambda run=run: run(lora, backbone.base))
    flat = {name: np.concatenate([np.ravel(np.asarray(x, np.float32)) for x in jax.tree.leaves(result[0])])
            for name, result in found.items()}
    return {"work": "gradient of the adapter", "backend": resolve_backend("auto", resolve_dtype("auto")),
            "length": length, "gradient_off": off(flat["auto"], flat["xla"]), "first_s": found["auto"][1],
            "seconds": found["auto"][2], "seconds_xla": found["xla"][2]}


def check_decoding(backbone: Backbone) -> dict[str, Any]:
    """Completions of a fixed length."""
    decoder, lora = Decoder(backbone.graphdef, backbone.config, [], 0), init_lora(backbone.lora, jax.random.key(1))
    prompts = [[3 + i] * PROMPT for i in range(GROUP)]
    rollout, first, seconds = timed(lambda: decoder.generate(
        lora, backbone.base, prompts, group=GROUP, max_new_tokens=NEW, temperature=1, top_p=0.9,
        key=jax.random.key(0)).logprobs)
    return {"work": f"decoding of {GROUP} x {GROUP} rows", "programs": decoder.compilations,
            "off": 0.0 if np.isfinite(rollout).all() else float("inf"), "first_s": first, "seconds": seconds,
            "tokens_per_s": GROUP * GROUP * NEW / seconds}


def main() -> int:
    """Check everything, print it as it comes, write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="two layers and short rows")
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    print(jax.__version__, jax.devices(), flush=True)
    hf = KNOWN[SMOLLM2_135M] | ({"num_hidden_layers": 2, "vocab_size": 1024} if given.small else {})
    lengths = LENGTHS[:1] if given.small else LENGTHS
    backbone = random_backbone(hf, LoraConfig(rank=32, alpha=64))
    checks = [(check_attention, (shape, length)) for shape in HEADS for length in lengths]
    checks += [(check_gradient, (backbone, lengths[-1] - 64)), (check_decoding, (backbone,))]
    rows, wrong = [], 0
    for check, arguments in checks:
        row = check(*arguments)
        failed = row.get("off", 0) > TOLERANCE or row.get("gradient_off", 0) > GRADIENT_TOLERANCE
        wrong += failed
        rows.append({key: str(value) if value == float("inf") else value for key, value in row.items()})
        print("WRONG" if failed else "ok", rows[-1], flush=True)
        if given.json:
            write_json(given.json, result_file("kernels of this device against plain forms", rows, backbone.sha256,
                                               tolerance=TOLERANCE, gradient_tolerance=GRADIENT_TOLERANCE, wrong=wrong,
                                               command="python launch/check_gpu.py"))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
