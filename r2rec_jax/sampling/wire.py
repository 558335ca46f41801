"""What a chat server sends back, read with suspicion: answers, failures, waits, and no key in any of them.

A body may be cut off, be no JSON, lack choices or have another schema: :func:`read_answer` says which, and the client
asks again. Text from outside goes through a :class:`Redactor` before anybody else sees it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import quote

LONGEST_REASON = 300
"""Characters of a server's error text that are kept."""

_CHARACTERS_A_TOKEN = 4
"""For servers that do not report usage (English text: about four)."""


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: the message's content; empty for a refusal.
        reasoning: what reasoning servers send apart from the content.
        finish: why it ended: ``stop``, ``length`` (the limit), ``content_filter``, ...
        refusal: why the server or the model refused; empty when it did not.
        tokens_in, tokens_out: tokens of the prompt and of the answer, hidden reasoning included.
        estimated: the server reported no usage; the token counts are a quarter of the characters.
        seconds: wall-clock seconds of the request that brought it.
    """

    text: str
    reasoning: str = ""
    finish: str = "stop"
    refusal: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A request without an answer.

    Attributes:
        kind: ``retry`` (may pass), ``refused`` (this question is not taken), ``fatal`` (no question will be).
        reason: one line, without the key.
        status: HTTP status; 0 when there was none.
        wait_s: seconds that the server asked to wait; None when it did not.
        unreachable: no connection came about.
    """

    kind: Literal["retry", "refused", "fatal"]
    reason: str
    status: int = 0
    wait_s: float | None = None
    unreachable: bool = False


class Unreadable(ValueError):
    """A body that is no chat answer; the message says why."""


class Redactor:
    """Takes the key out of texts from outside, in plain, JSON-escaped and percent-encoded spelling.

    Example:
        >>> Redactor("sk-1234/x")("bad key sk-1234/x (sk-1234%2Fx)")
        'bad key [key] ([key])'
    """

    def __init__(self, key: str | None) -> None:
        key = key or ""
        spellings = {key, json.dumps(key)[1:-1], key.replace("/", "\\/"), quote(key, safe=""), quote(key)}
        self._spellings = sorted(spellings - {""}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """The text with ``[key]`` in place of the key."""
        for spelling in self._spellings:
            text = text.replace(spelling, "[key]")
        return text

    def __repr__(self) -> str:
        return "Redactor()"


def clean(text: str) -> str:
    """A text that any encoder takes: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def short_line(text: str) -> str:
    """One line of at most :data:`LONGEST_REASON` characters."""
    line = " ".join(clean(text).split())
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "..."


def read_answer(body: bytes, prompt: str, redact: Redactor, seconds: float = 0.0) -> Answer:
    """The answer in a body of status 200.

    Args:
        body: as it came.
        prompt: what was asked, for the estimate of its tokens.
        redact: applied to every text in it.
        seconds: of the request.

    Raises:
        Unreadable: no JSON, an error instead of an answer, no choices, or another schema.
    """
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        raise Unreadable(f"the body of {len(body)} bytes is no JSON") from None
    if not isinstance(payload, dict):
        raise Unreadable("the body is no JSON object")
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices:
        error = payload.get("error")
        raise Unreadable(short_line(redact(f"an error instead of an answer: {_message_of(error)}")) if error else
                         "the answer has no choices")
    first = choices[0]
    message = first.get("message") if isinstance(first, dict) else None
    if not isinstance(message, dict):
        raise Unreadable("the answer's first choice has no message")
    content, refusal = message.get("content"), message.get("refusal")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    texts = [_text(content), _text(reasoning), refusal if isinstance(refusal, str) else ""]
    text, thought, refused = (redact(clean(part)) for part in texts)
    finish = redact(first["finish_reason"]) if isinstance(first.get("finish_reason"), str) else "stop"
    if finish == "content_filter" and not text:
        refused = refused or "the content filter took the answer"
    tokens_in, tokens_out, estimated = _usage(payload.get("usage"), prompt, text + thought)
    return Answer(text, thought, finish, refused, tokens_in, tokens_out, estimated, seconds)


def _text(content: Any) -> str:
    """A message's content: a string, nothing, or a list of parts of which those with text count."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    raise Unreadable(f"the message's content is a {type(content).__name__}")


def _usage(usage: Any, prompt: str, text: str) -> tuple[int, int, bool]:
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    if all(isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**40 for count in counts):
        return counts[0], counts[1], False  # type: ignore[return-value]
    return -(-len(prompt) // _CHARACTERS_A_TOKEN), -(-len(text) // _CHARACTERS_A_TOKEN), True


def read_failure(status: int, body: bytes, headers: Mapping[str, str], redact: Redactor, now: datetime) -> Failure:
    """A failure from an HTTP status, its body and headers.

    408, 409, 425, 429 and 5xx may pass; an exhausted quota, a refused key, an unknown model or address and a
    redirection will not; any other 4xx concerns the question.
    """
    try:
        payload = json.loads(body)
    except (ValueError, RecursionError):
        payload = None
    error = payload.get("error", payload) if isinstance(payload, dict) else body.decode("utf-8", "replace")
    reason = short_line(redact(f"status {status}: {_message_of(error)}"))
    code = str(error.get("code") or error.get("type") or "") if isinstance(error, dict) else ""
    if status == 429 and code in ("insufficient_quota", "billing_hard_limit_reached"):
        return Failure("fatal", reason, status)
    if status in (408, 409, 425, 429) or status >= 500:
        return Failure("retry", reason, status, retry_after_s(headers, now))
    if status < 400 or status in (401, 402, 403, 404, 405, 407):
        return Failure("fatal", reason, status)
    return Failure("refused", reason, status)


def _message_of(error: Any) -> str:
    if isinstance(error, dict):
        error = error.get("message") or error.get("code") or error.get("detail") or "no message"
    return error if isinstance(error, str) else json.dumps(error, default=str)


def retry_after_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds that the headers ask to wait; None when they do not, or not readably (RFC 9110, 10.2.3).

    ``retry-after-ms`` (Azure, OpenAI) goes before ``Retry-After``, which holds seconds or an HTTP date; a date is held
    against the server's own ``Date`` where there is one, so that clocks may differ.

    Example:
        >>> retry_after_s({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT", "date": "Wed, 21 Oct 2026 07:27:30 GMT"},
        ...               datetime.now(UTC))
        30.0
    """
    lower = {name.lower(): value.strip() for name, value in headers.items()}
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(lower[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    until, server_now = _date(lower.get("retry-after")), _date(lower.get("date"))
    return None if until is None else max(0.0, (until - (server_now or now)).total_seconds())


def _date(text: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(text) if text else None
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    return found.replace(tzinfo=UTC) if found is not None and found.tzinfo is None else found


def backoff_s(tries: int, first_s: float, longest_s: float, draw: float) -> float:
    """Wait before the next try: first_s doubled with each, capped, times 0.5 to 1.

    Args:
        tries: failed tries so far, >= 1.
        first_s, longest_s: wait after the first failure, and the cap.
        draw: in [0, 1); the jitter, which keeps clients apart that failed together.

    Example:
        >>> [backoff_s(tries, 1.0, 5.0, 0.5) for tries in (1, 2, 3, 4, 99)]
        [0.75, 1.5, 3.0, 3.75, 3.75]
    """
    return min(longest_s, first_s * 2.0 ** min(tries - 1, 60)) * (0.5 + 0.5 * draw)
