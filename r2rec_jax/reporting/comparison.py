"""A comparison in Markdown: the paper's Tables 1 and 2 with ours beside them, further metrics, breakdowns, tests.

Every row of the tables names its negatives, its split and its seeds. Of the paper's cells, those that no list of ranks
can give are marked (:func:`~r2rec_jax.evaluation.paper.breaks_the_law`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from r2rec_jax.evaluation import paper
from r2rec_jax.evaluation.comparison import ALPHA, BlockReport, PairTest, best_systems, worse_than_best
from r2rec_jax.evaluation.paper import DATASETS, PaperRow
from r2rec_jax.evaluation.summary import position_p

Row = Mapping[str, Any]

SHOWN = {"hr@1": "HitRatio@1", "hr@3": "HitRatio@3", "ndcg@3": "NDCG@3"}
FURTHER = {"hr@5": "HitRatio@5", "hr@10": "HitRatio@10", "ndcg@10": "NDCG@10", "mrr": "MRR",
           "full_hr@10": "full HitRatio@10", "full_ndcg@10": "full NDCG@10", "valid_rate": "valid"}
NONE = "-"

NOTES = f"""- Means over runs ± standard deviation over runs.
- **Bold**: the best of our systems under the same data, negatives, split and seeds.
- `*`: significantly below that best one (paired bootstrap over users, p < {ALPHA:g} after Holm's correction over all
  pairs of systems under the same data, negatives and split).
- `†`: a figure of the paper that no list of ranks can give. With one relevant item NDCG@3 lies between
  HR@1 + 0.5 (HR@3 - HR@1) and HR@1 + 0.631 (HR@3 - HR@1); this one is outside by more than rounding explains.
- Figures under other negatives, another split or other data are not comparable with the paper's."""


def markdown_report(reports: Sequence[BlockReport], plot: str | None = None) -> str:
    """The whole comparison as one Markdown document.

    Args:
        reports: one a block.
        plot: path of the breakdown plot, as the document is to link it.
    """
    parts = ["# Comparison", NOTES, "## Table 1: all systems", table_1(reports),
             "## Table 2: ablations", table_2(reports)]
    for report in reports:
        parts += [f"## {heading(report)}", "### Further metrics", further_table(report),
                  "### Position bias", position_table(report)]
        if any("by_popularity" in row for row in report.rows):
            parts += ["### Popularity of the target", popularity_table(report)]
        if report.tests:
            parts += ["### Every pair", pair_table(report.tests)]
    if plot is not None:
        parts += ["## Breakdowns", f"![HitRatio@1 by place and by popularity of the target]({plot})"]
    return "\n\n".join(parts) + "\n"


def heading(report: BlockReport) -> str:
    """The conditions of a block in words."""
    return f"{dataset_name(report.dataset)}, {report.negatives} negatives, split {report.split}"


def dataset_name(dataset: str) -> str:
    """How a heading calls a data set: with the paper's name where the paper has it."""
    return f"{DATASETS[dataset]} ({dataset})" if dataset in DATASETS else dataset


def table_1(reports: Sequence[BlockReport]) -> str:
    """The layout of the paper's Table 1: a method a line, three metrics a data set, our figures above the paper's."""
    datasets = _datasets(reports)
    lines = _head(datasets)
    rows = {(id(report), row["system"]): (report, row) for report in reports for row in report.rows}
    groups = list(dict.fromkeys([*paper.GROUPS, *(paper.group_of(row["name"]) for _, row in rows.values())]))
    for group in groups:
        own = [pair for pair in rows.values() if paper.group_of(pair[1]["name"]) == group]
        printed = [line for line in paper.TABLE_1 if line.group == group]
        names = sorted({row["name"] for _, row in own} | {line.system for line in printed}, key=paper.table_order)
        lines.append(_cells([f"**{group}**", *[""] * (3 * len(datasets) + 5)]))
        for name in names:
            lines += _our_lines([pair for pair in own if pair[1]["name"] == name], datasets)
            lines += [_paper_line(line, datasets) for line in printed if line.system == name]
    return "\n".join(lines)


def table_2(reports: Sequence[BlockReport]) -> str:
    """The layout of the paper's Table 2: what the prompt shows, and which stages of training there are."""
    datasets = _datasets(reports)
    lines = _head(datasets)
    for group, members in groupby(paper.TABLE_2, key=lambda line: line.group):
        lines.append(_cells([f"**{group}**", *[""] * (3 * len(datasets) + 5)]))
        for line in members:
            own = [(report, row) for report in reports for row in report.rows
                   if row["name"] == line.system and line.prompt in (None, row["prompt"])]
            lines += _our_lines(own, datasets)
            lines.append(_paper_line(line, datasets))
    return "\n".join(lines)


def further_table(report: BlockReport) -> str:
    """The metrics that the paper does not print."""
    names = {key: name for key, name in FURTHER.items() if any(key in row for row in report.rows)}
    lines = [_cells(["system", *names.values(), "negatives", "split", "seeds", "users"]), _rule(1, len(names), 4)]
    lines += [_cells([_text(row["system"]), *(spread(row, key) for key in names), *conditions(row)])
              for row in report.rows]
    return "\n".join(lines)


def position_table(report: BlockReport) -> str:
    """HitRatio@1 by the target's number in the candidate list, in four stretches of it."""
    stretches = position_stretches(report.rows)
    lines = [_cells(["system", *(f"{low} to {high}" for low, high in stretches), "p (equal rates)", "negatives",
                     "split", "seeds", "users"]), _rule(1, len(stretches) + 1, 4)]
    for row in report.rows:
        p = position_p(row["by_position"])
        lines.append(_cells([_text(row["system"]), *(f"{rate:.3f}" if rate is not None else NONE
                                                     for rate in position_rates(row, stretches)),
                             probability(p), *conditions(row)]))
    return ("HitRatio@1 by the target's number in the candidate list. p: chi-squared over all numbers, not "
            "corrected; a system that ignores the order of the list has equal rates.\n\n" + "\n".join(lines))


def popularity_table(report: BlockReport) -> str:
    """HitRatio@1 by training edges of the target."""
    rows = [row for row in report.rows if "by_popularity" in row]
    count = max(len(row["by_popularity"]) for row in rows)
    lines = [_cells(["system", *_bucket_names(rows, count), "negatives", "split", "seeds", "users"]),
             _rule(1, count, 4)]
    for row in rows:
        rates = [f"{bucket['hr@1']:.3f}" for bucket in row["by_popularity"]]
        lines.append(_cells([_text(row["system"]), *rates, *[NONE] * (count - len(rates)), *conditions(row)]))
    return (f"HitRatio@1 in {count} buckets of equal numbers of users, by training edges of their target, from rare "
            "to popular.\n\n" + "\n".join(lines))


def pair_table(tests: Sequence[PairTest]) -> str:
    """Every pair of systems: difference with its interval, p of both tests, raw and corrected."""
    lines = [_cells(["A minus B", "metric", "difference [95% interval]", "bootstrap p", "after Holm", "Wilcoxon p",
                     "after Holm", "users", "seeds"]), "|---|---|---|---:|---:|---:|---:|---:|---|"]
    shown = [test for test in tests if test.metric in SHOWN]
    for (a, b) in dict.fromkeys((test.a, test.b) for test in shown):
        for test in shown:
            if (test.a, test.b) == (a, b):
                mark = "**" if test.p_holm < ALPHA else ""
                lines.append(_cells([
                    f"{_text(a)} minus {_text(b)}", SHOWN[test.metric],
                    f"{mark}{test.difference:+.3f}{mark} [{test.low:+.3f}, {test.high:+.3f}]", probability(test.p),
                    probability(test.p_holm), probability(test.wilcoxon), probability(test.wilcoxon_holm),
                    str(test.users), listed(test.split_seeds)]))
    return "\n\n".join([
        f"<details><summary>{len(shown)} tests of every pair</summary>",
        f"Bold: p < {ALPHA:g} by the paired bootstrap over users after Holm's correction over all pairs of this block "
        "on one metric.", "\n".join(lines), "</details>"])


def position_stretches(rows: Sequence[Row], count: int = 4) -> list[tuple[int, int]]:
    """The list of candidates in ``count`` stretches of numbers, both ends included.

    Example:
        >>> position_stretches([{"by_position": [{"number": 20}]}])
        [(1, 5), (6, 10), (11, 15), (16, 20)]
    """
    last = max(entry["number"] for row in rows for entry in row["by_position"])
    parts = np.array_split(np.arange(1, last + 1), min(count, last))
    return [(int(part[0]), int(part[-1])) for part in parts]


def position_rates(row: Row, stretches: Sequence[tuple[int, int]]) -> list[float | None]:
    """HitRatio@1 of the users whose target stands in each stretch; None where there is nobody."""
    rates: list[float | None] = []
    for low, high in stretches:
        own = [entry for entry in row["by_position"] if low <= entry["number"] <= high]
        users = sum(entry["users"] for entry in own)
        rates.append(sum(entry["users"] * entry["hr@1"] for entry in own) / users if users else None)
    return rates


def spread(row: Row, key: str) -> str:
    """Mean ± standard deviation, as far as there are any."""
    if key not in row:
        return NONE
    return f"{row[key]:.3f}" + (f" ± {row['sd'][key]:.3f}" if key in row["sd"] else "")


def conditions(row: Row) -> list[str]:
    """Negatives, split, seeds and users of a row."""
    return [row["negatives"], row["split"], seeds(row), people(row)]


def people(row: Row) -> str:
    """How many users were asked, and how often each where it was more than once."""
    return f"{row['users']:,}" + (f" x {row['answers']}" if row.get("answers", 1) > 1 else "")


def seeds(row: Row) -> str:
    """A row's seeds: those of the split, and of training where they differ."""
    drawn, trained = listed(row["split_seed"]), listed(row["seed"])
    return drawn if drawn == trained else f"split {drawn}; train {trained}"


def listed(numbers: Sequence[int]) -> str:
    """Numbers with commas."""
    return ", ".join(map(str, numbers))


def probability(p: float | None) -> str:
    """A p-value with as many digits as mean something."""
    if p is None:
        return NONE
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def _datasets(reports: Sequence[BlockReport]) -> list[str]:
    others = [report.dataset for report in reports if report.dataset not in DATASETS]
    return list(dict.fromkeys([*others, *DATASETS]))


def _head(datasets: Sequence[str]) -> list[str]:
    names = [f"{DATASETS.get(dataset, dataset)} {metric}" for dataset in datasets for metric in SHOWN.values()]
    return [_cells(["method", "source", *names, "negatives", "split", "seeds", "users"]), _rule(2, len(names), 4)]


def _our_lines(own: Sequence[tuple[BlockReport, Row]], datasets: Sequence[str]) -> list[str]:
    """Lines of one method of ours: results under the same negatives, split, seeds and users share a line."""
    lines: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for report, row in own:
        best = {key: best_systems(report.rows, key) for key in SHOWN}
        worse = {key: worse_than_best(report.rows, report.tests, key) for key in SHOWN}
        cells = []
        for key in SHOWN:
            bold = "**" if row["system"] in best[key] else ""
            cells.append(f"{bold}{spread(row, key)}{bold}" + ("\\*" if row["system"] in worse[key] else ""))
        lines.setdefault((row["system"], *conditions(row)), {})[report.dataset] = cells
    return [_cells([_text(label), "ours", *(cell for dataset in datasets for cell in found.get(dataset, [NONE] * 3)),
                    *rest]) for (label, *rest), found in lines.items()]


def _paper_line(line: PaperRow, datasets: Sequence[str]) -> str:
    cells = []
    for dataset in datasets:
        printed = line.cell(dataset)
        if printed is None:
            cells += [NONE] * 3
        else:
            cells += [f"{value:.3f}" for value in printed]
            cells[-1] += " †" if paper.breaks_the_law(*printed) else ""
    return _cells([line.name, "paper", *cells, paper.NEGATIVES, paper.SPLIT, f"{paper.RUNS} runs", f"{paper.USERS:,}"])


def _bucket_names(rows: Sequence[Row], count: int) -> list[str]:
    longest = max((row["by_popularity"] for row in rows), key=len)
    return [f"{bucket['edges'][0]:,} to {bucket['edges'][1]:,} edges" for bucket in longest[:count]]


def _cells(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rule(left: int, right: int, after: int) -> str:
    return "|" + "---|" * left + "---:|" * right + "---|" * (after - 1) + "---:|"


def _text(label: str) -> str:
    return label.replace("|", "\\|")
