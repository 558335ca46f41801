from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pytest

from r2rec_jax.evaluation.comparison import BlockReport, PairTest
from r2rec_jax.reporting.breakdowns import deviations, plot_breakdowns
from r2rec_jax.reporting.comparison import markdown_report, pair_table, position_rates, table_1, table_2
from r2rec_jax.reporting.terminal import print_comparison


def make_row(system: str, hr1: float, label: str = "", **changes) -> dict:
    numbers = [{"number": n, "users": 50, "hr@1": hr1, "hr@3": hr1} for n in range(1, 21)]
    buckets = [{"bucket": n, "edges": [10 * n, 10 * n + 9], "users": 200, "hr@1": hr1, "hr@3": hr1}
               for n in range(1, 6)]
    metrics = {"hr@1": hr1, "hr@3": hr1 + 0.1, "hr@5": hr1 + 0.2, "hr@10": hr1 + 0.3, "ndcg@3": hr1 + 0.05,
               "ndcg@10": hr1 + 0.1, "mrr": hr1 + 0.1, "valid_rate": 1.0}
    return {"system": label or system, "name": system, "prompt": None, "dataset": "ml-1m", "negatives": "uniform",
            "split": "last-positive", "seed": [0, 1, 2], "split_seed": [0, 1, 2], "runs": 3, "users": 1000, **metrics,
            "sd": {name: 0.0123 for name in metrics}, "by_position": numbers, "by_popularity": buckets, **changes}


def make_test(a: str, b: str, p: float, metric: str = "hr@1") -> PairTest:
    return PairTest(a, b, metric, 0.1, 0.05, 0.15, p / 2, p, p / 3, p / 2, 1000, 3000, (0, 1, 2))


def make_report(**changes) -> BlockReport:
    rows = (make_row("popularity", 0.3), make_row("sasrec", 0.6), make_row("sft+grpo", 0.59))
    tests = tuple(make_test(a, b, p, metric) for metric in ("hr@1", "hr@3", "ndcg@3", "mrr")
                  for a, b, p in (("sasrec", "popularity", 0.001), ("sasrec", "sft+grpo", 0.4),
                                  ("sft+grpo", "popularity", 0.001)))
    return replace(BlockReport("ml-1m", "uniform", "last-positive", rows, tests), **changes)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def lines_of(table: str, method: str) -> list[list[str]]:
    return [row for row in map(cells, table.splitlines()) if row[0] == method]


def test_our_figures_stand_above_the_papers_in_its_layout():
    table = table_1([make_report()])
    (ours,), (printed,) = lines_of(table, "sasrec"), lines_of(table, "SASRec")
    assert ours == ["sasrec", "ours", "**0.600 ± 0.012**", "**0.700 ± 0.012**", "**0.650 ± 0.012**", *["-"] * 6,
                    "uniform", "last-positive", "0, 1, 2", "1,000"]
    assert printed == ["SASRec", "paper", "0.380", "0.510", "0.452", "0.531", "0.592", "0.544 †", "0.391", "0.514",
                       "0.453", "uniform", "last-positive", "3 runs", "1,000"]
    rows = list(map(cells, table.splitlines()))
    assert len({len(row) for row in rows}) == 1
    assert [row[0] for row in rows if row[1] == "paper"] == [
        "GraphSage", "NGCF", "LightGCN", "GRU4Rec", "Caser", "SASRec", "GPT-4o-mini", "o4-mini", "ChatRec", "TallRec",
        "LLaRA", "R2Rec"]
    assert table.count("†") == 13
    assert rows.index(ours) == rows.index(printed) - 1
    assert lines_of(table, "sft+grpo")[0][2] == "0.590 ± 0.012", "not significantly below the best"
    assert lines_of(table, "popularity")[0][2] == "0.300 ± 0.012\\*"


def test_other_negatives_and_data_have_lines_and_columns_of_their_own():
    other = make_report(negatives="popularity", rows=(make_row("sasrec", 0.2, negatives="popularity"),), tests=())
    small = make_report(dataset="ml-100k", rows=(make_row("sasrec", 0.4, dataset="ml-100k"),), tests=())
    table = table_1([make_report(), other, small])
    assert [(row[2], row[5], row[-4]) for row in lines_of(table, "sasrec")] == [
        ("0.400 ± 0.012", "**0.600 ± 0.012**", "uniform"), ("-", "0.200 ± 0.012", "popularity")]
    assert table.splitlines()[0].startswith("| method | source | ml-100k HitRatio@1 |")


def test_ablations_take_the_systems_that_correspond():
    rows = (make_row("base", 0.1, prompt="chains and thoughts"), make_row("base", 0.05, "base [x]", prompt="no chains"),
            make_row("base", 0.2, "base [y]"), make_row("sft", 0.3), make_row("grpo", 0.15))
    table = table_2([make_report(rows=rows, tests=())])
    order = [cells(line)[0] for line in table.splitlines()[2:]]
    assert order == ["**Prompt**", "base", "Full", "w/o Reasoning Chain", "base [x]", "w/o Interaction Chain",
                     "**Training Stage**", "Full", "sft", "w/o RL", "grpo", "w/o SFT"]


def test_the_document_holds_every_part_and_only_even_tables():
    row = make_row("sft", 0.3, "sft [a|b]", sd={}, seed=[4], split_seed=[0], **{"full_hr@10": 0.2})
    text = markdown_report([make_report(rows=(*make_report().rows, row))], "plots/b.png")
    for part in ("## Table 1", "## Table 2", "### Position bias", "### Popularity of the target", "HitRatio@10",
                 "full HitRatio@10", "Every pair", "plots/b.png", "sft [a\\|b]", "split 0; train 4"):
        assert part in text
    for table in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        assert len({len(cells(line)) for line in table.splitlines()}) == 1, table


def test_pairs_show_raw_and_corrected_values():
    table = pair_table([make_test("a", "b", 0.04), make_test("a", "b", 0.00002, "ndcg@3"),
                        make_test("a", "b", 1, "mrr")])
    rows = [cells(line) for line in table.splitlines() if line.startswith("| a minus b")]
    assert rows[0][1:7] == ["HitRatio@1", "**+0.100** [+0.050, +0.150]", "0.020", "0.040", "0.013", "0.020"]
    assert rows[1][3:5] == ["< 0.0001", "< 0.0001"]
    assert len(rows) == 2, "MRR is tested for the JSON only"


def test_position_rates_weigh_users():
    row = {"by_position": [{"number": 1, "users": 1, "hr@1": 1.0}, {"number": 2, "users": 3, "hr@1": 0.0}]}
    assert position_rates(row, [(1, 2), (3, 4)]) == [0.25, None]


def shown(reports) -> str:
    out = io.StringIO()
    print_comparison(reports, file=out)
    return out.getvalue()


def test_the_printed_tables_fit_a_terminal():
    long = make_row("sft", 0.3, "sft [a-run-folder-with-a-long-name]", negatives="popularity")
    text = shown([make_report(), make_report(negatives="popularity", rows=(long,), tests=())])
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert text.count("†") == 14, "13 cells and the legend"
    assert "Amazon Electronics (amazon-electronics), the paper's" in text
    sasrec = next(line for line in text.splitlines() if line.strip().startswith("sasrec"))
    assert sasrec.split() == ["sasrec", ".600", ".700", ".650", ".380", ".510", ".452", "uniform", "0,", "1,", "2"]
    popularity = next(line for line in text.splitlines() if line.strip().startswith("popularity"))
    assert popularity.split()[1] == ".300*"
    assert "Holm 0.0010" in text and "[+0.050, +0.150]" in text


def test_many_pairs_are_left_to_the_files():
    tests = tuple(make_test(f"s{n}", "x", 0.5) for n in range(11))
    assert "11 pairs of systems were tested" in shown([make_report(tests=tests)])


def test_a_label_is_no_markup():
    assert "sft [bold]" in shown([make_report(rows=(make_row("sft", 0.3, "sft [bold]"),), tests=())])


def test_figures_of_the_paper_stand_beside_its_own_conditions_only():
    text = shown([make_report(negatives="popularity", rows=(make_row("sasrec", 0.2, negatives="popularity"),),
                              tests=())])
    first = text[:text.index("Amazon Book")].splitlines()
    ours, printed = (line for line in first if line.strip().lower().startswith("sasrec"))
    assert ".380" not in ours and ours.split()[4:6] == ["-", "popularity"]
    assert printed.split()[1:5] == ["-", "-", "-", ".380"]


def test_deviations_are_standard_errors():
    numbers = [{"number": 1, "users": 100, "hr@1": 0.6, "hr@3": 1}, {"number": 3, "users": 100, "hr@1": 0.4, "hr@3": 1}]
    row = make_row("sft", 0.5, by_position=numbers)
    assert deviations([row])[0] == pytest.approx([2, np.nan, -2], nan_ok=True)
    assert (deviations([make_row("sft", 0.0)]) == 0).all()


def test_plot_has_a_line_of_panels_for_each_block(tmp_path):
    def size(reports) -> tuple[int, int]:
        head = plot_breakdowns(reports, tmp_path / "p" / "b.png").read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")

    one, two = size([make_report()]), size([make_report(), make_report(negatives="popularity")])
    assert one[0] == two[0] and abs(two[1] - 2 * one[1]) <= 1
    bare = make_row("sft", 0.3)
    del bare["by_popularity"]
    assert size([make_report(rows=(bare,), tests=())])[0] == one[0]
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["b.png"]
    with pytest.raises(ValueError, match="at least one compared block"):
        plot_breakdowns([], tmp_path / "b.png")
