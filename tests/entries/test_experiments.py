"""A list of experiments end to end: stopped, killed, gone on with, one failing; results, report and completions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from r2rec_jax.experiments import main as experiments
from tests.stages.smoke import write_list

ROOT = Path(__file__).resolve().parents[2]


def start(path: Path, results: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "r2rec_jax.experiments", str(path), "--results", str(results)], cwd=ROOT, text=True,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)})


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 120
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < deadline, f"{text!r} did not come in {log}"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_list_is_run_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
                                  ) -> None:
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    path, results, runs = write_list(tmp_path), tmp_path / "results", tmp_path / "runs"
    log = runs / "main" / "seed-0" / "log.txt"
    stopped = start(path, results)
    wait_for(log, "prepare: started")
    stopped.terminate()
    assert "stopped by SIGTERM; run the same command again to go on" in stopped.communicate(timeout=60)[1]
    assert stopped.returncode == 0 and not (runs / "main" / "seed-0" / "failed.json").exists()
    killed = start(path, results)
    wait_for(log, "pretrain: started")
    killed.send_signal(signal.SIGKILL)
    killed.wait(10)

    plain = yaml.safe_load(path.read_text())
    plain["experiments"][2]["set"]["prompts.max_tokens"] = 40
    path.write_text(yaml.safe_dump(plain))
    data = (tmp_path / "data").rename(tmp_path / "moved")
    argv = [str(path), "--results", str(results), "--data_path", str(data)]
    capfd.readouterr()
    assert experiments([*argv, "--next"]) == 0
    assert "main, seed 0 (1 of 4): done" in capfd.readouterr().err
    file = results / "evidence_smoke.json"
    assert {row["experiment"] for row in json.loads(file.read_text())["rows"]} == {"main"}
    jobs = min(2, len(os.sched_getaffinity(0)))
    assert experiments([*argv, "--jobs", str(jobs)]) == 1, "one has failed"
    said = capfd.readouterr().err
    assert "baselines, seed 0 (2 of 4): done" in said, "after the first experiment: time may end before the list does"
    assert "search, seed 0 (4 of 4): failed" in said and "prompts.max_tokens" in said
    assert "error: 1 of 4 tasks have failed" in said
    check_results(json.loads(file.read_text()))
    (status,) = (entry for entry in json.loads(file.read_text())["status"] if entry["experiment"] == "no-sft")
    assert ("cpus" in status) == (jobs > 1)
    check_first_lines(json.loads(file.read_text()), runs / "main" / "seed-0" / "run" / "evaluate")

    before = file.read_bytes()
    assert experiments(argv) == 1 and "failed before and is left out" in capfd.readouterr().err
    rows = [json.loads(content)["rows"] for content in (before, file.read_bytes())]
    assert rows[0] == rows[1], "nothing was run again"
    check_damage(runs / "main" / "seed-0" / "run" / "evaluate" / "results-test-sft.json", argv, capfd)
    assert "pretrain: taken from" in (runs / "no-sft" / "seed-0" / "log.txt").read_text()
    assert (runs / "main" / "seed-0" / "completions.txt").read_text().count("--- completion") == 8
    (results / "evidence.md").write_text("It learns.")
    assert experiments(["--report", "--results", str(results), "--out", str(tmp_path / "EVIDENCE.md")]) == 0
    report = (tmp_path / "EVIDENCE.md").read_text()
    assert "failed: 0" in report and all((tmp_path / link).stat().st_size > 10_000 for link in (
        "results/evidence_smoke_rewards.png", "results/evidence_smoke_hits.png"))

    plain["experiments"][1]["set"]["grpo.lr"] = 1e-5
    path.write_text(yaml.safe_dump(plain))
    assert experiments([*argv, "--only", "no-sft"]) == 1
    assert "grpo.lr (was" in (said := capfd.readouterr().err) and "--overwrite" in said
    assert experiments([*argv, "--only", "no-sft", "--overwrite"]) == 0
    assert "no-sft, seed 0 (1 of 1): done" in capfd.readouterr().err


def check_damage(results: Path, argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """What a finished experiment has left is looked at again whenever it is used."""
    whole = results.read_bytes()
    other = json.loads(whole)
    other["settings"] |= {"temperature": 0.25, "answers": 4}
    results.write_text(json.dumps(other))
    assert experiments([*argv, "--only", "main"]) == 2
    said = capfd.readouterr().err
    assert "asked for; it has temperature 0.25 instead of" in said and "answers 4 instead of 1" in said
    assert "done.json" in said
    results.write_bytes(whole)
    ranks = results.with_name("ranks-test-uniform-sft.jsonl")
    lines = ranks.read_text()
    ranks.write_text(lines.partition("\n")[0] + "\n")
    assert experiments([*argv, "--only", "main"]) == 2
    assert "the 8 queries that main with seed 0 was asked, in 1 answers each; it has 1;" in capfd.readouterr().err
    ranks.write_text(lines)
    results.unlink()
    assert experiments([*argv, "--only", "main"]) == 2
    assert "must be there, main with seed 0 has left it" in capfd.readouterr().err
    results.write_bytes(whole)


def check_first_lines(found: dict, folder: Path) -> None:
    """The rate by the first line, from the answers themselves."""
    for row in found["rows"]:
        if row["experiment"] == "main" and (row["method"], row["chains"]) == ("generate", "own"):
            answers = [json.loads(line) for line in (folder / f"predictions-test-{row['system']}.jsonl").open()]
            first = [p["rank"] == 1 and re.split(r"[\s,]+", p["output"].split("<answer>")[-1].strip())[0]
                     == str(p["candidates"].index(p["target"]) + 1) for p in answers]
            assert row["first@1"] == sum(first) / len(first) <= row["hr@1"]
        elif row["method"] != "generate":
            assert row["first@1"] == row["hr@1"]


def check_results(found: dict) -> None:
    rows = {(row["experiment"], row["system"], row["chains"]): row for row in found["rows"]}
    names = ["pretrained", "sft", "sft+grpo"]
    assert set(rows) == {
        *(("main", name + suffix, "own") for name in names for suffix in ("", "-likelihood")),
        ("main", "sft+grpo", "swapped"), ("main", "sft+grpo", "none"), ("no-sft", "grpo", "own"),
        ("baselines", "popularity", "own"), ("baselines", "item-knn", "own")}
    assert all(row["users"] == 8 and row["split_seed"] == 0 for row in rows.values())
    assert all("true_rate" in row for row in rows.values() if row["experiment"] != "baselines")
    assert {(test["system"], test["minus"]) for test in found["significance"]} >= {
        ("sft+grpo", "sft"), ("sft", "pretrained"), ("sft+grpo", "grpo"), ("sft+grpo", "popularity")}
    assert {curve["system"] for curve in found["curves"]} == {"sft+grpo", "grpo"}
    assert all(len(curve["reward_rank"]) == len(curve["kl"]) == 2 for curve in found["curves"])
    assert [entry["chains"] for entry in found["diagnostics"]] == ["own", "swapped", "none"]
    assert {entry["status"] for entry in found["status"]} == {"done", "failed"}
    assert {"what", "created", "commit", "dirty", "config_sha256", "hardware", "versions"} <= found.keys()


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, own = write_list(tmp_path), write_list(tmp_path / "own seeds")
    plain = yaml.safe_load(own.read_text())
    plain["experiments"][2]["seeds"] = [0]
    own.write_text(yaml.safe_dump(plain))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "evidence_x.json").write_text("{}")
    for argv, reason in (([], "a list must be given"), ([str(tmp_path / "no.yaml")], "no.yaml"),
                         ([str(path), "--jobs", "0"], "--jobs must be in 1.."),
                         ([str(path), "--only", "nothing"], "--only must name experiments of the list"),
                         ([str(own), "--only", "search", "--seeds", "3"], "--only and --seeds must leave something"),
                         (["--report", "--results", str(tmp_path)], "needs result files"),
                         (["--report", "--results", str(tmp_path / "damaged")], "evidence_x.json must have a text")):
        assert experiments(argv) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and reason in line
    assert not list(tmp_path.rglob("lock")), "nothing was begun"
