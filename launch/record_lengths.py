"""Record the token lengths of real SFT examples for the benchmark: r2rec_jax/bench/recorded.json.

    .venv/bin/python -m r2rec_jax.train --config configs/movielens_1m_8b.yaml --stages prepare,pretrain,thoughts \
        --data.path DIR --backbone.source smollm2-135m --run_dir runs/lengths
    .venv/bin/python launch/record_lengths.py --run runs/lengths --llama3 TOKENIZER_FOLDER

Only lengths are kept, no text: (prompt, completion) of each example by its kind, for the tokenizers of SmolLM2 and of
DeepSeek-R1-Distill-Llama-8B.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from r2rec_jax.evaluation.tables import provenance
from r2rec_jax.files import write_json
from r2rec_jax.stages.run import RunFolder
from r2rec_jax.stages.thinking import read_examples
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.tokens.examples import Limits, make_example
from r2rec_jax.tokens.tokenizer import Tokenizer

OUT = Path(__file__).resolve().parents[1] / "r2rec_jax" / "bench" / "recorded.json"


def main() -> None:
    """Tokenise the run's examples with both tokenizers and write the lengths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="a run whose thoughts stage is done, on SmolLM2's tokenizer")
    parser.add_argument("--llama3", required=True, help="folder of DeepSeek-R1-Distill-Llama-8B's tokenizer")
    given = parser.parse_args()
    work = Workspace(RunFolder.existing(given.run))
    examples = list(read_examples(work.run.folder("thoughts") / "sft.jsonl"))
    limits = Limits(100_000, 100_000)
    lengths: dict[str, dict[str, list[list[int]]]] = {}
    for name, tokenizer in (("smollm2", work.tokenizer), ("llama3", Tokenizer.load(given.llama3))):
        kinds: dict[str, list[list[int]]] = {}
        for example in examples:
            made = make_example(tokenizer, example.example_id, example.prompt, example.completion, limits)
            kinds.setdefault(example.kind, []).append([len(made.prompt_ids), len(made.completion_ids)])
        lengths[name] = kinds
    where = {name: provenance()[name] for name in ("created", "commit")}
    write_json(OUT, {"what": f"token lengths of SFT examples on {work.config.data.name}", **where,
                     "settings": {"graph.chains": work.config.graph.chains, "prompts": asdict(work.config.prompts)},
                     "lengths": lengths})


if __name__ == "__main__":
    main()
