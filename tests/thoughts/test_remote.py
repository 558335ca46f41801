"""The endpoint teacher against a server that misbehaves: all accounted for, nothing paid twice, kill -9 survived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from r2rec_jax.config import EndpointConfig
from r2rec_jax.data.interactions import Item, User
from r2rec_jax.prompts.thought import teacher_prompt
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.sampling.endpoint import Endpoint, Stopped
from r2rec_jax.sampling.spending import read_requests, spending_of
from r2rec_jax.sampling.wire import Answer
from r2rec_jax.thoughts.remote import RemoteTeacher, completion_text
from r2rec_jax.thoughts.store import ThoughtStore, collect, thought_key
from r2rec_jax.thoughts.teacher import Thought
from r2rec_jax.thoughts.validate import problems
from tests.endpoint_server import REJECTED, RETRIED, mostly_good, serve

ROOT = Path(__file__).resolve().parents[2]
CONCURRENCY = 16


def made_chains(count: int) -> list[ChainView]:
    return [ChainView(User("7", ()), Item("1", "Heat", 1995, ("Crime",)), User("12", ()),
                      Item(str(k + 2), f"Invented Title No. {k}", 1988, ()), 5, 4, 2, 1 + k % 5) for k in range(count)]


def make_teacher(url: str, folder: Path, *, attempts: int = 4, **more) -> RemoteTeacher:
    settings = {"base_url": url, "model": "m", "concurrency": CONCURRENCY, "backoff_s": 1e-3, "longest_wait_s": 0.05,
                "timeout_s": 4.0, "retries": 25} | more
    return RemoteTeacher(Endpoint(EndpointConfig(**settings), folder / "requests.jsonl", setting="thoughts.endpoint"),
                         "movies", attempts=attempts, max_new_tokens=64, temperature=0.7)


def write(url: str, folder: Path, count: int, **more) -> tuple[RemoteTeacher, list[Thought | None]]:
    teacher = make_teacher(url, folder, **more)
    chains = made_chains(count)
    return teacher, collect(teacher, ThoughtStore(folder / "thoughts.jsonl"), chains, ["0"] * count)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_a_thousand_asked_and_a_thousand_accounted_for(tmp_path: Path) -> None:
    chains = made_chains(1000)
    with serve(mostly_good) as server:
        teacher, thoughts = write(server.url, tmp_path, 1000)
        asked = sum(server.asked.values())
        stored, rejected = lines(tmp_path / "thoughts.jsonl"), lines(tmp_path / "rejected.jsonl")
        again, same = write(server.url, tmp_path, 1000)
        assert sum(server.asked.values()) == asked and same == thoughts
    accepted = [k for k, thought in enumerate(thoughts) if thought is not None]
    assert all(problems(thoughts[k], chains[k]) == () for k in accepted)  # type: ignore[arg-type]
    given_up = {row["key"] for row in rejected if row["attempt"] == 3}
    assert len(accepted) + len(given_up) == 1000 and len(accepted) > 990
    assert {row["key"] for row in stored} == {thought_key(chains[k], teacher, "0") for k in accepted}
    assert len(stored) == len(accepted) == teacher.accepted
    # The server's own count: one good answer for each accepted thought, and none for the others.
    good = {prompt for prompt, times in server.good.items() if times}
    assert max(server.good.values()) == 1 and good == {teacher_prompt(chains[k], "movies") for k in accepted}
    served = server.served
    assert all(served[kind] for kind in (*REJECTED, "429", "500", "cut", "slow", "malformed", "no choices"))
    assert 0.25 < (served["429"] + served["429 at once"] + served["500"]) / asked < 0.35
    assert len(rejected) == sum(served[kind] for kind in REJECTED) == sum(teacher.rejected.values())
    assert all(row["reason"] and row["teacher"] == "endpoint" for row in rejected)
    spent = spending_of(read_requests(tmp_path / "requests.jsonl").rows)
    assert spent.requests == asked and spent.retried == sum(served[kind] for kind in RETRIED)
    assert spent.answers == served["good"] + len(rejected) and spent.tokens_in == 100 * spent.answers
    assert again.figures() == {"accepted": 0, "rejected": 0, "retried": spent.retried, "tokens_in": spent.tokens_in,
                               "tokens_out": spent.tokens_out}


@pytest.mark.slow
def test_kill_9_loses_what_was_in_flight_and_nothing_else(tmp_path: Path) -> None:
    """The process is killed twice, each time while the server holds its requests; a third start ends the work."""
    count = 160
    chains = made_chains(count)
    script = ("import sys; from pathlib import Path; from tests.thoughts.test_remote import write; "
              f"write(sys.argv[1], Path(sys.argv[2]), {count})")
    prompts = {thought_key(chain, make_teacher("http://127.0.0.1:1", tmp_path), "0"): teacher_prompt(chain, "movies")
               for chain in chains}
    with serve(mostly_good) as server:
        for limit in (60, 150):
            process = subprocess.Popen([sys.executable, "-c", script, server.url, str(tmp_path)], cwd=ROOT,
                                       stderr=subprocess.DEVNULL)

            def kill(pid: int = process.pid, limit: int = limit) -> None:
                if sum(server.asked.values()) >= limit:
                    os.kill(pid, signal.SIGKILL)

            server.on_request = kill
            assert process.wait(60) == -signal.SIGKILL
            server.on_request = lambda: None
            kept = {row["key"]: row["thought"] for row in lines_that_are_whole(tmp_path / "thoughts.jsonl")}
            before = {key: server.asked[prompts[key]] for key in kept}
            lost = sum(server.good.values()) - len(kept)
            assert len(kept) > 10 and 0 <= lost <= CONCURRENCY * (1 if limit == 60 else 2)
        _, thoughts = write(server.url, tmp_path, count)
        stored = lines(tmp_path / "thoughts.jsonl")
        assert {key: server.asked[prompts[key]] for key in kept} == before
    assert len({row["key"] for row in stored}) == len(stored) == sum(thought is not None for thought in thoughts)
    assert all(row["thought"] == kept[row["key"]] for row in stored if row["key"] in kept)
    given_up = {row["key"] for row in lines(tmp_path / "rejected.jsonl") if row["attempt"] == 3}
    assert len(stored) + len(given_up) == count and not given_up & {row["key"] for row in stored}
    assert sum(times - 1 for times in server.good.values() if times > 1) <= 2 * CONCURRENCY


def lines_that_are_whole(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def test_a_thought_is_on_disk_before_the_next_question_is_answered(tmp_path: Path) -> None:
    """With one question open at a time, every request finds all earlier thoughts stored."""
    with serve() as server:
        seen: list[int] = []
        server.on_request = lambda: seen.append(len(lines(tmp_path / "thoughts.jsonl")))
        write(server.url, tmp_path, 6, concurrency=1)
    assert seen == list(range(6))


@pytest.mark.parametrize("kind", REJECTED)
def test_what_is_rejected_is_kept_with_its_reason_and_counts_over_starts(tmp_path: Path, kind: str) -> None:
    reasons = {"refusal": "refused: I cannot", "leak": "speaks of the answer", "wrong rating": "final rating must be",
               "no answer": "no reasoning or no rating", "length": "cut off at the limit of 64 tokens",
               "filter": "content filter"}
    with serve(kind) as server:
        teacher, thoughts = write(server.url, tmp_path, 3, attempts=2)
        assert thoughts == [None] * 3 and set(server.asked.values()) == {2} and sum(teacher.rejected.values()) == 6
        rows = lines(tmp_path / "rejected.jsonl")
        assert len(rows) == 6 and all(reasons[kind] in row["reason"] for row in rows)
        write(server.url, tmp_path, 3, attempts=2)
        assert set(server.asked.values()) == {2}
        write(server.url, tmp_path, 3, attempts=3)
        assert set(server.asked.values()) == {3} and len(lines(tmp_path / "rejected.jsonl")) == 9
    assert not (tmp_path / "thoughts.jsonl").exists()


@pytest.mark.parametrize("kind", ["reasoning", "opened think"])
def test_reasoning_servers(tmp_path: Path, kind: str) -> None:
    with serve(kind) as server:
        _, thoughts = write(server.url, tmp_path, 3)
    assert all(thought is not None and len(thought.statements) == 4 for thought in thoughts)


def test_the_budget_stops_cleanly_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    with serve() as server:
        with pytest.raises(Stopped, match=r"thoughts\.endpoint\.max_requests is 10"):
            write(server.url, tmp_path, 25, max_requests=10)
        assert sum(server.asked.values()) == len(lines(tmp_path / "thoughts.jsonl")) == 10
        _, thoughts = write(server.url, tmp_path, 25, max_requests=25)
        assert all(thoughts) and sum(server.asked.values()) == 25


def test_a_question_without_any_answer_is_an_attempt(tmp_path: Path) -> None:
    chain = made_chains(1)[0]
    with serve(lambda prompt, _: "500" if prompt == teacher_prompt(chain, "movies") else "good") as server:
        _, thoughts = write(server.url, tmp_path, 5, retries=1, concurrency=1, attempts=1)
    assert thoughts[0] is None and all(thoughts[1:])
    assert [row["reason"][:31] for row in lines(tmp_path / "rejected.jsonl")] == ["no answer in 2 tries; the last:"]


def test_the_key_of_a_thought_is_what_shapes_it(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/v1"
    version = make_teacher(url, tmp_path).version
    for same in ({"base_url": "http://other/v1"}, {"attempts": 9}, {"max_requests": 5}, {"concurrency": 1}):
        assert make_teacher(**{"url": url, "folder": tmp_path} | _as_url(same)).version == version
    for other in ({"model": "n"}, {"sampling": False}, {"extra": {"top_k": 3}}):
        assert make_teacher(url, tmp_path, **other).version != version


def _as_url(settings: dict) -> dict:
    return {"url": settings["base_url"]} if "base_url" in settings else settings


@pytest.mark.parametrize(("answer", "expected"), [
    (Answer("x <answer>1</answer>"), "x <answer>1</answer>"),
    (Answer("<answer>1</answer>", reasoning=" why "), "<think>\nwhy\n</think>\n<answer>1</answer>"),
    (Answer("why</think>1"), "<think>\nwhy</think>1"),
    (Answer("<think>why</think>1", reasoning="why"), "<think>why</think>1"),
    (Answer("", refusal="no"), "no"),
])
def test_one_completion(answer: Answer, expected: str) -> None:
    assert completion_text(answer) == expected
