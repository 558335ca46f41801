"""The thoughts that a run shows with its test queries, as each of its processes gets them.

    python -m tests.parallel.thoughts_work RUN OUT.json --parallel.distributed auto --parallel.coordinator ...
"""

from __future__ import annotations

import sys
from pathlib import Path

from r2rec_jax.config import ParallelConfig
from r2rec_jax.files import write_json
from r2rec_jax.parallel import distributed
from r2rec_jax.stages.run import RunFolder
from r2rec_jax.stages.thinking import shown_thoughts
from r2rec_jax.stages.workspace import Workspace


def main(run: str, out: str, *arguments: str) -> None:
    flags = dict(zip((name.removeprefix("--parallel.") for name in arguments[::2]), arguments[1::2], strict=True))
    distributed.start(ParallelConfig(
        distributed="auto", coordinator=flags["coordinator"], num_processes=int(flags["num_processes"]),
        process_id=int(flags["process_id"])))
    work = Workspace(RunFolder.existing(Path(run)))
    shown = shown_thoughts(work, work.prepared.queries["test"])
    assert shown
    write_json(out, sorted([repr(chain), text] for chain, text in shown.items()))


if __name__ == "__main__":
    main(*sys.argv[1:])
