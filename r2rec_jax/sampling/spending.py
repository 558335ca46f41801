"""What a chat server has cost so far, and the key that it is asked with.

Every request leaves one line in a journal, also one that failed. The sum over the journal is the cost of a run over all
its starts, and what the budget is held against.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from r2rec_jax.files import Journal


@dataclass
class Spending:
    """What was asked and what it cost, over all starts that wrote the journal.

    Attributes:
        requests: HTTP requests sent.
        answers: those that brought an answer.
        retried: those repeated.
        tokens_in, tokens_out: tokens of prompts and answers.
        estimated: answers whose tokens the server did not report.
    """

    requests: int = 0
    answers: int = 0
    retried: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: int = 0

    @property
    def tokens(self) -> int:
        """Tokens in and out."""
        return self.tokens_in + self.tokens_out


@dataclass(frozen=True)
class RequestRow:
    """One line of the journal of requests.

    Attributes:
        name: of the question.
        status: HTTP status; 0 when no answer came.
        retried: whether the request was repeated because of how it ended.
        refused: whether the server did not take the question.
        reason: why it brought no answer; empty when it did.
        tokens_in, tokens_out, estimated, seconds: as in :class:`~r2rec_jax.sampling.wire.Answer`.
    """

    name: str
    status: int
    retried: bool = False
    refused: bool = False
    reason: str = ""
    tokens_in: int = 0
    tokens_out: int = 0
    estimated: bool = False
    seconds: float = 0.0

    def add_to(self, spending: Spending) -> None:
        """Count everything but the request itself."""
        spending.answers += not self.reason
        spending.retried += self.retried
        spending.tokens_in += self.tokens_in
        spending.tokens_out += self.tokens_out
        spending.estimated += self.estimated


def read_key(key_env: str | None) -> str | None:
    """The key in an environment variable; None when no variable is named.

    Raises:
        ValueError: the variable is not set, or holds what no header can; the value is never shown.
    """
    if key_env is None:
        return None
    key = os.environ.get(key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"the environment variable {key_env} must hold the endpoint's key (printable ASCII, no spaces)"
                         f"; it {'does not' if key else 'is not set'}; set it, or leave endpoint.key_env null for a "
                         "server without keys")
    return key


def read_requests(path: Path) -> Journal[RequestRow]:
    """The journal of requests at a path."""
    names = {f.name for f in fields(RequestRow)}

    def decode(row: dict[str, Any]) -> RequestRow:
        if row.keys() != names or not all(isinstance(row[n], int) for n in ("tokens_in", "tokens_out", "status")):
            raise ValueError("not a request")
        return RequestRow(**row)

    return Journal(path, decode, what="a request", fix="move the file away; its costs then count no more")


def spending_of(rows: Iterable[RequestRow]) -> Spending:
    """The sum over a journal."""
    total = Spending()
    for row in rows:
        total.requests += 1
        row.add_to(total)
    return total
