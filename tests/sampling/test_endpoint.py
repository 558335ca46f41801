"""The client of chat servers: every fault, waits, budgets, the key."""

from __future__ import annotations

import json
import logging
import socket
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.config import EndpointConfig
from r2rec_jax.sampling.endpoint import Endpoint, Stopped
from r2rec_jax.sampling.spending import read_requests, spending_of
from r2rec_jax.sampling.wire import (
    Answer,
    Redactor,
    Unreadable,
    backoff_s,
    read_answer,
    read_failure,
    retry_after_s,
)
from tests.endpoint_server import RETRIED, serve

KEY = "sk-test/Zq\"81+secret"
NOW = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)
PROMPTS = [f"Rank 3 candidate movies. Question {k}.\n1. A\n2. B\n3. C" for k in range(12)]


def config(url: str, **more) -> EndpointConfig:
    return EndpointConfig(**{"base_url": url, "model": "m", "backoff_s": 0.001, "longest_wait_s": 3.0,
                             "timeout_s": 20.0, "concurrency": 4} | more)


def ask_all(endpoint: Endpoint, prompts: list[str] = PROMPTS) -> dict[str, Answer]:
    async def do(prompt: str, hand_over: Callable[[tuple[str, Answer]], None]) -> None:
        hand_over((prompt, await endpoint.ask(prompt[-30:], prompt, max_new_tokens=9, temperature=0.6, top_p=0.9)))

    return dict(pair for block in endpoint.work(prompts, do) for pair in block)


def once(kind: str) -> Callable[[str, int], str]:
    return lambda _, times: kind if times == 0 else "good"


@pytest.mark.parametrize("kind", [kind for kind in RETRIED if kind not in ("slow", "429 date")])
def test_a_fault_is_asked_again_and_leaves_a_line(tmp_path, kind):
    with serve(once(kind)) as server:
        endpoint = Endpoint(config(server.url), tmp_path / "requests.jsonl")
        answers = ask_all(endpoint)
    assert len(answers) == 12 and all("<answer>" in answer.text for answer in answers.values())
    assert set(server.asked.values()) == {2} and set(server.good.values()) == {1}
    spent = endpoint.spending
    assert (spent.requests, spent.answers, spent.retried, spent.tokens_in, spent.tokens_out) == (24, 12, 12, 1200, 120)
    assert spending_of(read_requests(tmp_path / "requests.jsonl").rows) == spent


def test_as_many_questions_are_open_as_are_allowed(tmp_path):
    """The server answers when four questions are open, and counts whether there are ever more."""
    with serve("together") as server:
        assert len(ask_all(Endpoint(config(server.url), tmp_path / "r.jsonl"))) == 12
    assert server.most_open == 4 and set(server.asked.values()) == {1}


def test_a_slow_answer_is_given_up_and_asked_again(tmp_path):
    with serve(once("slow")) as server:
        answers = ask_all(Endpoint(config(server.url, timeout_s=0.5), tmp_path / "r.jsonl"), PROMPTS[:3])
    assert len(answers) == 3 and set(server.asked.values()) == {2}


@pytest.mark.parametrize("kind", ["429 1 s", "429 date"])
def test_retry_after_is_honoured_by_every_question(tmp_path, kind):
    """The first request is turned away for a second while another is open; nothing else is sent before that."""
    calls: list[int] = []

    def plan(prompt: str, times: int) -> str:
        calls.append(1)
        return {1: kind, 2: "late"}.get(len(calls), "good")

    with serve(plan) as server:
        assert len(ask_all(Endpoint(config(server.url, concurrency=2), tmp_path / "r.jsonl"), PROMPTS[:4])) == 4
    first, _, *others = server.times
    assert len(others) == 3 and all(1.0 <= time - first < 3 for time in others)


@pytest.mark.parametrize(("headers", "expected"), [
    ({"Retry-After": "7"}, 7.0), ({"retry-after": " 2.5 "}, 2.5), ({"Retry-After": "-3"}, 0.0),
    ({"Retry-After-Ms": "1500", "Retry-After": "9"}, 1.5), ({}, None), ({"Retry-After": "soon"}, None),
    ({"Retry-After": "nan"}, None), ({"Retry-After": "inf"}, None),
    ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT"}, 30.0), ({"Retry-After": "Wed, 21 Oct 2026 07:20:00 GMT"}, 0.0),
    ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:20 GMT"}, 10.0),
    ({"Retry-After": "Wed, 99 Oct 2026 07:28:30 GMT"}, None),
])
def test_retry_after(headers, expected):
    assert retry_after_s(headers, NOW) == expected


@given(tries=st.integers(1, 10_000), first=st.floats(1e-3, 10), cap=st.floats(10, 1e4),
       draw=st.floats(0, 1, exclude_max=True))
def test_backoff_grows_to_its_cap(tries, first, cap, draw):
    wait = backoff_s(tries, first, cap, draw)
    assert min(cap, first) / 2 <= wait <= cap
    assert backoff_s(tries + 1, first, cap, draw) >= wait


def test_the_budget_of_requests_is_exact_and_holds_over_starts(tmp_path):
    journal = tmp_path / "requests.jsonl"
    with serve(once("500")) as server:
        with pytest.raises(Stopped, match=r"--server.max_requests is 10; raise it"):
            ask_all(Endpoint(config(server.url, max_requests=10), journal, setting="--server"))
        assert sum(server.asked.values()) == 10
        with pytest.raises(Stopped, match="10 requests"):
            ask_all(Endpoint(config(server.url, max_requests=10), journal))
        assert sum(server.asked.values()) == 10
        again = Endpoint(config(server.url, max_requests=100), journal)
        assert len(ask_all(again)) == 12 and again.spending.requests == sum(server.asked.values())


def test_the_budget_of_tokens_takes_what_is_in_flight(tmp_path):
    got: list[str] = []
    with serve() as server:
        endpoint = Endpoint(config(server.url, max_tokens=350, concurrency=2), tmp_path / "r.jsonl")

        async def do(prompt: str, hand_over: Callable[[str], None]) -> None:
            await endpoint.ask(prompt, prompt, max_new_tokens=9, temperature=0)
            hand_over(prompt)

        with pytest.raises(Stopped, match="max_tokens is 350"):
            for block in endpoint.work(PROMPTS, do):
                got += block
    assert 4 <= len(got) == sum(server.asked.values()) <= 5


@pytest.mark.parametrize(("kind", "reason", "most"), [
    ("401", r"refuses every request: status 401.*check the variable that x.key_env names", 4),
    ("404", r"status 404.*check the address and the model 'm'", 4),
    ("429 quota", r"status 429: something", 4),
    ("429 1 day", r"asks to wait 86400 s .*x.longest_wait_s is 3; run again later", 4),
    ("400 temperature", r"took none of the first 3 questions.*set x.sampling to false", 8),
    ("500", r"did not answer in 3 tries; the last: status 500", 16),
])
def test_a_server_that_helps_nobody_ends_the_run(tmp_path, kind, reason, most):
    with serve(kind) as server:
        with pytest.raises(Stopped, match=reason):
            ask_all(Endpoint(config(server.url, retries=2), tmp_path / "r.jsonl", setting="x"))
        assert sum(server.asked.values()) <= most


def test_one_poisonous_question_does_not_end_the_run(tmp_path):
    with serve(lambda prompt, _: "500" if "Question 0" in prompt else "good") as server:
        endpoint = Endpoint(config(server.url, retries=2, concurrency=1), tmp_path / "r.jsonl")
        assert len(ask_all(endpoint)) == 11 and endpoint.unanswered == 1


def test_a_question_that_is_refused_after_others_were_answered_is_an_answer(tmp_path):
    with serve(lambda prompt, _: "400" if "Question 7" in prompt else "good") as server:
        answers = ask_all(Endpoint(config(server.url, concurrency=1), tmp_path / "r.jsonl"))
    assert [a.finish for a in answers.values()].count("refused") == 1 and len(answers) == 12


def test_a_question_that_is_refused_first_is_left_for_another_start(tmp_path):
    """It may be the settings; a second start that finds others answered takes the refusal for what it is."""
    with serve(lambda prompt, _: "400" if "Question 0" in prompt else "good") as server:
        first = Endpoint(config(server.url, concurrency=1), tmp_path / "r.jsonl")
        assert len(ask_all(first)) == 11 and first.unanswered == 1 and "refused before any" in first.why_unanswered
        again = ask_all(Endpoint(config(server.url, concurrency=1), tmp_path / "r.jsonl"), PROMPTS[:1])
    assert [answer.finish for answer in again.values()] == ["refused"]


def test_nobody_there(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(Stopped, match=r"did not answer in 3 tries; the last: the connection failed"):
        ask_all(Endpoint(config(f"http://127.0.0.1:{port}/v1"), tmp_path / "r.jsonl"))


def test_what_is_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-the-user")
    with serve() as server:
        ask_all(Endpoint(config(server.url), tmp_path / "r.jsonl"), ["Rank \ud800"])
        ask_all(Endpoint(config(server.url, sampling=False, limit_field="max_completion_tokens",
                                extra={"reasoning_effort": "low"}), tmp_path / "r.jsonl"), ["Rank this"])
    first, second = server.requests
    assert first == {"model": "m", "messages": [{"role": "user", "content": "Rank ?"}], "max_tokens": 9,
                     "temperature": 0.6, "top_p": 0.9}
    assert second == {"model": "m", "messages": [{"role": "user", "content": "Rank this"}],
                      "max_completion_tokens": 9, "reasoning_effort": "low"}
    assert server.authorization == {None}


@pytest.mark.parametrize("kind", ["good", "refusal", "500", "401", "400", "error in 200", "wrong schema", "429 quota"])
def test_the_key_appears_nowhere(tmp_path, monkeypatch, caplog, capfd, kind):
    """The server repeats the key in every body; logs are as loud as they get."""
    monkeypatch.setenv("R2REC_TEST_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    shown = ""
    with serve(kind, say=f"your key is {KEY}! ") as server:
        endpoint = Endpoint(config(server.url, key_env="R2REC_TEST_KEY", retries=1), tmp_path / "requests.jsonl")
        try:
            shown += repr(ask_all(endpoint))
        except Stopped:
            shown += traceback.format_exc()
        assert server.authorization == {f"Bearer {KEY}"}
    assert "[key]" in shown or kind in ("wrong schema", "refusal")
    captured = capfd.readouterr()
    files = "".join(path.read_text() for path in tmp_path.iterdir())
    for text in (shown, repr(endpoint), caplog.text, captured.out, captured.err, files, repr(endpoint.config)):
        assert KEY not in text and json.dumps(KEY)[1:-1] not in text and "secret" not in text


@given(before=st.text(max_size=20), after=st.text(max_size=20))
def test_redaction(before, after):
    redact = Redactor(KEY)
    for spelling in (KEY, json.dumps(KEY)[1:-1], KEY.replace("/", "\\/")):
        assert "Zq" not in redact(before.replace("Zq", "") + spelling + after.replace("Zq", ""))
    assert Redactor(None)(before) == before and "Zq" not in repr(redact)


@pytest.mark.parametrize("value", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_no_header_takes_is_refused_without_being_shown(tmp_path, monkeypatch, value):
    monkeypatch.setenv("R2REC_TEST_KEY", value)
    with pytest.raises(ValueError, match="R2REC_TEST_KEY must hold") as error:
        Endpoint(config("http://127.0.0.1:1/v1", key_env="R2REC_TEST_KEY"), tmp_path / "r.jsonl")
    assert not value or value not in str(error.value)


@pytest.mark.parametrize("bad", [
    {"base_url": "http://user:sk-hidden@host/v1"}, {"base_url": "https://host/v1?key=sk-hidden"},
    {"base_url": "host/v1"}, {"base_url": "ftp://host"}, {"base_url": "http://[sk-hidden/v1"},
    {"key_env": "sk-hidden"}, {"key_env": ""},
])
def test_settings_that_hold_a_key_are_refused_without_being_shown(bad):
    with pytest.raises(ValueError, match="must be") as error:
        EndpointConfig(**bad)
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize("bad", [{"concurrency": 0}, {"timeout_s": 0}, {"retries": -1}, {"backoff_s": 0},
                                 {"backoff_s": 9, "longest_wait_s": 1}, {"max_requests": 0}, {"max_tokens": 0},
                                 {"extra": {"stream": True}}])
def test_ranges(bad):
    with pytest.raises(ValueError, match=f"endpoint.{next(iter(bad))} must be"):
        EndpointConfig(**bad)


@given(st.one_of(st.binary(max_size=60), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "usage", "prompt_tokens", "completion_tokens", "error",
                         "finish_reason", "refusal", "reasoning", "text"]), inner, max_size=4),
    max_leaves=12).map(lambda value: json.dumps({"choices": [value]} if isinstance(value, dict) else value).encode())))
def test_any_body_is_an_answer_or_unreadable(body):
    try:
        answer = read_answer(body, "prompt", Redactor("k" * 9))
    except Unreadable:
        return
    assert isinstance(answer.text, str) and answer.tokens_in >= 0 and answer.tokens_out >= 0
    failure = read_failure(500, body, {}, Redactor("k" * 9), NOW)
    assert failure.kind == "retry" and "\n" not in failure.reason and len(failure.reason) < 320


def test_a_bug_of_the_caller_is_not_swallowed(tmp_path):
    with serve() as server:
        endpoint = Endpoint(config(server.url), tmp_path / "r.jsonl")

        async def do(prompt: str, hand_over: Callable[[str], None]) -> None:
            raise KeyError(prompt)

        with pytest.raises(KeyError):
            list(endpoint.work(PROMPTS, do))


def test_usage_that_is_not_reported_is_estimated(tmp_path):
    with serve("no usage") as server:
        endpoint = Endpoint(config(server.url), tmp_path / "r.jsonl")
        answer = ask_all(endpoint, PROMPTS[:1])[PROMPTS[0]]
    assert answer.estimated and endpoint.spending.estimated == 1
    assert answer.tokens_in == -(-len(PROMPTS[0]) // 4) and answer.tokens_out == -(-len(answer.text) // 4)


def test_a_model_must_be_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"x\.model must name"):
        Endpoint(EndpointConfig(), tmp_path / "r.jsonl", setting="x")


def test_the_extra_is_named_where_it_is_missing(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ValueError, match=r"pip install 'r2rec_jax\[endpoint\]'"):
        Endpoint(config("http://127.0.0.1:1/v1"), tmp_path / "r.jsonl")
