"""What int8 linears do to SmolLM2 on this CPU: memory, drift of the log-probabilities, and decoding speed.

    .venv/bin/python launch/measure_int8.py --text README.md

The drift is over the first 512 tokens of the text. Decoding draws 8 rows of a 256-token prompt, with weights as they
are stored in both cases, and is compiled before it is timed. Writes results/int8_smollm2.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r2rec_jax.evaluation.tables import result_file
from r2rec_jax.files import write_json
from r2rec_jax.models.backbone import Backbone, quantize_backbone
from r2rec_jax.models.huggingface import load_backbone
from r2rec_jax.sampling.decoder import Decoder
from r2rec_jax.score import drift_of, score_ids
from r2rec_jax.stages.workspace import backbone_path, load_tokenizer

SOURCE, CACHE = "smollm2-135m", "~/.cache/r2rec_jax"
TOKENS, PROMPT, ROWS, NEW, REPEATS = 512, 256, 8, 32, 3


def decode_rate(backbone: Backbone, prompt: list[int]) -> tuple[float, float]:
    """New tokens a second: (median, spread) of the repeats."""
    decoder = Decoder(backbone.graphdef, backbone.config, [0], 0, layout="stored")
    rates = []
    for repeat in range(REPEATS + 1):
        started = time.monotonic()
        rollout = decoder.generate(backbone.lora, backbone.base, [prompt], group=ROWS, max_new_tokens=NEW,
                                   temperature=1, top_p=1, key=jax.random.key(repeat))
        rates.append(float(rollout.lengths.sum()) / (time.monotonic() - started))
    return float(np.median(rates[1:])), float(np.ptp(rates[1:]))


def main() -> None:
    """Measure both forms and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, default=Path("README.md"))
    parser.add_argument("--json", default="results/int8_smollm2.json")
    given = parser.parse_args()
    full = load_backbone(backbone_path(SOURCE, CACHE), None, "float32")
    ids = load_tokenizer(SOURCE, CACHE).encode_document(given.text.read_text(encoding="utf-8"))[:TOKENS]
    scores: dict[str, Any] = {}
    rows = []
    for name, backbone in (("none", full), ("int8", quantize_backbone(full))):
        scores[name] = score_ids(backbone, None, ids)
        rate, spread = decode_rate(backbone, ids[:PROMPT])
        rows.append({"work": "int8 linears, SmolLM2-135M in float32 on a CPU", "quantize": name,
                     "layers_mb": round(sum(x.nbytes for x in jax.tree.leaves(backbone.base["layers"])) / 1e6, 1),
                     "base_mb": round(sum(x.nbytes for x in jax.tree.leaves(backbone.base)) / 1e6, 1),
                     "mean_logprob": float(np.mean(scores[name][1:])), "new_tokens_per_s": round(rate, 2),
                     "spread": round(spread, 2)})
        print(rows[-1], flush=True)
    drift = drift_of(scores["int8"], scores["none"])
    print(drift)
    write_json(given.json, result_file("int8 linears of SmolLM2", rows, full.sha256, drift=drift, tokens=len(ids),
                                       command=f"launch/measure_int8.py --text {given.text}"))


if __name__ == "__main__":
    main()
