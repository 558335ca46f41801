"""``python -m r2rec_jax.evaluate``: one checkpoint of a run on its frozen queries.

    python -m r2rec_jax.evaluate --run runs/quickstart --checkpoint sft
    python -m r2rec_jax.evaluate --run runs/quickstart --checkpoint sft --negatives popularity
    python -m r2rec_jax.evaluate --run runs/quickstart --checkpoint grpo --users 50 --temperature 0 --json out.json
    python -m r2rec_jax.evaluate --run runs/quickstart --checkpoint base --method likelihood --likelihood prior
    python -m r2rec_jax.evaluate --run runs/quickstart --checkpoint grpo --chains swapped
    python -m r2rec_jax.evaluate --endpoint URL --model NAME --run runs/quickstart   # a hosted model
    python -m r2rec_jax.evaluate --compare runs/quickstart runs/baselines/ml-1m      # systems side by side
"""

from __future__ import annotations

import sys
from collections.abc import Container, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Literal

from r2rec_jax.config import ParallelConfig
from r2rec_jax.config.output import READ_BY
from r2rec_jax.stages.cli import BadInput, make_parser, parse, run_entry, write_json
from r2rec_jax.stages.looks import add_look, given_look

DESCRIPTION = """Evaluate a checkpoint of a finished or partly finished run: HitRatio, NDCG and the rates of valid,
truncated and order-copying answers, over the frozen queries of the run. Goes on where an interrupted evaluation
stopped. Settings not given are those of the run. With --endpoint URL a hosted model is evaluated instead (see
--endpoint URL --help); with --compare DIR_A DIR_B ... evaluated runs and baselines are compared (see --compare
--help)."""


def check_read(method: str, given: Container[str]) -> None:
    """Refuse a flag that has no effect; settings of the run may be of either method.

    Raises:
        BadInput: a flag is of another method (says which).
    """
    for other, names in READ_BY.items():
        for name in names if other != method else ():
            if name in given:
                raise BadInput(f"--{name} is of --method {other}; the method is {method}; leave it out, or give "
                               f"--method {other}")


def run(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, evaluate, print the table."""
    named = {argument.split("=")[0] for argument in (sys.argv[1:] if argv is None else argv)}
    if "--endpoint" in named:
        from r2rec_jax.stages.hosted import run as run_hosted

        return run_hosted(argv)
    if "--compare" in named:
        from r2rec_jax.stages.compare import run as run_compare

        return run_compare(argv)
    parser = make_parser("r2rec_jax.evaluate", DESCRIPTION)
    parser.add_argument("--run", type=str, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--checkpoint", type=Literal["base", "sft", "grpo"], required=True, help="whose adapter")
    add_look(parser)
    parser.add_argument("--json", type=str | None, default=None, metavar="OUT", help="write the result file here too")
    parser.add_class_arguments(ParallelConfig, "parallel")
    given = parser.instantiate(parse(parser, argv))

    from r2rec_jax.evaluation.tables import print_table
    from r2rec_jax.parallel.distributed import company, is_first, on_first, start
    from r2rec_jax.progress import mute
    from r2rec_jax.reporting.terminal import print_breakdowns
    from r2rec_jax.stages.evaluation import evaluate_run, evaluation_files
    from r2rec_jax.stages.run import RunFolder
    from r2rec_jax.stages.workspace import Workspace

    run = RunFolder.existing(given.run)
    work = Workspace(RunFolder(run.path, replace(run.config, parallel=given.parallel)))
    flags = given_look(given)
    config = work.config.evaluate.look(**flags)
    check_read(config.method, flags)
    start(given.parallel)
    with company(), ExitStack() as held:
        if not is_first():
            mute()
        on_first(lambda: held.enter_context(run.locked()))
        result = evaluate_run(work, config, [given.checkpoint],
                              evaluation_files(work, given.checkpoint, config).results)
    if not is_first():
        return
    print_table(result["rows"], result["what"])
    print_breakdowns(result["rows"])
    write_json(given.json, result)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    code = run_entry(run, argv)
    if code:
        from r2rec_jax.parallel.distributed import leave

        leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
