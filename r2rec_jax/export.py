"""``python -m r2rec_jax.export``: a run's adapter for the HF ecosystem.

    python -m r2rec_jax.export --run runs/quickstart --format peft --out adapter
    python -m r2rec_jax.export --run runs/quickstart --format merged --out model
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from r2rec_jax.stages.cli import make_parser, parse, run_entry, write_json

DESCRIPTION = """Write a checkpoint of a run as a PEFT adapter folder, or merged into its backbone as an HF safetensors
folder. Both come with the tokenizer and load in peft and transformers. The folder appears whole or not at all."""


def run(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and export."""
    parser = make_parser("r2rec_jax.export", DESCRIPTION)
    parser.add_argument("--run", type=str, required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--format", type=Literal["peft", "merged"], required=True, help="adapter folder or whole model")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="new or empty folder")
    parser.add_argument("--checkpoint", type=Literal["sft", "grpo"], default="grpo", help="whose adapter")
    parser.add_argument("--json", type=str | None, default=None, metavar="OUT", help="write what was done to this file")
    given = parse(parser, argv)

    from r2rec_jax.models.folders import check_new_folder
    from r2rec_jax.progress import say
    from r2rec_jax.stages.finish import export
    from r2rec_jax.stages.run import RunFolder
    from r2rec_jax.stages.workspace import Workspace

    out = check_new_folder(given.out)
    work = Workspace(RunFolder.existing(given.run, any_texts=True), alone=True)
    export(work, given.checkpoint, given.format, out)
    say(f"export: {given.format} of {given.checkpoint} in {out}")
    write_json(given.json, {"run": given.run, "format": given.format, "out": given.out,
                            "checkpoint": given.checkpoint,
                            "base_sha256": work.run.result(given.checkpoint)["base_sha256"],
                            "files": sorted(p.name for p in out.iterdir())})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry(run, argv)


if __name__ == "__main__":
    sys.exit(main())
