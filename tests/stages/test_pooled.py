"""Systems pooled over seeds: what is tested against what, and on which answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from r2rec_jax.evaluation.ranking import MISS
from r2rec_jax.evaluation.ranks import RankRecord
from r2rec_jax.evaluation.significance import holm, paired_bootstrap
from r2rec_jax.stages.experiments.pooled import (
    Pool,
    breakdowns,
    compared,
    compared_searches,
    compared_variants,
    diagnostics,
)


def records(skill: float, seed: int, users: int = 30) -> list[RankRecord]:
    rng = np.random.default_rng(seed)
    ranks = np.where(rng.random(users) < skill, 1.0, np.where(rng.random(users) < 0.3, MISS, 7.0))
    return [RankRecord("s", f"q{n}", f"u{n}", f"i{n}", n % 20, rank, rank != MISS, f"{seed}-{n}", n)
            for n, rank in enumerate(ranks.tolist())]


def pool_of(**skills: float) -> Pool:
    pool = Pool()
    for seed in (0, 1):
        for name, skill in skills.items():
            system, _, chains = name.partition("__")
            pool.add("main", "main", system.replace("_", "+"), chains or "own", "test", seed, records(skill, seed))
    return pool


def test_tests_pool_the_seeds_and_resample_users() -> None:
    found = compared(pool_of(pretrained=0.2, sft=0.5, sft_grpo=0.9))
    assert [(t["system"], t["minus"], t["metric"]) for t in found][::4] == [
        ("sft+grpo", "sft", "hr@1"), ("sft", "pretrained", "hr@1"), ("sft+grpo", "pretrained", "hr@1")]
    test = found[0]
    hits = [[float(r.rank == 1) for seed in (0, 1) for r in records(skill, seed)] for skill in (0.9, 0.5)]
    expected = paired_bootstrap(*hits, users=[r.user_id for seed in (0, 1) for r in records(0.9, seed)])
    assert test["difference"] == pytest.approx(expected.difference) and test["users"] == 30 and test["pairs"] == 60
    assert test["p"] < 0.05 and test["mean"] - test["mean_minus"] == pytest.approx(test["difference"])
    assert test["by_seed"] == [pytest.approx(np.mean(hits[0][n:n + 30]) - np.mean(hits[1][n:n + 30])) for n in (0, 30)]
    family = [t for t in found if t["metric"] == "hr@1"]
    assert [t["p_holm"] for t in family] == holm([t["p"] for t in family])


def test_a_model_trained_further_is_tested_against_itself_as_it_came() -> None:
    systems = {"base": 0.1, "pretrained": 0.4, "sft": 0.5, "sft_grpo": 0.9, "base-likelihood": 0.3,
               "pretrained-likelihood": 0.6}
    for order in (systems, dict(reversed(systems.items()))):
        pairs = [(t["system"], t["minus"]) for t in compared(pool_of(**order)) if t["metric"] == "hr@1"]
        assert pairs == [
            ("sft+grpo", "sft"), ("sft", "pretrained"), ("sft+grpo", "pretrained"),
            ("sft+grpo", "pretrained-likelihood"), ("pretrained", "base"), ("sft+grpo", "base"),
            ("pretrained-likelihood", "base-likelihood"), ("sft+grpo", "base-likelihood")]


def test_a_variant_is_held_against_the_same_part_of_the_main_table() -> None:
    pool = pool_of(base=0.1, sft=0.5)
    for system, skill in (("pretrained", 0.3), ("sft", 0.8)):
        for seed in (0, 1):
            pool.add(None, "adapted", system, "own", "test", seed, records(skill, seed))
    pairs = [(t["system"], t["minus"], t["experiments"]) for t in compared_variants(pool) if t["metric"] == "hr@1"]
    assert pairs == [("sft", "pretrained", ["adapted", "adapted"]), ("sft", "sft", ["adapted", "main"]),
                     ("pretrained", "base", ["adapted", "main"])]


def test_a_line_before_the_target_costs_the_first_place_there_alone() -> None:
    pool = pool_of(sft=0.5)
    for seed in (0, 1):
        own = records(0.9, seed)
        pool.add("main", "main", "sft+grpo", "own", "test", seed, own, {r.query_id: 0.0 for r in own})
    found = {t["metric"]: t for t in compared(pool)}
    assert found["hr@1"]["mean"] > 0.5 and found["first@1"]["mean"] == 0
    assert found["first@1"]["mean_minus"] == found["hr@1"]["mean_minus"], "a ranking without lines has its first place"


def test_several_answers_to_a_question_count_as_their_mean() -> None:
    once, pool = pool_of(sft=0.5, sft_grpo=0.7), pool_of(sft=0.5)
    for seed in (0, 1):
        own = records(0.7, seed)
        missed = [replace(r, answer=1, rank=MISS, valid=False) for r in own]
        pool.add("main", "main", "sft+grpo", "own", "test", seed, [*own, *missed])
    found, single = ({t["metric"]: t for t in compared(p)} for p in (pool, once))
    for metric in ("hr@1", "ndcg@3", "first@1"):
        assert found[metric]["mean"] == pytest.approx(single[metric]["mean"] / 2)
        assert (found[metric]["users"], found[metric]["pairs"]) == (30, 60)


def test_other_candidates_are_refused() -> None:
    pool = pool_of(sft=0.5)
    pool.add("main", "main", "sft+grpo", "own", "test", 0, records(0.9, seed=4))
    with pytest.raises(ValueError, match=r"sft\+grpo of main and sft of main differ for query q0 of seed 0"):
        compared(pool)


def test_the_first_headline_gives_a_system_and_searches_give_none() -> None:
    pool = pool_of(sft=0.5)
    pool.add(None, "more data", "sft", "own", "test", 0, records(0.9, 0))
    pool.add("later", "later", "sft", "own", "test", 0, records(0.9, 0))
    pool.add("later", "later", "base", "own", "validation", 0, records(0.9, 0))
    assert {name: entry.experiment for name, entry in pool.main().items()} == {"sft": "main"}
    (row,) = breakdowns(pool)
    assert sum(bucket["users"] for bucket in row["by_popularity"]) == sum(e["users"] for e in row["by_position"]) == 60


def test_an_experiment_outside_the_main_table_is_tested_within_itself_or_against_main() -> None:
    pool = pool_of(sft=0.5, popularity=0.2)
    for seed in (0, 1):
        for system, skill in (("sft", 0.1), ("sft+grpo", 0.9)):
            pool.add(None, "drawn", system, "own", "test", seed, records(skill, seed))
    found = compared_variants(pool)
    assert [(t["system"], t["minus"], t["experiments"]) for t in found][::4] == [
        ("sft+grpo", "sft", ["drawn", "drawn"]), ("sft", "sft", ["drawn", "main"]),
        ("sft+grpo", "popularity", ["drawn", "main"])]
    assert found[0]["mean_minus"] == np.mean([r.rank == 1 for seed in (0, 1) for r in records(0.1, seed)])
    assert compared_variants(pool_of(sft=0.5, popularity=0.2)) == []
    pool.add(None, "more", "sft", "own", "test", 0, records(0.45, 0))
    both = [t for t in compared_variants(pool) if t["metric"] == "hr@1"]
    assert {t["experiments"][0] for t in both} == {"drawn", "more"}
    assert [t["p_holm"] for t in both] == list(holm([t["p"] for t in both])), "over the whole table"
    found = compared_variants(pool)
    pool.add(None, "other negatives", "sft", "own", "test", 0, records(0.9, seed=4))
    assert compared_variants(pool) == found, "nothing is subtracted where the candidates differ"


def _with_sft_of_its_own() -> Pool:
    pool = Pool(continued={"longer"})  # the headline has another SFT than the list
    pool.add("main", "main", "sft", "own", "test", 0, records(0.5, 0))
    pool.add(None, "longer", "sft+grpo", "own", "test", 0, records(0.9, 0))
    return pool


def test_grpo_with_other_settings_is_held_against_the_sft_that_it_started_from() -> None:
    pool = Pool(continued={"main", "longer"})
    for seed in (0, 1):
        for system, skill in (("sft", 0.5), ("base-likelihood", 0.3), ("base", 0.2)):
            pool.add("main", "main", system, "own", "test", seed, records(skill, seed))
        for experiment in ("longer", "other sft"):
            pool.add(None, experiment, "sft+grpo", "own", "test", seed, records(0.9, seed))
    found = [(t["experiments"], t["minus"]) for t in compared_variants(pool)[::4]]
    assert found == [(["longer", "main"], "sft"), (["longer", "main"], "base"), (["longer", "main"], "base-likelihood")]
    assert "longer" not in {t["experiments"][0] for t in compared_variants(_with_sft_of_its_own())}
    first = compared_variants(pool)[0]
    assert first["mean_minus"] == np.mean([r.rank == 1 for seed in (0, 1) for r in records(0.5, seed)])


def test_searches_are_held_against_the_first_of_them() -> None:
    pool = pool_of(sft=0.9)
    for name, skill in (("as it is", 0.5), ("higher rate", 0.9)):
        pool.add(None, name, "sft", "own", "validation", 0, records(skill, 0))
    found = compared_searches(pool)
    assert [(t["experiments"], t["seeds"]) for t in found] == [(["higher rate", "as it is"], [0])] * 4
    assert found[0]["difference"] > 0 and len(compared(pool)) == 0, "and stay out of all else"


def test_an_experiment_may_name_what_it_is_held_against() -> None:
    pool = pool_of(sft=0.5)
    named = Pool({"tokens": "adapted", "rate": "as it is"})
    for seed in (0, 1):
        named.add("main", "main", "sft", "own", "test", seed, records(0.5, seed))
        for experiment, skill in (("adapted", 0.6), ("tokens", 0.9)):
            named.add(None, experiment, "sft", "own", "test", seed, records(skill, seed))
    found = compared_variants(named)[::4]
    assert [t["experiments"] for t in found] == [["adapted", "main"], ["tokens", "adapted"]]
    expected = [np.mean([r.rank == 1 for seed in (0, 1) for r in records(skill, seed)]) for skill in (0.9, 0.6)]
    assert [found[1]["mean"], found[1]["mean_minus"]] == expected
    named.add(None, "rate", "sft", "own", "validation", 0, records(0.9, 0))
    assert compared_searches(named) == [], "what it is held against is not there yet, and nothing stands in for it"
    named.add(None, "as it is", "sft", "own", "validation", 0, records(0.5, 0))
    assert [t["experiments"] for t in compared_searches(named)][::4] == [["rate", "as it is"]]
    assert compared_variants(pool) == []


def test_chains_are_compared_with_the_systems_own() -> None:
    found = diagnostics(pool_of(sft=0.8, sft__swapped=0.2, sft__none=0.8))
    assert [entry["chains"] for entry in found] == ["own", "swapped", "none"]
    assert [len(entry["tests"]) for entry in found] == [0, 4, 4]
    worse, same = found[1]["tests"][0], found[2]["tests"][0]
    assert worse["difference"] < -0.3 and worse["p"] < 0.05 and (same["difference"], same["p"]) == (0, 1)
