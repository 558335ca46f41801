"""A comparison on the terminal, 80 columns wide: Table 1 a data set at a time, breakdowns, and the pairs of systems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from r2rec_jax.evaluation import paper
from r2rec_jax.evaluation.comparison import BlockReport, best_systems, worse_than_best
from r2rec_jax.evaluation.summary import position_p
from r2rec_jax.reporting.comparison import (
    NONE,
    SHOWN,
    dataset_name,
    heading,
    people,
    position_rates,
    position_stretches,
    probability,
    seeds,
)

Row = Mapping[str, Any]

WIDTH = 80
MOST_PAIRS = 10
"""Blocks with more pairs than this print none of them: the Markdown and the JSON hold all."""

PAPER_ONLY = f"the paper's ({paper.NEGATIVES}, {paper.SPLIT})"

LEGEND = f"""Means over seeds, ± standard deviation over seeds.
*      significantly below the best of ours under the same data, negatives and
       split (paired bootstrap over users, Holm-corrected p < 0.05)
paper  HitRatio@1, HitRatio@3, NDCG@3 of the paper's Table 1 ({paper.NEGATIVES} negatives,
       split {paper.SPLIT}, {paper.RUNS} runs, {paper.USERS:,} users)
†      no list of ranks can give this NDCG@3 with these hit ratios"""


def print_comparison(reports: Sequence[BlockReport], *, file: IO[str] | None = None) -> None:
    """Print tables, breakdowns and tests to standard output, or to ``file``."""
    console = Console(file=file, highlight=False, soft_wrap=False)
    width = None if console.is_terminal else WIDTH
    for dataset in dict.fromkeys([*(report.dataset for report in reports), *paper.DATASETS]):
        own = [report for report in reports if report.dataset == dataset]
        beside = "ours beside the paper's" if dataset in paper.DATASETS else "ours"
        console.print(f"\n{dataset_name(dataset)}, {beside if own else PAPER_ONLY}", style="bold", markup=False,
                      soft_wrap=True)
        console.print(_table_1(dataset, own), width=width)
    console.print(LEGEND, markup=False, style="dim", soft_wrap=True)
    for report in reports:
        console.print(f"\n{heading(report)}", style="bold", markup=False, soft_wrap=True)
        print_breakdowns(report.rows, console)
        _print_pairs(console, report, width)


def print_breakdowns(rows: Sequence[Row], console: Console | None = None) -> None:
    """HitRatio@1 by the target's number in the candidate list, and by its popularity, a system a line.

    Args:
        rows: of :func:`~r2rec_jax.evaluation.summary.summarize_ranks`, of one data set.
        console: where to print; standard output when None.
    """
    console = console or Console(highlight=False)
    console.print("HitRatio@1 by the target's number in the list (p: are the rates equal?), and by\n"
                  "its popularity (from rare to popular, equal numbers of users)", soft_wrap=True)
    console.print(_breakdown(rows), width=None if console.is_terminal else WIDTH)


def _table_1(dataset: str, own: Sequence[BlockReport]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    names = ("method", "HR@1", "HR@3", "NDCG@3", "paper", "negatives", "seeds")
    for name in names if own else ("method", "HR@1 HR@3 NDCG@3"):
        table.add_column(name, overflow="fold", no_wrap=name != "method")
    rows = [(report, row) for report in own for row in report.rows]
    names = {row["name"] for _, row in rows} | ({line.system for line in paper.TABLE_1} if dataset in paper.DATASETS
                                                else set())
    printed = {line.system: line for line in paper.TABLE_1 if line.cell(dataset) is not None}
    for name in sorted(names, key=paper.table_order):
        mine = [pair for pair in rows if pair[1]["name"] == name]
        shown = False
        for report, row in mine:
            same = (report.negatives, report.split) == (paper.NEGATIVES, paper.SPLIT)
            shown |= same
            table.add_row(*_our_cells(report, row, _paper_cell(printed.get(name), dataset) if same else NONE))
        if not shown and name in printed:
            line = printed[name]
            beside = [NONE] * 3, (f"{paper.NEGATIVES}\n{paper.SPLIT}", f"{paper.RUNS} runs\n{paper.USERS:,} users")
            before, after = beside if own else ((), ())
            table.add_row(line.name, *before, _paper_cell(line, dataset), *after)
    return table


def _our_cells(report: BlockReport, row: Row, printed: str) -> list[str | Text]:
    figures: list[str | Text] = []
    for key in SHOWN:
        mark = "*" if row["system"] in worse_than_best(report.rows, report.tests, key) else ""
        below = f"\n±{_short(row['sd'][key])}" if key in row["sd"] else ""
        style = "bold" if row["system"] in best_systems(report.rows, key) else ""
        figures.append(Text(f"{_short(row[key])}{mark}{below}", style=style))
    return [Text(row["system"]), *figures, printed, f"{row['negatives']}\n{row['split']}",
            f"{seeds(row)}\n{people(row)} users"]


def _paper_cell(line: paper.PaperRow | None, dataset: str) -> str:
    printed = line.cell(dataset) if line is not None else None
    if printed is None:
        return NONE
    return " ".join(map(_short, printed)) + ("†" if paper.breaks_the_law(*printed) else "")


def _breakdown(rows: Sequence[Row]) -> Table:
    stretches = position_stretches(rows)
    count = max(len(row.get("by_popularity", ())) for row in rows)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("system", overflow="fold")
    for name in [*(f"{low}-{high}" for low, high in stretches), "p", *_bucket_names(count)]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        rates = [NONE if rate is None else _short(rate) for rate in position_rates(row, stretches)]
        buckets = [_short(bucket["hr@1"]) for bucket in row.get("by_popularity", ())]
        p = probability(position_p(row["by_position"])).replace(" 0", "").replace("0.", ".", 1)
        table.add_row(Text(row["system"]), *rates, p, *buckets, *[NONE] * (count - len(buckets)))
    return table


def _bucket_names(count: int) -> list[str]:
    if count < 2:
        return ["all"] * count
    return ["rare", *(str(number) for number in range(2, count)), "popular"]


def _print_pairs(console: Console, report: BlockReport, width: int | None) -> None:
    tests = [test for test in report.tests if test.metric == "hr@1"]
    if not tests:
        return
    if len(tests) > MOST_PAIRS:
        console.print(f"{len(tests)} pairs of systems were tested: --markdown and --json hold them", soft_wrap=True)
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("A minus B", overflow="fold")
    for name in ("HitRatio@1 [95% interval]", "bootstrap p", "Wilcoxon p", "users"):
        table.add_column(name, justify="right", no_wrap=True)
    for test in tests:
        table.add_row(
            Text(f"{test.a}\n- {test.b}"), f"{test.difference:+.3f}\n[{test.low:+.3f}, {test.high:+.3f}]",
            f"{probability(test.p)}\nHolm {probability(test.p_holm)}",
            f"{probability(test.wilcoxon)}\nHolm {probability(test.wilcoxon_holm)}", f"{test.users:,}")
    console.print(table, width=width)


def _short(value: float) -> str:
    """Three digits without the leading zero: ``.404``."""
    return f"{value:.3f}".removeprefix("0")
