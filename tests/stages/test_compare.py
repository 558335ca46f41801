from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r2rec_jax.config import (
    DataConfig,
    EndpointConfig,
    EvaluateConfig,
    PromptConfig,
    SftConfig,
    TrainConfig,
    as_plain,
    fingerprint,
)
from r2rec_jax.evaluate import main as evaluate
from r2rec_jax.evaluation.ranks import RankRecord, write_ranks
from r2rec_jax.evaluation.summary import summarize_ranks
from r2rec_jax.files import write_json
from r2rec_jax.stages.compare import compare_folders, find_runs
from r2rec_jax.stages.run import RunFolder, prompts_identity


def records(system: str, seed: int, skill: float, users: int = 40, full: bool = False, lists: str = "uniform"
            ) -> list[RankRecord]:
    rng = np.random.default_rng([seed, len(system)])
    ranks = np.where(rng.random(users) < skill, 1, 1 + rng.integers(1, 20, users))
    return [RankRecord(system, f"test-{n}", f"u{n}", f"i{n}", n % 20, float(rank), True, f"{lists}-{seed}-{n}", n,
                       float(10 * rank) if full else None) for n, rank in enumerate(ranks.tolist())]


def write_baseline(folder: Path, system: str, seed: int, skill: float, negatives=("uniform",), **settings) -> Path:
    rows = []
    for name in negatives:
        own = records(system, seed, skill, full=True, lists=name)
        write_ranks(folder / f"ranks-test-{name}.jsonl", own)
        rows.append(summarize_ranks(own, system=system, dataset="ml-100k", negatives=name, split="last-positive",
                                    seed=seed))
    write_json(folder / "result.json", {"rows": rows, "settings": settings})
    return folder


def write_run(folder: Path, skills: dict[str, float], *, lists: str = "uniform", **changes) -> Path:
    config = replace(TrainConfig(run_dir=str(folder), data=DataConfig(sft_queries=9)), **changes)
    write_json(folder / "run.json", {"config": as_plain(config)})
    for system, skill in skills.items():
        write_ranks(folder / "evaluate" / f"ranks-test-uniform-{system}.jsonl",
                    records(system, config.data.split_seed, skill, lists=lists))
    return folder


@pytest.fixture
def folders(tmp_path) -> list[str]:
    for seed in (0, 1):
        for system, skill in (("popularity", 0.1), ("sasrec", 0.8)):
            write_baseline(tmp_path / "base" / f"seed-{seed}" / system, system, seed, skill, ("uniform", "popularity"))
    write_run(tmp_path / "run", {"base": 0.05, "sft+grpo": 0.5})
    return [str(tmp_path / "run"), str(tmp_path / "base")]


def test_runs_and_baselines_stand_in_one_block(folders):
    reports = compare_folders(folders)
    assert [(r.dataset, r.negatives, r.split) for r in reports] == [
        ("ml-100k", "uniform", "last-positive"), ("ml-100k", "popularity", "last-positive")]
    uniform, popularity = reports
    assert [(row["system"], row["seed"]) for row in uniform.rows] == [
        ("popularity", [0, 1]), ("sasrec", [0, 1]), ("base", [0]), ("sft+grpo", [0])]
    assert [row["system"] for row in popularity.rows] == ["popularity", "sasrec"]
    assert ["full_hr@10" in row for row in uniform.rows] == [True, True, False, False]
    assert {(t.a, t.b): t.split_seeds for t in uniform.tests}[("sasrec", "sft+grpo")] == (0,)
    assert {(t.a, t.b): t.split_seeds for t in uniform.tests}[("popularity", "sasrec")] == (0, 1)


def test_a_folder_given_twice_counts_once(folders):
    assert len(find_runs(folders)) == len(find_runs([*folders, folders[0], folders[1] + "/seed-0"])) == 10


def test_other_settings_are_other_systems_and_seeds_are_not(tmp_path):
    write_run(tmp_path / "a", {"base": 0.1, "sft": 0.5})
    write_run(tmp_path / "b", {"base": 0.1, "sft": 0.5}, train_seed=1, evaluate=EvaluateConfig(users=7))
    write_run(tmp_path / "c", {"base": 0.1, "sft": 0.4}, train_seed=2, sft=SftConfig(lr=1e-3))
    (report,) = compare_folders([str(tmp_path)])
    assert [(row["system"], row["seed"]) for row in report.rows] == [
        ("base", [0, 1, 2]), ("sft [a]", [0, 1]), ("sft [c]", [2])]
    write_run(tmp_path / "d", {"base": 0.2}, prompts=PromptConfig(chains=False))
    (report,) = compare_folders([str(tmp_path / "a"), str(tmp_path / "d")])
    assert [(row["system"], row["prompt"]) for row in report.rows] == [
        ("base [a]", None), ("base [d]", "no chains"), ("sft", None)]


def test_runs_that_were_asked_otherwise_are_other_systems(tmp_path):
    write_run(tmp_path / "a", {"sft": 0.5, "sft-likelihood": 0.5})
    write_run(tmp_path / "b", {"sft": 0.5, "sft-likelihood": 0.5}, train_seed=1, evaluate=EvaluateConfig(temperature=0))
    (report,) = compare_folders([str(tmp_path)])
    assert [(row["system"], row["seed"]) for row in report.rows] == [
        ("sft [a]", [0]), ("sft [b]", [1]), ("sft-likelihood", [0, 1])]
    write_run(tmp_path / "a", {"sft-likelihood-prior": 0.5})
    write_run(tmp_path / "b", {"sft-likelihood-prior": 0.5}, train_seed=1,
              evaluate=EvaluateConfig(temperature=0, method="likelihood", likelihood="prior"))
    (report,) = compare_folders([str(tmp_path)])
    assert ("sft-likelihood-prior", [0, 1]) in [(row["system"], row["seed"]) for row in report.rows]


def answered(folder: Path, system: str, asked: EvaluateConfig) -> None:
    """Ranks as an evaluation leaves them."""
    write_ranks(folder / "evaluate" / f"ranks-test-uniform-{system}.jsonl", records(system, 0, 0.5),
                asked.answer_settings("uniform"))


def reported(folder: Path, name: str, created: str, asked: EvaluateConfig, *systems: str) -> None:
    """A result file as an earlier version left it, which drew one answer."""
    plain = {key: value for key, value in as_plain(asked).items() if key != "answers"}
    write_json(folder / "evaluate" / f"{name}.json", {"created": created, "settings": plain,
                                                      "rows": [{"system": system} for system in systems]})


def test_ranks_of_settings_that_the_run_has_no_more_are_left_out(tmp_path, capsys):
    """Any start rewrites run.json; one that does not evaluate leaves the ranks that lie there."""
    before, now = EvaluateConfig(temperature=0), EvaluateConfig(temperature=0.31, answers=3)
    folder = write_run(tmp_path / "run", {}, evaluate=before)
    for system in ("pretrained", "sft"):
        answered(folder, system, before)
    assert [run.system for run in find_runs([str(folder)])] == ["pretrained", "sft"]
    write_run(folder, {}, evaluate=now)
    with pytest.raises(ValueError, match="must hold ranks of test queries under its settings; it has none; evaluate"):
        find_runs([str(folder)])
    answered(folder, "sft", now)
    capsys.readouterr()
    assert [run.system for run in find_runs([str(folder)])] == ["sft"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert line.endswith("pretrained.jsonl is left out, it was answered under other settings than its run has now "
                         "(temperature 0 instead of 0.31, answers 1 instead of 3); evaluate pretrained again")


def test_other_users_and_batches_are_not_other_answers(tmp_path):
    folder = write_run(tmp_path / "run", {}, evaluate=EvaluateConfig(users=7, batch_size=2, method="likelihood"))
    answered(folder, "sft", EvaluateConfig())
    answered(folder, "sft-likelihood-prior", EvaluateConfig(method="likelihood", likelihood="prior", temperature=0))
    assert {run.system for run in find_runs([str(folder)])} == {"sft", "sft-likelihood-prior"}


def test_of_what_kept_no_settings_beside_its_ranks_result_files_tell(tmp_path, capsys):
    before, now = EvaluateConfig(temperature=0), EvaluateConfig(temperature=0.31)
    folder = write_run(tmp_path / "run", {"pretrained": 0.1, "sft": 0.5, "sft+grpo": 0.6, "sft-likelihood": 0.5},
                       evaluate=now)
    assert len(find_runs([str(folder)])) == 4, "nothing is known, so it is what the run has"
    reported(folder, "results-test", "2026-01-01T00:00:00+00:00", before, "pretrained", "sft")
    reported(folder, "results-test-sft", "2026-01-02T00:00:00+00:00", now, "sft")
    reported(folder, "results-test-base", "2025-12-31T00:00:00+00:00", now, "pretrained")
    assert {run.system for run in find_runs([str(folder)])} == {"sft", "sft+grpo", "sft-likelihood"}
    assert capsys.readouterr().err.count("left out") == 1
    answered(folder, "sft", before)
    write_ranks(folder / "evaluate" / "ranks-test-uniform-sft.jsonl", records("sft", 0, 0.9))
    assert "sft" in [run.system for run in find_runs([str(folder)])], "what lies beside them is of other ranks"


def test_hosted_models_of_a_run_are_told_apart_by_how_they_were_asked(tmp_path, capsys):
    """And left out where the run has been trained anew since, on other prompts."""
    for seed, temperature in enumerate((0.6, 0.6, 0.0)):
        folder = write_run(tmp_path / f"run-{seed}", {"sft": 0.5}, train_seed=seed)
        write_ranks(folder / "hosted" / "ranks-test-uniform-gpt.jsonl", records("gpt", 0, 0.4))
        asked = as_plain(EvaluateConfig(temperature=temperature))
        if seed == 0:  # of a version that knew no number of answers
            del asked["answers"]
        identity = fingerprint(prompts_identity(RunFolder.existing(folder), "uniform"))
        write_json(folder / "hosted" / "results-test-gpt.json", {"identity": identity, "settings": {
            "evaluate": asked, "server": as_plain(EndpointConfig(model="gpt", concurrency=seed + 1))}})
    (report,) = compare_folders([str(tmp_path)])
    assert [(row["system"], row["seed"]) for row in report.rows] == [
        ("sft", [0, 1, 2]), ("gpt [run-0]", [0, 1]), ("gpt [run-2]", [2])]
    write_run(tmp_path / "run-2", {"sft": 0.5}, train_seed=3)
    (report,) = compare_folders([str(tmp_path)])
    assert [row["system"] for row in report.rows] == ["sft", "gpt"]
    assert "gpt.jsonl is left out" in capsys.readouterr().err


def test_baselines_of_other_settings_are_told_apart(tmp_path):
    write_baseline(tmp_path / "x" / "ease", "ease", 0, 0.5, l2=500.0)
    write_baseline(tmp_path / "y" / "ease", "ease", 0, 0.4, l2=10.0)
    (report,) = compare_folders([str(tmp_path)])
    assert [row["system"] for row in report.rows] == ["ease [x/ease]", "ease [y/ease]"]


def test_rows_of_validation_queries_are_no_test_results(tmp_path):
    folder = write_baseline(tmp_path / "o4", "o4-mini", 0, 0.5)
    result = json.loads((folder / "result.json").read_text())
    result["rows"].append({**result["rows"][0], "split": "last-positive-but-one"})
    write_json(folder / "result.json", result)
    assert len(find_runs([str(folder)])) == 1


def test_what_cannot_be_compared_is_refused(tmp_path, folders):
    with pytest.raises(ValueError, match="is no folder"):
        find_runs([str(tmp_path / "nowhere")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty must be or hold a run"):
        find_runs([str(tmp_path / "empty")])
    write_run(tmp_path / "unevaluated", {})
    with pytest.raises(ValueError, match="evaluate it first"):
        find_runs([str(tmp_path / "unevaluated")])
    write_run(tmp_path / "other", {"sft": 0.5}, lists="other")
    with pytest.raises(ValueError, match=r"popularity \(.*seed-0/popularity\) and sft \(.*other\) have other ones"):
        compare_folders([*folders, str(tmp_path / "other")])
    with pytest.raises(ValueError, match="--negatives must be a sampler"):
        compare_folders(folders, negatives="disliked")


def test_a_parent_skips_what_was_never_evaluated(tmp_path, folders, capsys):
    write_run(tmp_path / "unevaluated", {})
    assert len(find_runs([str(tmp_path)])) == 10
    assert "unevaluated is left out" in capsys.readouterr().err


def test_the_entry_prints_and_writes(tmp_path, folders, capsys):
    out = tmp_path / "out"
    assert evaluate(["--compare", *folders, "--negatives", "uniform", f"--markdown={out / 'table.md'}",
                     f"--plot={out / 'plots' / 'b.png'}", "--json", str(out / "c.json")]) == 0
    printed = capsys.readouterr().out
    assert "MovieLens (ml-1m), the paper's" in printed and "sft+grpo" in printed
    text = (out / "table.md").read_text()
    assert "](plots/b.png)" in text and (out / "plots" / "b.png").stat().st_size > 10_000
    result = json.loads((out / "c.json").read_text())
    assert [row["system"] for row in result["rows"]] == ["popularity", "sasrec", "base", "sft+grpo"]
    assert len(result["tests"]) == 6 * 4 and {"p", "p_holm", "wilcoxon", "wilcoxon_holm"} <= result["tests"][0].keys()
    assert sum(sum(row["breaks_the_law"]) for row in result["paper"]) == 13
    assert {"commit", "hardware", "config_sha256"} <= result.keys()


def test_the_entry_refuses_in_one_line(folders, capsys):
    assert evaluate(["--compare", folders[0] + "x"]) == 2
    assert evaluate(["--compare", folders[0], "--checkpoint", "sft"]) == 2
    assert evaluate(["--compare"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)


def test_help_is_found_where_it_is_said_to_be(capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate(["--compare", "--help"])
    assert not stopped.value.code and "--common_users" in capsys.readouterr().out


def test_the_same_input_gives_the_same_numbers(folders):
    assert compare_folders(folders) == compare_folders(folders[::-1])
