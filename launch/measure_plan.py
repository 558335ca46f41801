"""Hold ``--plan`` against what SmolLM2 really takes on this CPU: SFT and GRPO, each in a process of its own.

    .venv/bin/python launch/measure_plan.py

A process loads the model, runs two updates of SFT (or one step of GRPO, rollout and update) on made-up token ids of the
planned lengths, and reports its peak resident memory; random ids decode to completions of full length, which is what a
plan assumes. The plan is made in this process, from the same configuration. Writes results/plan_cpu.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT, COMPLETION = 700, 256
CACHE = "~/.cache/r2rec_jax"
OVERRIDES = ["--sft.batch_size=2", "--sft.micro_batch=1", "--sft.epochs=1", "--sft.thought_weight=0",
             "--grpo.prompts_per_step=2", "--grpo.group_size=4", "--grpo.micro_prompts=1", "--grpo.steps=1",
             f"--grpo.max_new_tokens={COMPLETION}", f"--sft.max_completion={COMPLETION}", "--sft.buckets=[]"]


def configuration() -> Any:
    """The quickstart with small updates of known lengths."""
    from r2rec_jax.stages.cli import add_train_config, make_parser, parse_train_config

    parser = make_parser("measure_plan", "")
    add_train_config(parser)
    return parse_train_config(parser, OVERRIDES)[0]


def work(stage: str) -> None:
    """Train, and print this process's peak in bytes and the lengths of what was sampled."""
    import resource

    import numpy as np

    from r2rec_jax.models.backbone import with_matmul_dtype
    from r2rec_jax.models.huggingface import load_backbone
    from r2rec_jax.models.lora import init_lora
    from r2rec_jax.sampling.decoder import Decoder
    from r2rec_jax.stages.workspace import backbone_path
    from r2rec_jax.tokens.examples import Example
    from r2rec_jax.training.environment import Environment
    from r2rec_jax.training.grpo import train_grpo
    from r2rec_jax.training.policy import FrozenModel
    from r2rec_jax.training.sft import train_sft
    from r2rec_jax.training.state import stream_key

    c = configuration()
    backbone = with_matmul_dtype(
        load_backbone(backbone_path(c.backbone.source, CACHE), c.lora, c.backbone.dtype), c.backbone.matmul_dtype)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = FrozenModel.from_config(backbone.graphdef, backbone.base, c.backbone)
    lora = init_lora(backbone.lora, stream_key(0, "lora", 0))
    rng = np.random.default_rng(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(100, backbone.config.vocab_size, count).tolist())

    if stage == "sft":
        examples = [Example(str(i), ids(PROMPT), ids(COMPLETION)) for i in range(4)]
        train_sft(model, lora, examples, c.sft, seed=0)
        lengths = [[COMPLETION]]
    else:
        lengths = []

        def reward(completions: Any, example_ids: Any) -> dict[str, Any]:
            lengths.append([len(text) for text in completions])
            return {"total": np.arange(len(completions), dtype=np.float64)}

        end = backbone.hf_config["eos_token_id"]
        environment = Environment(Decoder(backbone.graphdef, backbone.config, [end], end).generate,
                                  lambda tokens: " ".join(map(str, tokens)), reward, end)
        train_grpo(model, lora, [Example(str(i), ids(PROMPT), ()) for i in range(2)], c.grpo, environment, seed=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "loaded": loaded}))


def planned() -> dict[str, int]:
    """Stage -> planned peak in bytes."""
    from r2rec_jax.stages.memory.plan import Lengths, find_config, make_plan

    c = configuration()
    plan = make_plan(c, find_config(c.backbone.source), 1, True, Lengths(PROMPT, COMPLETION))
    return {stage: max(phase.peak for phase in plan.phases if phase.name.startswith(stage))
            for stage in ("sft", "grpo")}


def main() -> None:
    """Measure both stages and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=("sft", "grpo"), default=None, help="train in this process and report")
    parser.add_argument("--json", default="results/plan_cpu.json")
    given = parser.parse_args()
    if given.work:
        work(given.work)
        return

    from r2rec_jax.config import as_plain, fingerprint
    from r2rec_jax.evaluation.tables import result_file
    from r2rec_jax.files import write_json

    plan, rows = planned(), []
    for stage in ("sft", "grpo"):
        started = time.monotonic()
        done = subprocess.run([sys.executable, str(Path(__file__).resolve()), "--work", stage], check=True,
                              capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append({"work": f"plan: {stage} of SmolLM2-135M on a CPU", "planned_gb": round(plan[stage] / 1e9, 3),
                     "measured_gb": round(found["peak"] / 1e9, 3), "loaded_gb": round(found["loaded"] / 1e9, 3),
                     "ratio": round(plan[stage] / found["peak"], 3), "seconds": round(time.monotonic() - started, 1)})
        print(rows[-1], flush=True)
    write_json(given.json, result_file("memory plan against peak resident memory, CPU", rows,
                                       fingerprint(as_plain(configuration())), command="launch/measure_plan.py",
                                       prompt_tokens=PROMPT, completion_tokens=COMPLETION))


if __name__ == "__main__":
    main()
