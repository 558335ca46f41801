from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from r2rec_jax.evaluation.blocks import Block, SystemRun, check_block, gather
from r2rec_jax.evaluation.comparison import (
    TESTED,
    best_systems,
    compare_systems,
    report_block,
    summarize_system,
    worse_than_best,
)
from r2rec_jax.evaluation.paper import table_order
from r2rec_jax.evaluation.ranks import RankRecord
from r2rec_jax.evaluation.significance import paired_bootstrap, wilcoxon_p


def make_run(system: str = "ease", skill: float = 0.5, *, seed: int = 0, split_seed: int | None = None,
             users: int = 60, folder: str = "", variant: str = "v", **changes) -> SystemRun:
    """A system that ranks the target first with probability ``skill``, else somewhere behind."""
    split_seed = seed if split_seed is None else split_seed
    rng = np.random.default_rng([seed, split_seed, len(system), int(1000 * skill)])
    ranks = np.where(rng.random(users) < skill, 1, rng.integers(2, 21, users))
    records = tuple(RankRecord(system, f"q{n}", f"u{n}", f"i{n}", n % 20, float(rank), True, f"sha-{split_seed}-{n}",
                               3 * n) for n, rank in enumerate(ranks.tolist()))
    return SystemRun(system, variant, folder or f"runs/seed-{seed}/{system}", "ml-1m", "uniform", "last-positive", seed,
                     split_seed, records, **changes)


def one_block(*runs: SystemRun) -> Block:
    (block,) = gather(runs, table_order)
    return block


def test_seeds_of_one_variant_become_one_system():
    runs = [make_run("sasrec", seed=s) for s in (2, 0, 1)] + [make_run("popularity", seed=s) for s in (0, 1)]
    block = one_block(*runs)
    assert [(s.label, [r.seed for r in s.runs]) for s in block.systems] == [
        ("popularity", [0, 1]), ("sasrec", [0, 1, 2])]


def test_other_conditions_are_other_blocks():
    runs = [make_run(), replace(make_run(), negatives="popularity"), replace(make_run(), split="global-time"),
            replace(make_run(), dataset="ml-100k")]
    blocks = gather(runs)
    assert {(b.dataset, b.negatives, b.split) for b in blocks} == {
        ("ml-1m", "uniform", "last-positive"), ("ml-1m", "popularity", "last-positive"),
        ("ml-1m", "uniform", "global-time"), ("ml-100k", "uniform", "last-positive")}


def test_variants_of_one_system_carry_their_folder():
    block = one_block(make_run("sft", folder="x/a"), make_run("sft", folder="x/b", variant="w"), make_run("base"))
    assert [s.label for s in block.systems] == ["base", "sft [a]", "sft [b]"]
    block = one_block(make_run("sft", folder="x/run"), make_run("sft", folder="y/run", variant="w"))
    assert [s.label for s in block.systems] == ["sft [x/run]", "sft [y/run]"]


def test_a_seed_given_twice_is_refused():
    with pytest.raises(ValueError, match=r"ease with split_seed 0 and seed 0 is in a and in b"):
        gather([make_run(folder="a"), make_run(folder="b")])


def test_other_candidates_are_refused_by_name():
    other = make_run("sasrec")
    changed = replace(other.records[7], candidates_sha="else")
    other = replace(other, records=(*other.records[:7], changed, *other.records[8:]))
    block = one_block(make_run("ease"), other)
    with pytest.raises(ValueError, match=r"ease \(runs/seed-0/ease\) and sasrec \(runs/seed-0/sasrec\).*query q7"):
        check_block(block)
    with pytest.raises(ValueError, match="same candidates"):
        check_block(block, common_users=True)


def test_systems_without_a_common_draw_are_refused():
    with pytest.raises(ValueError, match=r"ease was drawn with split_seed 0 and sasrec with 1, 2"):
        check_block(one_block(make_run("ease"), make_run("sasrec", seed=1), make_run("sasrec", seed=2)))


def test_fewer_users_are_refused_or_shared():
    block = one_block(make_run("ease"), make_run("sasrec", users=25))
    with pytest.raises(ValueError, match=r"of 60 queries of ease .*, sasrec .* ranked 25 .*--common_users"):
        check_block(block)
    shared = check_block(block, common_users=True)
    assert [len(run.records) for system in shared.systems for run in system.runs] == [25, 25]
    apart = replace(make_run("gru4rec"), records=tuple(replace(r, query_id=f"z{r.query_id}")
                                                       for r in make_run("gru4rec").records))
    with pytest.raises(ValueError, match="ranked 0"):
        check_block(one_block(make_run("ease"), apart), common_users=True)


def test_rows_are_means_with_the_deviation_over_runs():
    block = one_block(*(make_run("ease", seed=s) for s in range(3)))
    row = summarize_system(block, block.systems[0])
    hits = [np.mean([r.rank == 1 for r in run.records]) for run in block.systems[0].runs]
    assert row["hr@1"] == pytest.approx(np.mean(hits))
    assert row["sd"]["hr@1"] == pytest.approx(np.std(hits, ddof=1))
    assert (row["seed"], row["split_seed"], row["runs"], row["users"]) == ([0, 1, 2], [0, 1, 2], 3, 60)
    assert sum(entry["users"] for entry in row["by_position"]) == 180
    assert summarize_system(one_block(make_run()), one_block(make_run()).systems[0])["sd"] == {}


def test_tests_pair_by_draw_and_query_and_average_training_seeds():
    a = [make_run("sft", 0.6, seed=s, split_seed=0) for s in (5, 6)]
    b = [make_run("ease", 0.3, seed=s) for s in (0, 1)]
    shuffled = replace(b[0], records=b[0].records[::-1])
    tests = compare_systems(check_block(one_block(*a, shuffled, b[1])), draws=500)
    assert {(t.a, t.b, t.metric) for t in tests} == {("ease", "sft", metric) for metric in TESTED}
    first = next(t for t in tests if t.metric == "hr@1")
    assert (first.split_seeds, first.users, first.pairs) == ((0,), 60, 60)
    ease = np.array([r.rank == 1 for r in b[0].records], float)
    sft = np.mean([[r.rank == 1 for r in run.records] for run in a], axis=0)
    order = np.argsort([r.query_id for r in b[0].records])
    expected = paired_bootstrap(ease[order], sft[order], draws=500)
    assert (first.difference, first.low, first.high) == pytest.approx(
        (expected.difference, expected.low, expected.high))
    assert first.p == expected.p == first.p_holm
    assert first.wilcoxon == pytest.approx(wilcoxon_p(ease, sft))


def test_of_several_draws_users_are_resampled_and_not_pairs():
    ease, sft = ([make_run(name, skill, seed=seed) for seed in (0, 1)] for name, skill in (("ease", 0.3), ("sft", 0.6)))
    tests = compare_systems(check_block(one_block(*ease, *sft)), draws=500)
    records = [[record for run in runs for record in sorted(run.records, key=lambda r: r.query_id)]
               for runs in (ease, sft)]
    owners = [record.user_id for record in records[0]]
    assert len(tests) == len(TESTED)
    for test in tests:
        a, b = (TESTED[test.metric]([record.rank for record in own]) for own in records)
        expected = paired_bootstrap(a, b, users=owners, draws=500)
        assert (test.split_seeds, test.users, test.pairs) == ((0, 1), 60, 120)
        assert (test.difference, test.low, test.high, test.p) == pytest.approx(
            (expected.difference, expected.low, expected.high, expected.p))
        assert test.wilcoxon == pytest.approx(wilcoxon_p(a, b, users=owners))


def test_holm_takes_all_pairs_of_a_metric():
    runs = [make_run(name, skill, users=400) for name, skill in (("ease", 0.5), ("sasrec", 0.5), ("caser", 0.7))]
    tests = compare_systems(one_block(*runs), draws=2000)
    own = sorted((t for t in tests if t.metric == "hr@1"), key=lambda t: t.p)
    assert len(own) == 3
    assert own[0].p_holm == pytest.approx(min(1, 3 * own[0].p))
    assert all(t.p <= t.p_holm and t.wilcoxon <= t.wilcoxon_holm for t in tests)


def test_what_is_worse_than_the_best_is_marked_and_only_that():
    runs = [make_run(name, skill, users=500) for name, skill in (("ease", 0.2), ("caser", 0.6), ("sasrec", 0.6))]
    report = report_block(one_block(*runs), draws=1000)
    assert best_systems(report.rows, "hr@1")[0] in ("caser", "sasrec")
    assert worse_than_best(report.rows, report.tests, "hr@1") == {"ease"}


def test_means_over_other_draws_are_not_ranked_against_each_other():
    """The mean of sasrec is the highest by its second draw alone; on the one that sft has too, sft is far above it."""
    sasrec = [make_run("sasrec", 0.3, users=400), make_run("sasrec", 0.95, seed=1, users=400)]
    ease = [make_run("ease", 0.1, seed=seed, users=400) for seed in (0, 1)]
    runs = (*sasrec, *ease, make_run("sft", 0.5, users=400))
    report = report_block(check_block(one_block(*runs)), draws=1000)
    assert best_systems(report.rows, "hr@1") == ["sasrec"] and worse_than_best(report.rows, report.tests, "hr@1") == {
        "ease"}
    shared = report_block(check_block(one_block(*runs), common_users=True), draws=1000)
    assert all(row["split_seed"] == [0] for row in shared.rows)
    assert best_systems(shared.rows, "hr@1") == ["sft"]
    assert worse_than_best(shared.rows, shared.tests, "hr@1") == {"sasrec", "ease"}


def test_equal_systems_share_the_first_place_unmarked():
    ease = make_run("ease")
    twin = replace(ease, system="item-knn", records=tuple(replace(r, system="item-knn") for r in ease.records))
    report = report_block(one_block(ease, twin), draws=300)
    assert sorted(best_systems(report.rows, "mrr")) == ["ease", "item-knn"]
    assert all(t.p == t.wilcoxon == 1 for t in report.tests)
    assert not worse_than_best(report.rows, report.tests, "mrr")
