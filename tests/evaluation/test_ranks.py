from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.data.interactions import Item, User, build_dataset
from r2rec_jax.data.queries import Query
from r2rec_jax.evaluation.predictions import Prediction
from r2rec_jax.evaluation.ranking import MISS, rank_in_catalogue
from r2rec_jax.evaluation.ranks import (
    RankRecord,
    candidates_sha,
    from_predictions,
    from_scores,
    read_ranks,
    read_settings_beside,
    write_ranks,
)
from r2rec_jax.evaluation.summary import by_popularity, by_position, position_p, summarize_ranks

ROW = {"dataset": "ml-100k", "negatives": "uniform", "split": "last-positive", "seed": 0}


def record(number: int, rank: float = 1.0, position: int = 0, edges: int | None = 5, full: float | None = None
           ) -> RankRecord:
    return RankRecord("ease", f"test-{number}", f"u{number}", f"i{number % 3}", position, rank, rank != MISS, "ab",
                      edges, full)


def prediction(rank: float, candidates=("x", "y", "z"), target="y") -> Prediction:
    return Prediction(system="sft", source="s", query_id="q", user_id="u", prompt="", output="", ranking=(),
                      target=target, candidates=candidates, target_title="X", rank=rank, valid=rank != MISS,
                      duplicates=0, outside=0, statements=0, tokens=1, truncated=False, copied_order=False, seconds=0)


def test_records_survive_the_file(tmp_path):
    records = [record(0, 3.0, full=41.0), record(1, MISS, 19, None), record(2)]
    path = tmp_path / "ranks.jsonl"
    write_ranks(path, records)
    assert read_ranks(path) == records
    first, second = (json.loads(line) for line in path.read_text().splitlines()[:2])
    assert (first["rank"], first["full_rank"]) == (3, 41)
    assert (second["rank"], second["full_rank"], second["target_edges"]) == (None, None, None)


def test_settings_beside_are_settings(tmp_path):
    path = tmp_path / "ranks.jsonl"
    write_ranks(path, [record(0)], {"answers": 2})
    assert read_settings_beside(path) == {"answers": 2}
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"settings": []}))
    with pytest.raises(ValueError, match=r"ranks\.json must have an object 'settings'; got a list; delete it"):
        read_settings_beside(path)


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "ranks.jsonl"
    write_ranks(path, [record(0), record(0)])
    with pytest.raises(ValueError, match="line 2 repeats answer 0 to test-0"):
        read_ranks(path)
    good = record(0).to_plain()
    for bad in ({"rank": 1}, {**good, "rank": 0}, {**good, "position": -1}, {**good, "more": 1}, {**good, "answer": -1},
                {**good, "full_rank": 0},
                [1]):
        path.write_text(json.dumps(bad) + "\n")
        with pytest.raises(ValueError, match=r"ranks\.jsonl, line 1, is no rank record"):
            read_ranks(path)
    del good["answer"]
    path.write_text(json.dumps(good) + "\n")
    assert read_ranks(path) == [record(0)], "written when a query had one answer"
    path.write_text("")
    with pytest.raises(ValueError, match="at least one"):
        read_ranks(path)


def test_a_language_model_gives_candidate_ranks_only():
    (got,) = from_predictions([prediction(2)], {"y": 7})
    assert got == RankRecord("sft", "q", "u", "y", 1, 2, True, candidates_sha("xyz"), 7, None)
    (miss,) = from_predictions([prediction(MISS)])
    assert (miss.rank, miss.valid, miss.target_edges) == (MISS, False, None)


def test_candidates_are_the_same_in_any_order_and_never_by_joining():
    assert candidates_sha(["a", "b"]) == candidates_sha(["b", "a"]) != candidates_sha(["a", "c"])
    assert candidates_sha(["ab", "c"]) != candidates_sha(["a", "bc"])


def test_scores_give_both_ranks():
    items = [Item(f"i{n}", "T", None, ()) for n in range(6)]
    data = build_dataset(name="d", domain="movies", users=[User("u", ())], items=items, user_rows=np.zeros(6, int),
                         item_rows=np.arange(6), rating=np.full(6, 5.0), timestamp=np.arange(6), split_seed=0)
    query = Query("test-u-i2", "test", 0, 2, 2, (4, 2, 5))
    scores = np.array([[9.0, 8.0, 5.0, 6.0, 5.0, 1.0]], dtype=np.float32)
    (got,) = from_scores("ease", data, [query], scores, seen_offsets=np.array([0, 2]), seen_items=np.array([0, 1]),
                         target_edges=np.array([3, 1, 4, 1, 5, 9]))
    # i4 ties with the target and counts against the model; i0 and i1 are seen, i3 is better.
    assert (got.rank, got.full_rank, got.position, got.target_edges) == (2, 3, 1, 4)
    assert (got.target, got.user_id, got.candidates_sha) == ("i2", "u", candidates_sha(["i2", "i4", "i5"]))


@given(st.integers(1, 8).flatmap(lambda n: st.lists(st.tuples(
    st.lists(st.integers(-2, 2), min_size=n, max_size=n), st.integers(0, n - 1),
    st.lists(st.integers(0, n - 1), max_size=10)), min_size=1, max_size=4)))
def test_catalogue_ranks_are_those_of_a_sort_without_the_seen_items(cases):
    scores = np.array([scores for scores, _, _ in cases], dtype=np.float32)
    offsets = np.cumsum([0, *(len(seen) for _, _, seen in cases)])
    items = [item for _, _, seen in cases for item in seen]
    expected = []
    for row, target, seen in cases:
        left = [item for item in range(len(row)) if item == target or item not in seen]
        expected.append(sorted(left, key=lambda j: (-row[j], j == target)).index(target) + 1)
    assert rank_in_catalogue(scores, [t for _, t, _ in cases], offsets, items).tolist() == expected


def test_catalogue_ranks_refuse_nonsense():
    scores = np.zeros((2, 3))
    with pytest.raises(ValueError, match="1 NaN"):
        rank_in_catalogue(np.array([[np.nan, 0.0]]), [0], [0, 0], [])
    with pytest.raises(ValueError, match=r"Q targets and Q \+ 1 offsets"):
        rank_in_catalogue(scores, [0], [0, 0, 0], [])
    with pytest.raises(ValueError, match="targets must be item indices"):
        rank_in_catalogue(scores, [0, 3], [0, 0, 0], [])
    with pytest.raises(ValueError, match="seen_items must be item indices"):
        rank_in_catalogue(scores, [0, 1], [0, 1, 1], [-1])
    with pytest.raises(ValueError, match="rise from 0 to the 2 seen items"):
        rank_in_catalogue(scores, [0, 1], [0, 1, 1], [0, 1])


def test_hand_worked_row():
    # Five users: first, second, third, sixth, invalid.
    records = [record(n, rank) for n, rank in enumerate([1, 2, 3, 6, MISS])]
    row = summarize_ranks(records, system="ease", **ROW)
    assert [row[f"hr@{k}"] for k in (1, 3, 5, 10)] == [0.2, 0.6, 0.6, 0.8]
    assert row["ndcg@3"] == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / 5)
    assert row["ndcg@10"] == pytest.approx((1 + 1 / math.log2(3) + 1 / 2 + 1 / math.log2(7)) / 5)
    assert row["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 6) / 5)
    assert (row["users"], row["valid_rate"]) == (5, 0.8)
    assert "full_hr@10" not in row
    json.dumps(row, allow_nan=False)


def test_full_metrics_need_every_user():
    whole = [record(0, full=10.0), record(1, full=11.0)]
    row = summarize_ranks(whole, system="ease", **ROW)
    assert row["full_hr@10"] == 0.5
    assert row["full_ndcg@10"] == pytest.approx(1 / math.log2(11) / 2)
    assert "full_hr@10" not in summarize_ranks([whole[0], record(1)], system="ease", **ROW)


def test_rows_of_other_systems_or_repeated_queries_are_refused():
    for records in ([], [record(0), record(0)], [record(0), replace(record(1), system="sasrec")]):
        with pytest.raises(ValueError, match="a row must summarise"):
            summarize_ranks(records, system="ease", **ROW)


def test_position_bias_is_a_hit_rate_by_number():
    records = [record(n, 1 if n < 3 else 4, position=n % 2 * 19) for n in range(6)]
    assert by_position(records) == [
        {"number": 1, "users": 3, "hr@1": 2 / 3, "hr@3": 2 / 3},
        {"number": 20, "users": 3, "hr@1": 1 / 3, "hr@3": 1 / 3}]


def test_position_bias_is_found_and_not_invented():
    fair = [record(n, 1 + (n // 20) % 3, position=n % 20) for n in range(600)]
    biased = [record(n, 1 if n % 20 < 5 else 9, position=n % 20) for n in range(600)]
    assert position_p(by_position(fair)) == pytest.approx(1)
    assert position_p(by_position(biased)) == pytest.approx(0, abs=1e-6)
    assert position_p(by_position([record(0, MISS), record(1, MISS, 3)])) is None


def test_runs_that_ask_the_same_are_no_more_people():
    """Three runs answer alike: as many hits as one, and no more reason to believe in a bias."""
    one = [record(n, 1 if n % 7 < 3 + (n % 5 == 0) else 9, position=n % 5) for n in range(60)]
    alone, together = by_position(one), by_position(one * 3)
    assert [entry.get("questions") for entry in alone] == [None] * 5
    assert [(entry["users"], entry["questions"]) for entry in together] == [(36, 12)] * 5
    p = position_p(alone)
    assert p is not None and 0.1 < p < 0.99 and position_p(together) == pytest.approx(p)
    redrawn = [replace(entry, candidates_sha=f"{seed}") for seed in range(3) for entry in one]
    assert "questions" not in by_position(redrawn)[0], "other lists are other questions"


def test_popularity_buckets_hold_equal_numbers_of_users():
    records = [record(n, 1 if n >= 6 else 9, edges=10 * n) for n in reversed(range(12))]
    got = by_popularity(records)
    assert [bucket["users"] for bucket in got] == [3, 3, 2, 2, 2]
    assert [bucket["edges"] for bucket in got] == [[0, 20], [30, 50], [60, 70], [80, 90], [100, 110]]
    assert [bucket["hr@1"] for bucket in got] == [0, 0, 1, 1, 1]
    assert by_popularity(records[::-1]) == got
    twice = by_popularity([replace(r, answer=n) for r in records for n in (0, 1)])
    assert [bucket | {"users": bucket["users"] // 2} for bucket in twice] == [
        bucket | {"questions": bucket["users"]} for bucket in got], "answers to a question stay together"
    assert "by_popularity" not in summarize_ranks([record(0, edges=None)], system="ease", **ROW)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([1.0, 2.0, 5.0, MISS])), min_size=1, max_size=40))
def test_breakdowns_average_to_the_whole(cases):
    records = [record(n, rank, position=edges, edges=edges) for n, (edges, rank) in enumerate(cases)]
    row = summarize_ranks(records, system="ease", **ROW)
    for entries in (row["by_position"], row["by_popularity"]):
        assert sum(e["users"] for e in entries) == len(cases)
        for metric in ("hr@1", "hr@3"):
            assert sum(e["users"] * e[metric] for e in entries) / len(cases) == pytest.approx(row[metric])
    sizes = [bucket["users"] for bucket in row["by_popularity"]]
    assert max(sizes) - min(sizes) <= 1
