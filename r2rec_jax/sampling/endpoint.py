"""A client for OpenAI-compatible chat servers: bounded concurrency, retries, a budget, and no question paid for twice.

The ``openai`` package speaks HTTP; its own retries are off, since ours look at more: 429, 5xx, time-outs, cut
connections and bodies that are no answer, with doubling waits and jitter, and ``Retry-After`` before all. Every request
leaves a line in a journal beside the answers (question, status, tokens), so that the budget and the reported cost hold
over all starts of a run.

Callers are synchronous: :meth:`Endpoint.work` runs their coroutines and yields what they hand over, block by block. The
event loop stands still while the caller has a block, so a result is durable before anything else happens.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from r2rec_jax.config.endpoint import EndpointConfig
from r2rec_jax.sampling.spending import RequestRow, read_key, read_requests, spending_of
from r2rec_jax.sampling.wire import Answer, Failure, Redactor, Unreadable, backoff_s, clean, read_answer, read_failure

if TYPE_CHECKING:
    from openai import AsyncOpenAI

J = TypeVar("J")
T = TypeVar("T")

IDLE_S = 1.0
"""Longest time between two blocks of :meth:`Endpoint.work`; an empty one is a sign of life."""

_UNREACHABLE_TRIES = 3
_REFUSED_AT_FIRST = 3
_DRY_QUESTIONS = 2
_END: Any = object()


class Stopped(RuntimeError):
    """Nothing more is asked: the budget is spent, or the server answers nobody. What came before is kept."""


class Unanswered(RuntimeError):
    """One question got no answer in all its tries; others may."""


class HeldBack(Unanswered):
    """A question was refused before any other was answered: the settings may be at fault, and it is left for later."""


class Endpoint:
    """Asks a chat server.

    Args:
        config: address, model, limits.
        journal: the file that keeps a line a request; its folder must exist.
        setting: how errors call the settings: ``thoughts.endpoint`` or ``--server``.

    Raises:
        ValueError: no model is named, the key's variable is not set, or the package ``openai`` is missing.
    """

    def __init__(self, config: EndpointConfig, journal: Path, *, setting: str = "endpoint") -> None:
        if not config.model:
            raise ValueError(f"{setting}.model must name a model of the server; got ''")
        try:
            import openai  # noqa: F401
        except ImportError:
            raise ValueError("an endpoint needs the package openai; pip install 'r2rec_jax[endpoint]'") from None
        self.config = config
        self._setting = setting
        self._key = read_key(config.key_env)
        self._redact = Redactor(self._key)
        self._journal = read_requests(journal)
        self.spending = spending_of(self._journal.rows)
        self._refused_before = {row.name for row in self._journal.rows if row.refused}
        self._jitter = random.Random()
        self._answered = self._refused = self._dry = self.unanswered = 0
        self._reason = self.why_unanswered = ""
        self._client: AsyncOpenAI | None = None
        self._stopping: asyncio.Event | None = None
        self._stored: asyncio.Event | None = None
        self._not_before = 0.0

    def __repr__(self) -> str:
        return f"Endpoint({self.config.model!r} at {self.config.base_url})"

    async def ask(self, name: str, prompt: str, *, max_new_tokens: int, temperature: float, top_p: float | None = None,
                  ) -> Answer:
        """The answer to one prompt. To be awaited inside :meth:`work`.

        Args:
            name: of the question, for the journal.
            prompt: the user message.
            max_new_tokens: limit of the answer.
            temperature, top_p: sent unless ``sampling`` is off.

        Raises:
            Stopped: the budget is spent, or the server answers nothing at all.
            Unanswered: every try failed; :class:`HeldBack` when the server refused it.
        """
        prompt = clean(prompt)
        body: dict[str, Any] = {"model": self.config.model, "messages": [{"role": "user", "content": prompt}],
                                self.config.limit_field: max_new_tokens}
        if self.config.sampling:
            body |= {"temperature": temperature} | ({} if top_p is None else {"top_p": top_p})
        tries = 0
        while True:
            await self._permission()
            self.spending.requests += 1
            found = await self._send(body, prompt)
            tries += 1
            if isinstance(found, Answer):
                self._record(RequestRow(name, 200, tokens_in=found.tokens_in, tokens_out=found.tokens_out,
                                        estimated=found.estimated, seconds=round(found.seconds, 3)))
                self._answered += 1
                self._dry = 0
                return found
            few = found.unreachable and not self._answered
            again = found.kind == "retry" and tries < min(
                self.config.retries + 1, _UNREACHABLE_TRIES if few else self.config.retries + 1)
            self._record(RequestRow(name, found.status, retried=again, refused=found.kind == "refused",
                                    reason=found.reason))
            if not again:
                return self._give_up(name, found, tries, few)
            await self._wait(found, tries)

    def _record(self, row: RequestRow) -> None:
        row.add_to(self.spending)
        self._journal.append([asdict(row)], sync=False)

    def _give_up(self, name: str, failure: Failure, tries: int, unreachable: bool) -> Answer:
        """What a question ends in that is not asked again: a refusal, or an exception."""
        if failure.kind == "fatal":
            raise self._stop(f"{self._server} refuses every request: {failure.reason}{self._advice(failure)}")
        if failure.kind == "refused":
            if self._answered or (self.spending.answers and name in self._refused_before):
                return Answer("", finish="refused", refusal=failure.reason)
            self._refused += 1
            if self._refused >= _REFUSED_AT_FIRST:
                raise self._stop(f"{self._server} took none of the first {self._refused} questions: {failure.reason}"
                                 f"{self._advice(failure)}")
            raise HeldBack(f"refused before any other question was answered: {failure.reason}{self._advice(failure)}")
        self._dry += 1
        if unreachable or self._dry >= _DRY_QUESTIONS:
            raise self._stop(f"{self._server} did not answer in {tries} tries; the last: {failure.reason}")
        raise Unanswered(f"no answer in {tries} tries; the last: {failure.reason}")

    @property
    def _server(self) -> str:
        return f"the server at {self.config.base_url}"

    def _advice(self, failure: Failure) -> str:
        """Which setting to look at."""
        text = failure.reason.casefold()
        if failure.status == 401:
            return f"; check the variable that {self._setting}.key_env names (now {self.config.key_env or 'none'})"
        if "max_completion_tokens" in text:
            return f"; set {self._setting}.limit_field to max_completion_tokens"
        if "temperature" in text or "top_p" in text:
            return f"; set {self._setting}.sampling to false"
        if failure.status == 404:
            return f"; check the address and the model {self.config.model!r}"
        return ""

    def _stop(self, reason: str) -> Stopped:
        self._reason = self._reason or reason
        if self._stopping is not None:
            self._stopping.set()
        return Stopped(self._reason)

    async def _permission(self) -> None:
        """Wait until what came is stored, and for the time before which the server wants nothing; nothing is sent after
        a stop or over the budget."""
        assert self._stored is not None
        loop = asyncio.get_running_loop()
        await self._stored.wait()
        while (rest := self._not_before - loop.time()) > 0:
            await self._pause(rest)
        c, spent = self.config, self.spending
        if self._reason:
            raise Stopped(self._reason)
        for name, used, limit in (("max_requests", spent.requests, c.max_requests),
                                  ("max_tokens", spent.tokens, c.max_tokens)):
            if limit is not None and used >= limit:
                raise self._stop(f"the budget is spent: {spent.requests} requests and {spent.tokens} tokens used, "
                                 f"{self._setting}.{name} is {limit}; raise it to go on")

    async def _wait(self, failure: Failure, tries: int) -> None:
        asked, c = failure.wait_s, self.config
        wait = backoff_s(tries, c.backoff_s, c.longest_wait_s, self._jitter.random())
        if asked is not None:
            if asked > c.longest_wait_s:
                raise self._stop(f"{self._server} asks to wait {asked:.0f} s ({failure.reason}); "
                                 f"{self._setting}.longest_wait_s is {c.longest_wait_s:g}; run again later")
            loop = asyncio.get_running_loop()
            self._not_before = max(self._not_before, loop.time() + asked)
            wait = asked + min(wait, c.backoff_s) * self._jitter.random()
        await self._pause(wait)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but wake at a stop."""
        assert self._stopping is not None
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
        raise Stopped(self._reason)

    async def _send(self, body: dict[str, Any], prompt: str) -> Answer | Failure:
        """One request."""
        import openai

        assert self._client is not None
        loop = asyncio.get_running_loop()
        started = loop.time()
        late = Failure("retry", f"no answer within {self.config.timeout_s:g} s")
        try:
            async with asyncio.timeout(self.config.timeout_s):
                raw = await self._client.chat.completions.with_raw_response.create(
                    **body, extra_headers=self._headers(), extra_body=self.config.extra or None)
                return read_answer(raw.content, prompt, self._redact, loop.time() - started)
        except Unreadable as error:
            return Failure("retry", str(error), 200)
        except openai.APIStatusError as error:
            response = error.response
            return read_failure(response.status_code, response.content, response.headers, self._redact,
                                datetime.now(UTC))
        except (TimeoutError, openai.APITimeoutError):
            return late
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__ if error.__cause__ else "no connection"
            return Failure("retry", f"the connection failed ({cause})", unreachable="Connect" in cause)

    def _connect(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        return AsyncOpenAI(api_key=self._key or "none", base_url=self.config.base_url, max_retries=0,
                           timeout=self.config.timeout_s)

    def _headers(self) -> dict[str, Any]:
        """Takes out what the package would add from the environment, and the key where there is none."""
        from openai import Omit

        left_out = ["OpenAI-Organization", "OpenAI-Project"] + ["Authorization"] * (self._key is None)
        return {name: Omit() for name in left_out}

    def work(self, jobs: Iterable[J], do: Callable[[J, Callable[[T], None]], Awaitable[None]],
             ) -> Generator[list[T], None, None]:
        """Run ``do(job, hand_over)`` for every job, at most ``concurrency`` at a time.

        A job that ends in :class:`Unanswered` is counted in ``unanswered``, and the others go on. After
        :class:`Stopped` no further job is begun and no request sent; answers in flight are still handed over. Nor does
        a job send a request before what it handed over is taken: a kill loses one question a job at most.

        Args:
            jobs: begun in this order.
            do: asks, and hands over results.

        Yields:
            What was handed over since the last block, in that order; empty after :data:`IDLE_S` without any.

        Raises:
            Stopped: after the last block, when not every job was begun and ended.
        """
        queue: asyncio.Queue[T] = asyncio.Queue()
        waiting = iter(jobs)
        self._reason = self.why_unanswered = ""
        self.unanswered, self._not_before = 0, 0.0
        self._answered = self._refused = self._dry = 0
        with asyncio.Runner() as runner:
            try:
                pool = runner.run(self._begin(waiting, do, queue))
                ended = False
                while not ended:
                    block = runner.run(_next_block(queue))
                    ended = _END in block
                    yield [entry for entry in block if entry is not _END]
                    if self._stored is not None and queue.empty():
                        self._stored.set()
                runner.run(_result(pool))
            finally:
                if self._client is not None:
                    runner.run(self._client.close())
                    self._client = None
        if self._reason:
            raise Stopped(self._reason)

    async def _begin(self, waiting: Iterator[J], do: Callable[[J, Callable[[T], None]], Awaitable[None]],
                     queue: asyncio.Queue[T]) -> asyncio.Future[Any]:
        self._client, self._stopping, self._stored = self._connect(), asyncio.Event(), asyncio.Event()
        stored = self._stored
        stored.set()

        def hand_over(result: T) -> None:
            stored.clear()
            queue.put_nowait(result)

        async def worker() -> None:
            for job in waiting:
                try:
                    await do(job, hand_over)
                except Unanswered as error:
                    self.unanswered += 1
                    self.why_unanswered = str(error)
                except Stopped:
                    return

        pool = asyncio.gather(*(worker() for _ in range(self.config.concurrency)))
        pool.add_done_callback(lambda _: queue.put_nowait(_END))
        return pool


async def _next_block(queue: asyncio.Queue[T]) -> list[T]:
    try:
        async with asyncio.timeout(IDLE_S):
            block = [await queue.get()]
    except TimeoutError:
        return []
    while not queue.empty():
        block.append(queue.get_nowait())
    return block


async def _result(pool: asyncio.Future[Any]) -> None:
    await pool
