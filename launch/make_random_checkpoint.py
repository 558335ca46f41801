"""Write a random checkpoint of a published Llama's shape: to measure loading and memory where no real one can be had.

    .venv/bin/python launch/make_random_checkpoint.py --out /data/random-8b --tokenizer FOLDER
    .venv/bin/python launch/make_random_checkpoint.py --out small --layers 4 --hidden_size 1024 --ffn 3584 --vocab 32000

bfloat16 safetensors in four shards with their index, config.json, and the tokenizer's files if given. Weights have a
random sign and mantissa and a fixed exponent, so that logits stay in an ordinary range; norm scales lie in [1, 2). One
tensor is in memory at a time (1 GB at 8B).
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from r2rec_jax.models.folders import new_folder
from r2rec_jax.models.huggingface import INDEX, SINGLE, plan_shards
from r2rec_jax.models.llama import LlamaConfig
from r2rec_jax.models.shapes import DEEPSEEK_8B, KNOWN
from r2rec_jax.models.tensor_files import TensorHeader, write_safetensors
from r2rec_jax.models.weights import WeightSlot, weight_slots

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def random_bfloat16(shape: tuple[int, ...], exponent: int, signed: bool, rng: np.random.Generator) -> np.ndarray:
    """Random numbers of magnitude [2^exponent, 2^(exponent + 1)): a mantissa of 7 random bits, and a random sign."""
    bits = rng.integers(0, 1 << 16, math.prod(shape), np.uint16)
    bits &= np.uint16(0x807F if signed else 0x007F)
    bits |= np.uint16((exponent + 127) << 7)
    return bits.view(BFLOAT16).reshape(shape)


def draw(slot: WeightSlot, rng: np.random.Generator) -> np.ndarray:
    """One tensor of a parameter: linears about 0.7 / sqrt(in), embedding and head about 0.02, norms about 1.5."""
    if len(slot.shape) == 1:
        return random_bfloat16(slot.shape, 0, False, rng)
    exponent = round(math.log2(slot.shape[1] ** -0.5)) - 1 if slot.stacked else -6
    return random_bfloat16(slot.shape, exponent, True, rng)


def shards_of(slots: tuple[WeightSlot, ...], count: int) -> list[list[str]]:
    """Names of each of at most ``count`` shards, by the smallest limit that gives so few."""
    low, high = 1, sum(BFLOAT16.itemsize * math.prod(s.shape) * len(s.names) for s in slots)
    while low < high:
        limit = (low + high) // 2
        if len(plan_shards(slots, BFLOAT16.itemsize, limit)) <= count:
            high = limit
        else:
            low = limit + 1
    return plan_shards(slots, BFLOAT16.itemsize, low)


def write_checkpoint(out: Path, hf_config: dict[str, Any], shards: int, seed: int, tokenizer: Path | None) -> int:
    """Write the folder; returns the bytes of its tensors."""
    slots = weight_slots(LlamaConfig.from_hf(hf_config))
    of = {name: slot for slot in slots for name in slot.names}
    names = shards_of(slots, shards)
    weight_map: dict[str, str] = {}
    order = {name: i for i, name in enumerate(of)}

    def tensors(part: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        for name in part:
            yield name, draw(of[name], np.random.default_rng((seed, order[name])))

    with new_folder(out) as folder:
        for i, part in enumerate(names):
            file = SINGLE if len(names) == 1 else f"model-{i + 1:05d}-of-{len(names):05d}.safetensors"
            headers = [TensorHeader(name, of[name].shape, BFLOAT16) for name in part]
            write_safetensors(folder / file, headers, tensors(part))
            weight_map |= dict.fromkeys(part, file)
        total = sum(BFLOAT16.itemsize * math.prod(of[name].shape) for name in of)
        if len(names) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        (folder / "config.json").write_text(json.dumps(hf_config, indent=1), encoding="utf-8")
        for path in sorted(tokenizer.glob("*token*.json")) if tokenizer else ():
            shutil.copy(path, folder / path.name)
    return total


def main() -> None:
    """Parse the sizes and write the folder."""
    shape = KNOWN[DEEPSEEK_8B]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder")
    parser.add_argument("--tokenizer", type=Path, default=None, help="folder whose tokenizer files are copied")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    sizes = {"layers": "num_hidden_layers", "hidden_size": "hidden_size", "ffn": "intermediate_size",
             "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
             "vocab": "vocab_size"}
    for flag, name in sizes.items():
        parser.add_argument(f"--{flag}", type=int, default=shape[name])
    given = parser.parse_args()
    config = {**shape, **{name: getattr(given, flag) for flag, name in sizes.items()}}
    total = write_checkpoint(given.out, config, given.shards, given.seed, given.tokenizer)
    print(f"{total / 1e9:.2f} GB of weights in {given.out}")


if __name__ == "__main__":
    main()
