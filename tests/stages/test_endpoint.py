"""Chat servers from the command line: the endpoint teacher in a run, and hosted models as rankers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from r2rec_jax.evaluate import main as evaluate
from r2rec_jax.prepare import main as prepare
from r2rec_jax.stages.hosted import file_name
from r2rec_jax.stages.run import RunFolder
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.train import main as train
from tests.endpoint_server import mostly_good, serve
from tests.synthetic import SMALL, write_ml100k

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "ci.yaml")
KEY = "sk-stages/Qx9secret"
QUICK = ("concurrency=4", "backoff_s=0.001", "longest_wait_s=0.05", "retries=25")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_ml100k(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, data) -> Path:
    """A run that has its data and its tokenizer, and thoughts by template."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(arguments(data, folder)) == 0
    return folder


@pytest.fixture(autouse=True)
def key(monkeypatch) -> None:
    monkeypatch.setenv("R2REC_TEST_KEY", KEY)


def arguments(data: Path, run: Path, *more: str) -> list[str]:
    return ["--config", CONFIG, "--data.path", str(data), "--run_dir", str(run), *SMALL, "--stages=prepare,thoughts",
            *more]


def teacher(url: str, *more: str) -> list[str]:
    own = [f"base_url={url}", "model=m", "key_env=R2REC_TEST_KEY", *QUICK, *more]
    return ["--thoughts.teacher=endpoint", *(f"--thoughts.endpoint.{setting}" for setting in own)]


def hosted(url: str, *more: str) -> list[str]:
    return [f"--endpoint={url}", "--model=org/model-1", "--server.key_env=R2REC_TEST_KEY",
            *(f"--server.{setting}" for setting in QUICK), *more]


def assert_without_key(folder: Path, shown: str) -> None:
    texts = [path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*") if path.is_file()]
    assert len(texts) > 3 and not any("Qx9secret" in text for text in [shown, *texts])


def only_line(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_thoughts_of_a_server_outlive_the_stage(data, tmp_path, capsys):
    """A budget that ends in the middle, a larger one, and a stage run anew: every thought is paid for once."""
    run = tmp_path / "run"
    with serve(mostly_good, say=f"({KEY}) ") as server:
        assert train(arguments(data, run, *teacher(server.url, "max_requests=9"))) == 1
        reason = only_line(capsys)
        assert "thoughts.endpoint.max_requests is 9; raise it to go on" in reason and "run the same command" in reason
        assert server.asked.total() == 9
        assert train(arguments(data, run, *teacher(server.url, "max_requests=5000"))) == 0
        result = json.loads((run / "stages.json").read_text())["thoughts"]["result"]
        asked = server.asked.total()
        assert result["teacher"] == "endpoint" and result["endpoint"]["requests"] == asked
        assert 5 < result["thoughts"] < server.good.total() == len(server.good), "held-out examples have thoughts too"
        assert result["endpoint"]["tokens_in"] == 100 * result["endpoint"]["answers"]
        changed = arguments(data, run, *teacher(server.url), "--prompts.liked=2")
        assert train(changed) == 2 and "prompts.liked" in only_line(capsys)
        assert train([*changed, "--overwrite"]) == 0 and server.asked.total() == asked
        shared = ["--thoughts.store", str(run / "endpoint")]
        assert train(arguments(data, tmp_path / "other", *teacher(server.url), *shared)) == 0
        assert server.asked.total() == asked
    assert server.authorization == {f"Bearer {KEY}"}
    assert_without_key(run, capsys.readouterr().err)


def test_the_costs_and_address_do_not_enter_the_stage_key(data, tmp_path):
    with serve() as server:
        assert train(arguments(data, tmp_path / "run", *teacher(server.url))) == 0
        asked = server.asked.total()
        assert train(arguments(data, tmp_path / "run", *teacher("http://127.0.0.1:1/v1", "max_tokens=7"))) == 0
        assert server.asked.total() == asked


@pytest.mark.parametrize("setting", ["--prompts.thoughts=none", "--prompts.chains=false"])
def test_thoughts_that_nothing_reads_are_not_paid_for(data, tmp_path, setting):
    with serve() as server:
        more = [setting, "--sft.thought_weight=0"]
        assert train(arguments(data, tmp_path / "run", *teacher(server.url), *more)) == 0
        assert server.asked.total() == 0
    result = json.loads((tmp_path / "run" / "stages.json").read_text())["thoughts"]["result"]
    assert (result["thoughts"], result["given_up"], result["examples"]) == (0, 0, {"ranking": 8})


def test_a_hosted_model_gets_the_prompts_of_the_run(run, tmp_path, capsys):
    out = tmp_path / "out.json"
    with serve(mostly_good, say=f"({KEY}) ") as server:
        first = [*hosted(server.url), "--run", str(run), "--system=gpt-4o-mini", "--users=8", "--json", str(out)]
        assert evaluate([*first, "--server.max_requests=4"]) == 1
        assert "--server.max_requests is 4" in only_line(capsys) and server.asked.total() == 4
        kept = (run / "hosted" / "predictions-test-gpt-4o-mini.jsonl").read_text()
        assert evaluate(first) == 0
        assert (run / "hosted" / "predictions-test-gpt-4o-mini.jsonl").read_text().startswith(kept)
        assert evaluate([*first, "--temperature=1"]) == 2
        assert "were paid for; give another --system name" in only_line(capsys)
    row = json.loads(out.read_text())["rows"][0]
    assert row["system"] == "gpt-4o-mini" and row["users"] == 8 and row["requests"] == server.asked.total()
    assert row["tokens_in"] == 100 * row["answers"] and row["tokens_out"] == 10 * row["answers"]
    work = Workspace(RunFolder.existing(run))
    from r2rec_jax.stages.rendering import render_queries

    queries = work.prepared.queries["test"][:8]
    texts = [r.text for r in render_queries(work.prepared, queries, work.config.prompts, work.tokenizer)]
    assert set(server.asked) == set(texts)
    kept = (run / "hosted" / "predictions-test-gpt-4o-mini.jsonl").read_text()
    lines = [json.loads(line) for line in kept.splitlines()]
    assert {line["prompt"] for line in lines} == set(texts) and len(lines) == 8
    answered = [line for line in lines if "<answer>" in line["output"]]
    assert all(line["valid"] and line["output"].startswith("([key]) The likes") for line in answered)
    assert len(answered) >= row["valid_rate"] * 8
    assert len((run / "hosted/ranks-test-uniform-gpt-4o-mini.jsonl").read_text().splitlines()) == 8
    assert_without_key(run / "hosted", capsys.readouterr().err)
    asked = server.asked.total()
    (run / "hosted").rename(run / "evaluate")  # as an earlier version left them
    with serve(mostly_good) as server:
        again = [*hosted(server.url), "--run", str(run), "--system=gpt-4o-mini", "--users=8", "--json", str(out)]
        assert evaluate(again) == 0 and server.asked.total() == 0
    assert json.loads(out.read_text())["rows"][0]["requests"] == asked
    assert [path.name for path in (run / "evaluate").iterdir() if "gpt" in path.name] == []
    shutil.rmtree(run / "evaluate")


def test_over_a_prepared_folder(data, tmp_path, capsys):
    prepared, out = tmp_path / "prepared", tmp_path / "out"
    assert prepare(["--config", CONFIG, "--data.path", str(data), *SMALL, "--out", str(prepared)]) == 0
    before = sorted(prepared.iterdir())
    with serve() as server:
        asked = [*hosted(server.url), "--prepared", str(prepared), "--out", str(out), "--config", CONFIG]
        assert evaluate(asked) == 0
        assert evaluate([*asked, "--negatives=popularity"]) == 0
        total = server.asked.total()
        assert evaluate(asked) == 0 and server.asked.total() == total == 12
        assert evaluate([*asked, "--system=other"]) == 2
        assert "must be a folder of one system" in only_line(capsys)
    rows = json.loads((out / "result.json").read_text())["rows"]
    assert [(row["system"], row["negatives"], row["requests"], row["users"]) for row in rows] == [
        ("org/model-1", "popularity", 6, 6), ("org/model-1", "uniform", 6, 6)]
    assert sorted(prepared.iterdir()) == before
    for negatives in ("uniform", "popularity"):
        assert len((out / f"ranks-test-{negatives}.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
def test_kill_9_of_an_evaluation(data, tmp_path):
    prepared, out = tmp_path / "prepared", tmp_path / "out"
    assert prepare(["--config", CONFIG, "--data.path", str(data), *SMALL, "--data.eval_users=36",
                    "--data.sft_queries=2", "--data.rl_queries=2", "--out", str(prepared)]) == 0
    with serve() as server:
        asked = [*hosted(server.url), "--prepared", str(prepared), "--out", str(out)]
        process = subprocess.Popen([sys.executable, "-m", "r2rec_jax.evaluate", *asked], cwd=ROOT,
                                   stderr=subprocess.DEVNULL)
        server.on_request = lambda: os.kill(process.pid, signal.SIGKILL) if server.asked.total() == 20 else None
        assert process.wait(120) == -signal.SIGKILL
        server.on_request = lambda: None
        file = next(out.glob("predictions-*.jsonl"))
        kept = {json.loads(line)["prompt"] for line in file.read_bytes().split(b"\n")[:-1]}
        assert 20 - 4 <= len(kept) < 20
        assert evaluate(asked) == 0
        assert all(server.asked[prompt] == 1 for prompt in kept) and len(server.asked) == 36
        assert server.asked.total() <= 36 + 4
    assert json.loads((out / "result.json").read_text())["rows"][0]["users"] == 36


@pytest.mark.parametrize(("more", "reason"), [
    ([], "either --run DIR or --prepared DIR; got neither"),
    (["--run=a", "--prepared=b", "--out=c"], "got both"),
    (["--prepared=b"], "--out goes with --prepared"),
    (["--run=/nowhere"], "is not a run folder"),
    (["--run=a", "--server.key_env=sk-hidden"], "endpoint.key_env must be the name of an environment variable"),
    (["--run=a", "--server.concurrency=0"], "endpoint.concurrency must be in 1..1024"),
    (["--run=a", "--split=sft"], "split"),
])
def test_mistakes_are_one_line(capsys, more, reason):
    assert evaluate([*hosted("http://127.0.0.1:1/v1"), *more]) == 2
    line = only_line(capsys)
    assert reason in line and "hidden" not in line


def test_a_key_in_the_settings_of_a_run_is_refused_without_being_shown(data, tmp_path, capsys):
    for setting in ("key_env=sk-hidden", "base_url=http://u:sk-hidden@host/v1"):
        assert train(arguments(data, tmp_path / "run", "--thoughts.teacher=endpoint", "--thoughts.endpoint.model=m",
                               f"--thoughts.endpoint.{setting}")) == 2
        shown = capsys.readouterr()
        assert "must be" in shown.err and "hidden" not in shown.err + shown.out
    assert train(arguments(data, tmp_path / "run", "--thoughts.teacher=endpoint")) == 2
    assert "thoughts.endpoint.model must be" in only_line(capsys)


def test_a_model_that_refuses_temperature(run, capsys):
    def plan(prompt: str, times: int) -> str:
        return "good" if "temperature" not in server.requests[-1] else "400 temperature"

    with serve(plan) as server:
        asked = [*hosted(server.url), "--run", str(run), "--system=o4-mini", "--users=3"]
        assert evaluate(asked) == 1
        assert "set --server.sampling to false" in only_line(capsys)
        assert evaluate([*asked, "--server.sampling=false", "--server.limit_field=max_completion_tokens",
                         "--server.extra={\"reasoning_effort\": \"low\"}"]) == 0
    assert Counter("max_completion_tokens" in body for body in server.requests)[True] == 3
    assert server.requests[-1]["reasoning_effort"] == "low"


def test_null_takes_all_users_and_so_does_another_split(run):
    with serve() as server:
        assert evaluate([*hosted(server.url), "--run", str(run), "--system=all", "--users=null"]) == 0
    queries = Workspace(RunFolder.existing(run)).prepared.queries
    assert server.good.total() == len(queries["test"]) == 8
    with serve() as server:
        assert evaluate([*hosted(server.url), "--run", str(run), "--system=all", "--split=validation"]) == 0
    assert server.good.total() == len(queries["validation"]) == 2


def test_a_refusal_that_quotes_an_answer_is_a_miss(run):
    def plan(prompt: str, times: int) -> str:
        return "400" if len(server.requests) == 4 else "good"

    with serve(plan, say="<answer>1, 2, 3</answer>") as server:
        assert evaluate([*hosted(server.url), "--run", str(run), "--system=refuses", "--users=6",
                         "--server.concurrency=1"]) == 0
    kept = (run / "hosted" / "predictions-test-refuses.jsonl").read_text()
    lines = [json.loads(line) for line in kept.splitlines()]
    assert [line["valid"] for line in lines] == [True, True, True, False, True, True]
    assert lines[3]["output"] == "" and lines[3]["rank"] is None


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-7B", "../../x", "a b\n"])
def test_file_names_stay_in_their_folder(name):
    assert "/" not in file_name(name) and not file_name(name).startswith(".")
    with pytest.raises(ValueError, match="a system's name must hold"):
        file_name("../")
