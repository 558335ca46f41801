"""``python -m r2rec_jax.recommend``: one user's ranking, the reasoning behind it, and the chains it rests on.

    python -m r2rec_jax.recommend --run runs/quickstart --user 42 --top 5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Literal

from r2rec_jax.stages.cli import make_parser, parse, run_entry, write_json

DESCRIPTION = """Recommend for one user of the run's data: candidates are the user's frozen test candidates, or drawn
by the same rules for an eligible user without any. Shows the ranking, the model's reasoning, and the interaction chains
in its prompt."""


def run(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, generate, print."""
    parser = make_parser("r2rec_jax.recommend", DESCRIPTION)
    parser.add_argument("--run", type=str, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--user", type=str, required=True, metavar="ID", help="raw user id of the data set")
    parser.add_argument("--top", type=int, default=5, help="how many places to show")
    parser.add_argument("--checkpoint", type=Literal["base", "sft", "grpo"], default="grpo", help="whose adapter")
    parser.add_argument("--json", type=str | None, default=None, metavar="OUT", help="write it to this file too")
    given = parse(parser, argv)
    if given.top < 1:
        raise ValueError(f"--top must be >= 1; got {given.top}")

    from r2rec_jax.stages.recommending import recommend, show
    from r2rec_jax.stages.run import RunFolder
    from r2rec_jax.stages.workspace import Workspace

    result: dict[str, Any] = recommend(Workspace(RunFolder.existing(given.run), alone=True), given.user,
                                       given.checkpoint, given.top)
    show(result)
    write_json(given.json, result)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry(run, argv)


if __name__ == "__main__":
    sys.exit(main())
