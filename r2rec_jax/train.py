"""``python -m r2rec_jax.train``: the whole recipe, or some of its stages, from one YAML.

    python -m r2rec_jax.train                                   the packaged quickstart
    python -m r2rec_jax.train --config configs/tiny.yaml        the development loop, from scratch
    python -m r2rec_jax.train --stages sft,grpo --sft.lr 1e-4   some stages, a setting changed
    python -m r2rec_jax.train --run_dir runs/b --grpo.lr 1e-5 --reuse runs/a   take everything up to SFT from runs/a
    python -m r2rec_jax.train --config configs/movielens_1m_8b.yaml --plan   only how much memory it would take
    srun python -m r2rec_jax.train --config 8b.yaml --parallel.distributed auto   the same in every process of a run
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from r2rec_jax.config import STAGES
from r2rec_jax.stages.cli import BadInput, add_train_config, make_parser, parse_train_config, run_entry, write_json
from r2rec_jax.stages.memory.arguments import add_plan_arguments

DESCRIPTION = """Run the R2Rec recipe: prepare, thoughts, (pretrain), sft, grpo, evaluate, export.
A stage whose inputs and settings have not changed is not run again; an interrupted run goes on where it stopped
when the same command is given again. Results, plots, predictions and checkpoints lie in --run_dir."""


def parse_stages(text: str) -> tuple[str, ...]:
    """``"sft,grpo"`` -> ("sft", "grpo"), in the order of the recipe; ``"all"`` is every stage.

    Raises:
        BadInput: a name that is no stage.
    """
    if text == "all":
        return STAGES
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in STAGES]
    if unknown or not asked:
        raise BadInput(f"--stages must be 'all' or names out of {', '.join(STAGES)}; got {text!r}")
    return tuple(name for name in STAGES if name in asked)


def run(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run the stages."""
    parser = make_parser("r2rec_jax.train", DESCRIPTION)
    parser.add_argument("--stages", type=str, default="all", help="comma-separated stages to run, or 'all'")
    parser.add_argument("--overwrite", action="store_true",
                        help="when settings have changed, delete the stages they touch and run them anew")
    parser.add_argument("--reuse", type=str, nargs="+", default=[], metavar="DIR",
                        help="other run folders: stages that they have finished under the same settings are copied")
    parser.add_argument("--json", type=str, default=None, metavar="OUT", help="also write the results to this file")
    add_plan_arguments(parser)
    add_train_config(parser)
    config, arguments = parse_train_config(parser, argv)
    if arguments["plan"]:
        from r2rec_jax.stages.memory.plan import run_plan

        write_json(arguments["json"], run_plan(config, arguments))
        return
    stages = parse_stages(arguments["stages"])

    from r2rec_jax.parallel.distributed import is_first
    from r2rec_jax.stages.pipeline import run_stages

    results = run_stages(config, stages, overwrite=arguments["overwrite"], reuse=arguments["reuse"])
    if is_first():
        write_json(arguments["json"], results)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    code = run_entry(run, argv)
    if code:
        from r2rec_jax.parallel.distributed import leave

        leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
