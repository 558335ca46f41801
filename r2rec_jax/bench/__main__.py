"""``python -m r2rec_jax.bench``: our path and the PyTorch path on the same work.

    python -m r2rec_jax.bench --preset cpu
    python -m r2rec_jax.bench --preset gpu-8b --works rollout,sft --repeats 5

The same weights, prompts, token counts and dtype; both sides in processes of their own, in alternation; warm-up and
compilation are not counted; tokens are real tokens, never padding. Results of works that are measured anew replace
those in the result file, the others stay.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from r2rec_jax.stages.cli import BadInput, make_parser, parse, run_entry

DESCRIPTION = """Measure rollouts, SFT, a GRPO step, recommendations and loading against transformers, peft and trl
(the extra [bench]), and hold their numbers against each other. Writes results/bench_<preset>.json and prints a
table."""

PACKAGES = ("torch", "transformers", "peft", "accelerate")

OF_GRPO = ("trl", "datasets")
"""What the GRPO step alone is held against."""


def run(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, measure, write, print."""
    from r2rec_jax.bench.presets import PRESETS, WORKS, preset_named

    parser = make_parser("r2rec_jax.bench", DESCRIPTION)
    parser.add_argument("--preset", type=Literal[tuple(PRESETS)], default="cpu", help="which sizes")  # pyright: ignore
    parser.add_argument("--works", type=str, default="all", help=f"out of {','.join(WORKS)}, or 'all'")
    parser.add_argument("--repeats", type=int | None, default=None, help="measurements of each side")
    parser.add_argument("--weights", type=str | None, default=None,
                        help="a local HF folder of the preset's shape, instead of the preset's weights")
    parser.add_argument("--cache_dir", type=str, default="~/.cache/r2rec_jax", help="where SmolLM2 is kept")
    parser.add_argument("--scratch", type=str | None, default=None, metavar="DIR",
                        help="where the folder that both sides read is made, and kept (default: a temporary one)")
    parser.add_argument("--json", type=str | None, default=None, metavar="OUT",
                        help="result file (default: results/bench_<preset>.json)")
    given = parse(parser, argv)
    preset = preset_named(given.preset, given.repeats, given.weights)
    works = parse_works(given.works, WORKS)
    packages = check_packages(works)
    from r2rec_jax.bench.report import print_rows, run_works

    out = Path(given.json or f"results/bench_{preset.name.replace('-', '_')}.json")
    with tempfile.TemporaryDirectory(prefix="r2rec-bench-") as temporary:
        folder = Path(given.scratch or temporary).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        result = run_works(preset, works, folder, given.cache_dir, out, packages)
    print_rows(result)


def parse_works(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """``"rollout,sft"`` in the benchmark's own order; ``"all"`` is every work.

    Raises:
        BadInput: a name that is no work.
    """
    asked = list(known) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise BadInput(f"--works must be 'all' or names out of {', '.join(known)}; got {text!r}")
    return tuple(name for name in known if name in asked)


def check_packages(works: Sequence[str]) -> dict[str, str]:
    """Versions of the other side's packages.

    Raises:
        BadInput: one that these works need is not installed.
    """
    found: dict[str, str] = {}
    for name in (*PACKAGES, *OF_GRPO):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    missing = [name for name in (*PACKAGES, *(OF_GRPO if "grpo" in works else ())) if name not in found]
    if missing:
        raise BadInput(f"the benchmark needs {', '.join(missing)}; pip install -e '.[bench]'")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return run_entry(run, argv)


if __name__ == "__main__":
    sys.exit(main())
