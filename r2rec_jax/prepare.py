"""``python -m r2rec_jax.prepare``: data to frozen queries, candidates and interaction chains, with the counts.

    python -m r2rec_jax.prepare --out prepared                               MovieLens-100K, downloaded when need be
    python -m r2rec_jax.prepare --data.name ml-1m --data.path ~/ml-1m --data.eval_users 1000 --out prepared-1m
    python -m r2rec_jax.prepare --config configs/tiny.yaml --out prepared --json counts.json
"""

from __future__ import annotations

import sys
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2rec_jax.config import TrainConfig
from r2rec_jax.progress import say
from r2rec_jax.stages.cli import add_train_config, make_parser, parse_train_config, run_entry, write_json

if TYPE_CHECKING:
    from r2rec_jax.stages.lengths import PromptLengths

DESCRIPTION = """Read a data set and freeze what every system is measured on: evaluation users, training queries,
candidate lists, training edges and interaction chains. The same settings and sources give the same bytes.
Read are --data.*, --graph.* and --train_seed, and --prompts.* for the lengths of the prompts that are shown at the end;
the other settings of a run's YAML may stand there and have no effect."""

_READ = ("data", "graph", "prompts", "train_seed")
_DATA_ROWS = (
    ("users", "users"), ("items", "items"), ("interactions", "interactions"), ("positives (likes)", "positives"),
    ("density", "density"), ("training edges", "training_edges"), ("duplicate rows, last one kept", "duplicates"),
    ("eligible users", "eligible_users"), ("evaluation users", "evaluation_users"),
)
_ROWS_OF_SOME = (("items nobody rated, left out", "items_without_interactions"),
                 ("interactions outside the k-core, left out", "k_core_events"),
                 ("users outside the k-core, left out", "k_core_users"),
                 ("items outside the k-core, left out", "k_core_items"),
                 ("items without attributes", "items_without_attributes"),
                 ("items without a title, shown by their id", "items_without_title"),
                 ("users without attributes", "users_without_attributes"),
                 ("chains with a candidate, not shown", "left_out_chains"))
"""Shown where there are some. Of the items in tables and Amazon's files only those of events are read: the others are
not counted."""


def _hide_other_settings(parser: Any) -> None:
    """Keep the settings of other stages out of ``--help``; a run's YAML may hold them all the same."""
    for action in parser._actions:
        if action.dest.partition(".")[0] in set(TrainConfig.__dataclass_fields__) - set(_READ):
            action.help = SUPPRESS


def print_counts(manifest: Mapping[str, Any], folder: Path) -> None:
    """Show the counts of a prepared folder as two tables."""
    from rich.console import Console
    from rich.table import Table

    counts, console = manifest["counts"], Console()
    data = Table(title=str(manifest["dataset"]), title_justify="left")
    data.add_column("what")
    data.add_column("count", justify="right")
    for label, key in (*_DATA_ROWS, *(row for row in _ROWS_OF_SOME if counts.get(row[1]))):
        value = counts[key]
        data.add_row(label, f"{value:,}" if isinstance(value, int) else f"{value:.3g}")
    console.print(data)
    most = manifest["config"]["graph"]["chains"]
    tasks = Table(title="queries, and how many have 0, 1, ... distinct chains to show", title_justify="left")
    for name in ("split", "queries", "users", "by eval. users", *(str(number) for number in range(most + 1))):
        tasks.add_column(name, justify="left" if name == "split" else "right")
    for split, coverage in counts["chain_coverage"].items():
        queries = counts[f"{split}_queries"]
        tasks.add_row(split, f"{queries:,}", f"{counts.get(f'{split}_users', queries):,}",
                      f"{counts.get(f'{split}_queries_of_evaluation_users', queries):,}",
                      *(f"{number:,}" for number in coverage.values()))
    console.print(tasks)
    console.print(f"prepared in {folder}", markup=False, highlight=False, soft_wrap=True)


def print_lengths(lengths: Sequence[PromptLengths]) -> None:
    """Show how long the ranking prompts are, and how many of them each limit would hold whole."""
    from rich.console import Console
    from rich.table import Table

    if not lengths:
        say("prompt lengths: no tokenizer is at hand; give --tokenizers (folders, tokenizer files, hub ids)")
        return
    limits = list(lengths[0].within)
    table = Table(title=f"ranking prompts in tokens ({lengths[0].prompts:,} of them, no chain dropped)",
                  title_justify="left")
    table.add_column("tokenizer", max_width=30)
    for name in ("median", "95 %", "longest", *(f"in {limit:,}" for limit in limits)):
        table.add_column(name, justify="right", no_wrap=True)
    for row in lengths:
        table.add_row(row.tokenizer, f"{row.median:,}", f"{row.p95:,}", f"{row.longest:,}",
                      *(f"{row.within[limit]:.1%}" for limit in limits))
    Console().print(table)


def run(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, prepare, and show the counts."""
    parser = make_parser("r2rec_jax.prepare", DESCRIPTION)
    parser.add_argument("--out", type=str, required=True, metavar="DIR",
                        help="folder to write; a prepared folder there is replaced, if nothing else lies in it")
    parser.add_argument("--json", type=str, default=None, metavar="OUT", help="also write the manifest to this file")
    parser.add_argument("--tokenizers", type=str, default=None, nargs="+", metavar="SOURCE",
                        help="measure the prompts with these: folders, tokenizer files, hub ids, smollm2-135m "
                             "(default: those at hand)")
    add_train_config(parser)
    _hide_other_settings(parser)
    config, arguments = parse_train_config(parser, argv)

    from r2rec_jax.stages.lengths import open_tokenizers, prompt_lengths, tokenizers_at_hand
    from r2rec_jax.stages.prepare import prepare

    sources = arguments["tokenizers"]
    cache = config.data.cache_dir
    tokenizers = open_tokenizers(tokenizers_at_hand(cache) if sources is None else sources, cache)
    folder = Path(arguments["out"]).expanduser()
    prepared = prepare(config, folder)
    lengths = prompt_lengths(prepared, config.prompts, tokenizers)
    print_counts(prepared.manifest, folder)
    print_lengths(lengths)
    write_json(arguments["json"], {"folder": str(folder), **prepared.manifest,
                                   "prompt_lengths": [asdict(row) for row in lengths]})


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_entry(run, argv)


if __name__ == "__main__":
    sys.exit(main())
