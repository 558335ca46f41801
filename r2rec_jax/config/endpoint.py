"""Settings of a chat server that writes thoughts or ranks candidates."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from r2rec_jax.config.check import check

OPERATIONAL = ("base_url", "key_env", "concurrency", "timeout_s", "retries", "backoff_s", "longest_wait_s",
               "max_requests", "max_tokens", "limit_field")
"""Settings that say how a server is reached and what it may cost; they do not change what the model answers."""


@dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible chat server: a hosted model, or a vLLM or llama.cpp server of one's own.

    Attributes:
        base_url: address up to ``/v1``; the default is a vLLM server on this machine.
        model: name of the model, as the server calls it.
        key_env: name of the environment variable that holds the key; null sends none. The key itself stands nowhere
            in the settings.
        concurrency: questions that are open at a time.
        timeout_s: longest time of one request, in seconds.
        retries: how often a request is repeated after a 429, a 5xx, a time-out, a cut connection or an unreadable
            answer.
        backoff_s: wait before the first repetition, in seconds; it doubles each time, with jitter. A server's
            ``Retry-After`` goes before it.
        longest_wait_s: cap of that wait; a server that asks for a longer one ends the run.
        max_requests: requests, repeated ones and those of earlier starts included, after which nothing more is asked.
        max_tokens: tokens in and out after which nothing more is asked; what is in flight is still taken.
        sampling: send temperature and top-p (some reasoning models refuse them).
        limit_field: the field that limits the answer (newer hosted models want ``max_completion_tokens``).
        extra: further fields of the request's body, such as ``reasoning_effort``.
    """

    base_url: str = "http://127.0.0.1:8000/v1"
    model: str = ""
    key_env: str | None = None
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 8
    backoff_s: float = 1.0
    longest_wait_s: float = 120.0
    max_requests: int | None = None
    max_tokens: int | None = None
    sampling: bool = True
    limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_secrets()
        check(1 <= self.concurrency <= 1024, "endpoint.concurrency", "in 1..1024", self.concurrency)
        check(self.timeout_s > 0, "endpoint.timeout_s", "> 0", self.timeout_s)
        check(self.retries >= 0, "endpoint.retries", ">= 0", self.retries)
        check(0 < self.backoff_s <= self.longest_wait_s, "endpoint.backoff_s", "in (0, endpoint.longest_wait_s]",
              self.backoff_s)
        for name in ("max_requests", "max_tokens"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"endpoint.{name}", ">= 1 or null", value)
        own = {"model", "messages", "stream", "n", "max_tokens", "max_completion_tokens"} & self.extra.keys()
        check(not own, "endpoint.extra", "fields that have no setting of their own", sorted(own))

    def _check_secrets(self) -> None:
        """Refuse an address or a variable that holds the key itself, without repeating it."""
        try:
            parts = urlsplit(self.base_url)
            bad = (parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query
                   or parts.fragment)
        except ValueError:
            bad = True
        if bad:
            raise ValueError("endpoint.base_url must be http(s)://host[:port]/path without user, password or query (a "
                             "key belongs into the variable that endpoint.key_env names); got another form")
        if self.key_env is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", self.key_env):
            raise ValueError("endpoint.key_env must be the name of an environment variable in capitals (OPENAI_API_KEY)"
                             ", never the key itself; got something else")
