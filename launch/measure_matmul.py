"""What products of bfloat16 factors do to SmolLM2 in float32 on this CPU: speed of each kind of work, and drift.

    .venv/bin/python launch/measure_matmul.py --text README.md

Both settings of `backbone.matmul_dtype` take turns. A pass has 4 rows of 512 tokens of the text; decoding draws 4 rows
for each of 8 prompts of 384 tokens. Everything is compiled before it is timed.
Writes results/matmul_dtype_smollm2.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2rec_jax.config import LoraConfig
from r2rec_jax.evaluation.tables import result_file
from r2rec_jax.files import write_json
from r2rec_jax.models.backbone import Backbone, with_matmul_dtype
from r2rec_jax.models.huggingface import load_backbone
from r2rec_jax.models.lora import init_lora
from r2rec_jax.sampling.decoder import Decoder
from r2rec_jax.score import drift_of
from r2rec_jax.stages.workspace import backbone_path, load_tokenizer
from r2rec_jax.tokens.examples import Batch
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.pretrain import NO_ADAPTER, Text, make_pretrain_loss, pretrain_graphdef, row_batch

SOURCE, CACHE = "smollm2-135m", "~/.cache/r2rec_jax"
ROWS, LENGTH, PROMPTS, PROMPT, GROUP, NEW, REPEATS = 4, 512, 8, 384, 4, 64, 3
SETTINGS = (None, "bfloat16")


def kinds_of_work(plain: Backbone, name: str | None, batch: Batch, prompts: list[list[int]]
                  ) -> dict[str, Callable[[], Any]]:
    """Each kind of work under a setting as a call that waits for its result."""
    backbone = with_matmul_dtype(plain, name)
    model, scale = FrozenModel(backbone.graphdef, backbone.base), np.float32(1 / batch.target_weights.sum())
    bare = replace(model, graphdef=pretrain_graphdef(backbone.config, name))
    of_all, of_adapter = make_pretrain_loss(bare), make_pretrain_loss(model)
    all_weights = jax.jit(jax.grad(lambda base, lora: of_all(base, lora, batch, scale)[0]))
    adapter = jax.jit(jax.grad(lambda lora, base: of_adapter(base, lora, batch, scale)[0]))
    score = jax.jit(lambda lora, base: model.score(lora, base, batch)[0])
    decoder, lora = Decoder(backbone.graphdef, backbone.config, [], 0), init_lora(backbone.lora, jax.random.key(0))

    def decode(new: int) -> Any:
        return decoder.generate(lora, backbone.base, prompts, group=GROUP, max_new_tokens=new, temperature=1,
                                top_p=1, key=jax.random.key(0))

    return {"gradient of all weights": lambda: jax.block_until_ready(all_weights(backbone.base, NO_ADAPTER)),
            "gradient of the adapter": lambda: jax.block_until_ready(adapter(lora, backbone.base)),
            "log-probabilities": lambda: jax.block_until_ready(score(lora, backbone.base)),
            "decoding": lambda: decode(NEW), "prefill and merging": lambda: decode(2)}


def main() -> None:
    """Measure both settings in turn and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("README.md"))
    parser.add_argument("--json", default="results/matmul_dtype_smollm2.json")
    given = parser.parse_args()
    plain = load_backbone(backbone_path(SOURCE, CACHE), LoraConfig(), "float32")
    ids = load_tokenizer(SOURCE, CACHE).encode_document(given.text.read_text(encoding="utf-8"))[:ROWS * LENGTH]
    batch = row_batch([[Text.whole(ids[at:at + LENGTH])] for at in range(0, len(ids), LENGTH)], ROWS, LENGTH)
    prompts = [ids[at:at + PROMPT] for at in range(0, PROMPTS * 128, 128)]
    works = {name: kinds_of_work(plain, name, batch, prompts) for name in SETTINGS}
    seconds: dict[Any, list[float]] = {}
    scores = {name: works[name]["log-probabilities"]()[batch.target_weights > 0] for name in SETTINGS}
    for repeat in range(REPEATS + 1):
        for what in works[None]:
            for name in SETTINGS:
                started = time.perf_counter()
                works[name][what]()
                if repeat:
                    seconds.setdefault((what, name), []).append(time.perf_counter() - started)
                print(f"{what}, {name or 'float32'}: {time.perf_counter() - started:.2f} s", flush=True)
    rows = []
    for what in works[None]:
        ratios = np.array(seconds[what, None]) / np.array(seconds[what, "bfloat16"])
        rows.append({"work": what, **{f"seconds_{name or 'float32'}": round(float(np.median(seconds[what, name])), 3)
                                      for name in SETTINGS},
                     "times_as_fast": round(float(np.median(ratios)), 3), "spread": round(float(np.ptp(ratios)), 3),
                     "repeats": REPEATS})
    drift = drift_of(scores["bfloat16"].tolist(), scores[None].tolist())
    write_json(given.json, result_file(
        f"SmolLM2-135M in float32 on a CPU, matmul_dtype null and bfloat16 in turn: passes of {ROWS} x {LENGTH} "
        f"tokens, {PROMPTS} x {GROUP} rows of {NEW} new tokens", rows, plain.sha256, drift=drift, seeds=[0],
        command="python launch/measure_matmul.py --text README.md"))
    for row in [*rows, drift]:
        print(row)


if __name__ == "__main__":
    main()
