"""``python -m r2rec_jax.experiments``: a list of experiments, run one after the other, each result written at once.

    python -m r2rec_jax.experiments configs/evidence/tiny.yaml                      all that is left
    python -m r2rec_jax.experiments configs/evidence/tiny.yaml --next               the next one only
    python -m r2rec_jax.experiments configs/evidence/tiny.yaml --only main --seeds 0
    python -m r2rec_jax.experiments configs/evidence/tiny.yaml --jobs 2             two at once, half of the CPUs each
    python -m r2rec_jax.experiments --report                                        EVIDENCE.md and plots
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from r2rec_jax.stages.cli import make_parser, parse, run_entry

DESCRIPTION = """Run a list of experiments: each with every seed is trained, evaluated and diagnosed in a process of its
own, and results/evidence_<name>.json is written anew after each. What is finished is not run again; a list that was
stopped or killed goes on with the same command. One that fails is recorded with its reason, and the next one runs.
With --report EVIDENCE.md and its plots are made from all result files, and nothing is run."""


def run(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, run what is left, or report."""
    parser = make_parser("r2rec_jax.experiments", DESCRIPTION)
    parser.add_argument("list", type=str | None, nargs="?", default=None, metavar="LIST.yaml", help="the list")
    parser.add_argument("--next", action="store_true", help="run the next one only")
    parser.add_argument("--only", type=str, nargs="+", default=[], metavar="NAME",
                        help="these experiments; 'baselines' are the classical models")
    parser.add_argument("--seeds", type=int, nargs="+", default=[],
                        help="these seeds instead of the list's; no others than its own where an experiment names some")
    parser.add_argument("--retry", action="store_true", help="run those again that have failed")
    parser.add_argument("--overwrite", action="store_true",
                        help="train anew what was trained with other settings; without it such an experiment fails")
    parser.add_argument("--jobs", type=int, default=1, metavar="N",
                        help="run so many at once, each on its share of the CPUs, which small models do not fill, and "
                             "of the NVIDIA GPUs, where there are any")
    parser.add_argument("--report", action="store_true", help="write the report and its plots; run nothing")
    parser.add_argument("--data_path", type=str | None, default=None, metavar="FOLDER",
                        help="where the data set's files lie, if they are not to be downloaded")
    parser.add_argument("--results", type=str, default="results", metavar="DIR", help="folder of the result files")
    parser.add_argument("--out", type=str, default="EVIDENCE.md", metavar="FILE", help="with --report: the report")
    given = parse(parser, argv)

    from r2rec_jax.stages.experiments.command import report, run_list

    if given.list is not None:
        run_list(given.list, given.results, data_path=given.data_path, only=given.only, seeds=given.seeds,
                 only_next=given.next, retry=given.retry, overwrite=given.overwrite, nothing=given.report,
                 jobs=given.jobs)
    elif not given.report:
        raise ValueError("a list must be given to run experiments; got none; name a LIST.yaml, or --report")
    if given.report:
        report(given.results, given.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry(run, argv)


if __name__ == "__main__":
    sys.exit(main())
