"""A chat server on loopback that writes valid thoughts and rankings, and misbehaves as it is told."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RETRIED = ("429", "429 at once", "429 date", "500", "503", "cut", "slow", "malformed", "not utf-8", "no choices",
           "error in 200", "wrong schema", "wrong content", "no message")
"""Faults after which the same question should be sent again."""

REJECTED = ("refusal", "leak", "wrong rating", "no answer", "length", "filter")
"""Answers that no validator may pass."""

SLOW_S = 5.0

Plan = Callable[[str, int], str]
"""(prompt, how often it was asked before) -> a fault, or "good"."""


def mostly_good(prompt: str, times: int) -> str:
    """30 % of the answers 429 or 500; 14 % of the rest each kind of other fault, or an answer to reject."""
    draw = random.Random(f"{prompt}/{times}")
    if draw.random() < 0.3:
        return draw.choice(("429", "429 at once", "500"))
    other = ("cut", "malformed", "not utf-8", "no choices", "error in 200", "wrong schema", "wrong content",
             "no message", "503", *REJECTED)
    if draw.random() < 0.14:
        return draw.choice(other)
    return "slow" if times == 0 and draw.random() < 0.004 else "good"


def good_thought(prompt: str) -> str:
    """A thought that follows the teacher prompt's rules."""
    rating = re.search(r"Correct answer: ([1-5])", prompt)
    names = re.search(r"how the target user rated (.+?), one on how (.+?) rated it, one on how .+? rated (.+?), and a "
                      r"last one", prompt)
    assert rating and names
    first, other, last = names.groups()
    return (f"The target user rated {first} as the chain shows.\n{other.capitalize()} saw it in a similar light.\n"
            f"{other.capitalize()} then also watched {last} with some interest.\n"
            f"So a matching view is likely: predicted rating {rating[1]}.\n<answer>{rating[1]}</answer>")


def good_ranking(prompt: str) -> str:
    """Reasoning without think tags, then an order that depends on the prompt alone."""
    count = len(re.findall(r"^[0-9]+\. ", prompt, re.MULTILINE))
    order = random.Random(prompt).sample(range(1, count + 1), count)
    return f"The likes share a taste for drama.\n<answer>{', '.join(map(str, order))}</answer>"


class Server(ThreadingHTTPServer):
    """Counts what it served.

    Args:
        plan: what to do with each request.
        say: extra text that every body holds (to see what becomes of it).
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, plan: Plan, say: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.plan, self.say = plan, say
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()
        self.good: Counter[str] = Counter()
        self.served: Counter[str] = Counter()
        self.open = self.most_open = 0
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.authorization: set[str | None] = set()
        self.closing = threading.Event()
        self.four = threading.Barrier(4, timeout=20)
        self.on_request: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed or timed out leaves broken pipes; they are no error of the server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        with server.lock:
            times = server.asked[prompt]
            server.asked[prompt] += 1
            server.requests.append(body)
            server.times.append(time.monotonic())
            server.authorization.add(self.headers.get("Authorization"))
            kind = server.plan(prompt, times)
            server.served[kind] += 1
            server.good[prompt] += kind == "good"
            server.open += 1
            server.most_open = max(server.most_open, server.open)
            server.on_request()
        self._answer(kind, prompt)

    def _answer(self, kind: str, prompt: str) -> None:
        say = self.server.say
        if kind == "slow":
            self.server.closing.wait(SLOW_S)
        elif kind == "late":
            self.server.closing.wait(0.2)
        elif kind == "together":
            self.server.four.wait()
        text = say + (good_ranking if prompt.startswith("Rank ") else good_thought)(prompt)
        message, finish = self._message(kind, text)
        payload: dict[str, Any] = {"id": "x", "object": "chat.completion", "choices": [
            {"index": 0, "finish_reason": finish, "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}}
        if kind == "no choices":
            payload["choices"] = []
        elif kind == "no message":
            payload["choices"] = [{"index": 0, "text": text}]
        elif kind == "no usage":
            del payload["usage"]
        self._send(kind, json.dumps(payload).encode())

    def _message(self, kind: str, text: str) -> tuple[dict[str, Any], str]:
        message: dict[str, Any] = {"role": "assistant", "content": text}
        finish = "stop"
        if kind == "reasoning":
            reasoning, answer = text.split("\n<answer>")
            message = {"role": "assistant", "reasoning_content": reasoning, "content": "<answer>" + answer}
        elif kind == "opened think":
            message["content"] = text.replace("\n<answer>", "\n</think>\n\n<answer>")
        elif kind == "refusal":
            message = {"role": "assistant", "content": None, "refusal": f"I cannot help with that. {self.server.say}"}
        elif kind == "filter":
            message, finish = {"role": "assistant", "content": None}, "content_filter"
        elif kind == "leak":
            message["content"] = "The correct answer is known, so all is clear to me.\n" + text
        elif kind == "wrong rating":
            message["content"] = re.sub(r"<answer>([1-5])", lambda m: f"<answer>{int(m[1]) % 5 + 1}", text)
        elif kind == "no answer":
            message["content"] = text.split("<answer>")[0]
        elif kind == "length":
            message["content"], finish = text[:40], "length"
        elif kind == "wrong content":
            message["content"] = 7
        return message, finish

    def _send(self, kind: str, body: bytes) -> None:
        say = self.server.say
        now = time.time()
        status, headers = 200, {"Date": formatdate(now, usegmt=True)}
        error = {"error": {"message": f"something about {kind} {say}", "type": "server_error", "code": None}}
        if kind[:3].isdigit():
            status, body = int(kind[:3]), json.dumps(error).encode()
        if kind == "429 at once":
            headers["Retry-After"] = "0"
        elif kind == "429 1 s":
            headers["Retry-After"] = "1"
        elif kind == "429 1 day":
            headers["Retry-After"] = "86400"
        elif kind == "429 date":
            headers["Retry-After"] = formatdate(now + 1, usegmt=True)
        elif kind == "429 quota":
            error["error"]["code"] = "insufficient_quota"
            body = json.dumps(error).encode()
        elif kind == "400 temperature":
            error["error"]["message"] = f"Unsupported value: 'temperature' does not support 0.6 {say}"
            body = json.dumps(error).encode()
        elif kind == "error in 200":
            body = json.dumps(error).encode()
        elif kind == "malformed":
            body = body[:len(body) // 2]
        elif kind == "not utf-8":
            body = b'{"choices": "\xff\xfe"}'
        elif kind == "wrong schema":
            body = json.dumps([1, {"choices": say}]).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if kind == "cut":
            body = body[:len(body) // 3]
            self.close_connection = True
        with self.server.lock:
            self.server.open -= 1
        self.wfile.write(body)


@contextmanager
def serve(plan: Plan | str = "good", say: str = "") -> Iterator[Server]:
    """Run a server on a free port of 127.0.0.1; a fault's name as the plan gives every request that fault."""
    server = Server(plan if callable(plan) else lambda *_: plan, say)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
