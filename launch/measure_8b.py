"""Load, score and export a checkpoint of the 8B shape on a small machine, and say how much memory each step took.

    .venv/bin/python launch/measure_8b.py --checkpoint /data/random-8b --work /data/scratch

In one process: load in bfloat16, score a text layer by layer, export the folder again without an adapter (every tensor
must equal the checkpoint's), then with a random adapter (sampled tensors must equal W + (alpha / r) (A B)^T, rounded
once). ``peak`` is the process's peak resident memory so far. Exports are deleted when they have been compared. Writes
results/load_8b.json; give other sizes to ``launch/make_random_checkpoint.py`` and another --json for a trial.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GB = 1e9
RANK, ALPHA = 16, 32.0


def peak_gb() -> float:
    """Peak resident memory of this process so far, GB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB


class Steps:
    """Timed steps, one row each."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def run(self, what: str, step: Callable[[], Any]) -> Any:
        """Do one, record its seconds and the peak after it."""
        started = time.monotonic()
        value = step()
        seconds = round(time.monotonic() - started, 1)
        self.rows.append({"step": what, "seconds": seconds, "peak_gb": round(peak_gb(), 2)})
        print(self.rows[-1], flush=True)
        return value


def same_tensors(one: Path, other: Path) -> int:
    """How many tensors two folders hold, all equal bit for bit.

    Raises:
        SystemExit: they are not.
    """
    from r2rec_jax.models.huggingface import open_hf_folder

    first, second = open_hf_folder(one)[1], open_hf_folder(other)[1]
    if set(first.shapes) != set(second.shapes):
        sys.exit("the exported folder has other tensors")
    for name in first.shapes:
        a, b = first.read(name), second.read(name)
        if a.dtype != b.dtype or a.shape != b.shape or not np.array_equal(a.view(np.uint8), b.view(np.uint8)):
            sys.exit(f"{name} differs after the round trip")
    return len(first.shapes)


def check_merged(checkpoint: Path, merged: Path, lora: Any, layers: int) -> int:
    """Compare merged tensors of the first and the last layer with the sum taken here; returns how many."""
    from r2rec_jax.models.huggingface import open_hf_folder
    from r2rec_jax.models.weights import LINEARS

    base, found = open_hf_folder(checkpoint)[1], open_hf_folder(merged)[1]
    for layer in (0, layers - 1):
        for short, module in LINEARS.items():
            name = f"model.layers.{layer}.{module}.weight"
            a, b = (np.asarray(lora["layers"][short][part][...][layer], np.float32) for part in ("lora_a", "lora_b"))
            weight = base.read(name)
            expected = (weight.astype(np.float32) + np.float32(ALPHA / RANK) * (a @ b).T).astype(weight.dtype)
            got = found.read(name)
            if not np.array_equal(got.view(np.uint16), expected.view(np.uint16)):
                sys.exit(f"{name}: the merged tensor is not the sum")
            if np.array_equal(got.view(np.uint16), weight.view(np.uint16)):
                sys.exit(f"{name}: the adapter changed nothing")
    return 2 * len(LINEARS)


def measure(checkpoint: Path, work: Path, ids: list[int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All steps; (rows, what else is worth knowing)."""
    import jax

    from r2rec_jax.config import LoraConfig
    from r2rec_jax.models.huggingface import load_backbone, save_merged
    from r2rec_jax.score import score_ids

    steps = Steps()
    steps.run("start: imports and a device", lambda: jax.block_until_ready(jax.numpy.zeros(8)))
    backbone = steps.run("load in bfloat16, hashed", lambda: load_backbone(
        checkpoint, LoraConfig(rank=RANK, alpha=ALPHA), "bfloat16"))
    weights = sum(x.nbytes for x in jax.tree.leaves(backbone.base)) / GB
    adapter = sum(x.nbytes for x in jax.tree.leaves(backbone.lora)) / GB
    shard = max(path.stat().st_size for path in checkpoint.glob("*.safetensors")) / GB
    over = steps.rows[1]["peak_gb"] - weights - adapter
    scores = steps.run(f"score {len(ids)} tokens", lambda: score_ids(backbone, None, ids))
    if not np.isfinite(scores[1:]).all():
        sys.exit("a score is not finite")
    out = work / "exported"
    steps.run("export the base", lambda: save_merged(backbone, None, out))
    same = steps.run("compare with the checkpoint", lambda: same_tensors(checkpoint, out))
    shutil.rmtree(out)
    leaves, treedef = jax.tree.flatten(backbone.lora)
    lora = jax.tree.unflatten(treedef, [0.02 * jax.random.normal(jax.random.key(i), x.shape)
                                        for i, x in enumerate(leaves)])
    steps.run("export with an adapter", lambda: save_merged(backbone, lora, out))
    merged = steps.run("compare with the sums", lambda: check_merged(checkpoint, out, lora, backbone.config.layers))
    shutil.rmtree(out)
    rows = [{"work": "8b on a small machine", **row} for row in steps.rows]
    return rows, {
        "placed_weights_gb": round(weights, 3), "adapter_gb": round(adapter, 3), "largest_shard_gb": round(shard, 3),
        "load_peak_above_weights_gb": round(over, 2), "peak_gb": round(peak_gb(), 2), "tensors_equal": same,
        "merged_tensors_checked": merged, "base_sha256": backbone.sha256,
        "mean_logprob": float(np.mean(np.asarray(scores[1:], np.float64)))}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="HF folder, bfloat16")
    parser.add_argument("--work", type=Path, required=True, help="folder with room for one more copy")
    parser.add_argument("--tokens", type=int, default=64, help="length of the text to score")
    parser.add_argument("--json", default="results/load_8b.json")
    given = parser.parse_args()

    from r2rec_jax.config import fingerprint
    from r2rec_jax.evaluation.tables import result_file
    from r2rec_jax.files import read_json, write_json

    config = read_json(given.checkpoint / "config.json", "give another checkpoint")
    ids = np.random.default_rng(0).integers(0, config["vocab_size"], given.tokens).tolist()
    rows, facts = measure(given.checkpoint, given.work, ids)
    result = result_file("load, score and export at the 8B shape", rows, fingerprint(config),
                         command=f"launch/measure_8b.py --tokens {given.tokens}", **facts)
    write_json(given.json, result)


if __name__ == "__main__":
    main()
