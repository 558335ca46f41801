from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.evaluation.paper import DATASETS, TABLE_1, TABLE_2, breaks_the_law, group_of, table_order
from r2rec_jax.evaluation.ranking import MISS, hit_ratio, ndcg


def test_thirteen_cells_of_table_1_break_the_law():
    broken = {(row.name, name) for row in TABLE_1 for name, cell in zip(DATASETS.values(), row.cells, strict=True)
              if breaks_the_law(*cell)}
    assert broken == {
        ("GraphSage", "MovieLens"), ("GraphSage", "Amazon Book"), ("NGCF", "MovieLens"), ("LightGCN", "MovieLens"),
        ("GRU4Rec", "Amazon Book"), ("GRU4Rec", "Amazon Electronics"), ("Caser", "Amazon Electronics"),
        ("SASRec", "Amazon Book"), ("TallRec", "MovieLens"), ("TallRec", "Amazon Book"),
        ("TallRec", "Amazon Electronics"), ("LLaRA", "MovieLens"), ("LLaRA", "Amazon Electronics")}
    assert len(broken) == 13
    assert not any(breaks_the_law(*cell) for row in TABLE_2 for cell in row.cells)


def test_both_tables_are_whole():
    assert [row.name for row in TABLE_1] == [
        "GraphSage", "NGCF", "LightGCN", "GRU4Rec", "Caser", "SASRec", "GPT-4o-mini", "o4-mini", "ChatRec", "TallRec",
        "LLaRA", "R2Rec"]
    assert len(TABLE_2) == 6
    assert all(len(row.cells) == 3 and row.cell("ml-100k") is None for row in TABLE_1 + TABLE_2)
    assert TABLE_1[-1].cell("amazon-books") == (0.586, 0.656, 0.627) == TABLE_2[3].cell("amazon-books")


def test_systems_stand_where_the_paper_has_them():
    assert [group_of(row.system) for row in TABLE_1] == [row.group for row in TABLE_1]
    assert group_of("something new") == "Other"
    names = ["something new", "sft+grpo", "base", "sasrec", "popularity", "o4-mini"]
    assert sorted(names, key=table_order) == ["popularity", "sasrec", "o4-mini", "base", "sft+grpo", "something new"]


@given(st.lists(st.sampled_from([1.0, 2.0, 3.0, 4.0, 20.0, MISS]), min_size=1, max_size=3000))
def test_rounding_never_makes_an_honest_cell_break_the_law(ranks):
    assert not breaks_the_law(*(round(value, 3) for value in (hit_ratio(ranks, 1), hit_ratio(ranks, 3),
                                                              ndcg(ranks, 3))))


@pytest.mark.parametrize(("hr1", "hr3"), [(0.2, 0.6), (0.404, 0.544)])
def test_the_law_is_the_stated_one(hr1, hr3):
    low, high = hr1 + 0.5 * (hr3 - hr1), hr1 + (hr3 - hr1) / math.log2(3)
    assert not breaks_the_law(hr1, hr3, low) and not breaks_the_law(hr1, hr3, high)
    assert breaks_the_law(hr1, hr3, low - 0.0011) and breaks_the_law(hr1, hr3, high + 0.0011)
