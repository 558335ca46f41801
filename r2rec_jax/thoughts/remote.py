"""The ``endpoint`` teacher: a model behind a chat server, under the masked progressive prompt (section 3.2.2).

Questions are open side by side, and each outcome is handed over as it comes. An answer that the validator rejects is
asked for again, up to ``attempts`` times over all starts of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from r2rec_jax.config import fingerprint
from r2rec_jax.prompts.answer import ANSWER, END_THINK, THINK
from r2rec_jax.prompts.thought import teacher_prompt
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.sampling.endpoint import Endpoint, HeldBack, Stopped, Unanswered
from r2rec_jax.sampling.wire import Answer
from r2rec_jax.thoughts.local import class_of, read_thought
from r2rec_jax.thoughts.teacher import GivenUp, Outcome, Rejected, Task, Thought, Written
from r2rec_jax.thoughts.validate import problems


def completion_text(answer: Answer) -> str:
    r"""An answer as one completion: reasoning that came apart, or whose opening tag the chat template took, in
    ``<think>``.

    Example:
        >>> completion_text(Answer("<answer>4</answer>", reasoning="Drama fits."))
        '<think>\nDrama fits.\n</think>\n<answer>4</answer>'
    """
    text = answer.text or answer.refusal
    if END_THINK in text:
        return text if THINK in text else f"{THINK}\n{text}"
    if answer.reasoning.strip() and END_THINK not in answer.reasoning:
        return f"{THINK}\n{answer.reasoning.strip()}\n{END_THINK}\n{text}"
    return text


def _with_think(text: str) -> str:
    """A completion without think tags: what stands before its last answer block is the reasoning."""
    at = text.rfind(ANSWER)
    if at < 0 or END_THINK in text:
        return text
    return f"{THINK}\n{text[:at].replace(THINK, '').strip()}\n{END_THINK}\n{text[at:]}"


class RemoteTeacher:
    """Asks a chat server, validates, asks again.

    Args:
        endpoint: the server.
        domain: whose prompt wording it uses.
        attempts: how often one chain may be tried.
        max_new_tokens: longest answer, hidden reasoning included.
        temperature: of the answers.

    Attributes:
        accepted: thoughts written.
        rejected: reasons of rejected attempts, and how many each.
    """

    name = "endpoint"

    def __init__(self, endpoint: Endpoint, domain: str, *, attempts: int, max_new_tokens: int, temperature: float,
                 ) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be >= 1; got {attempts}")
        self._endpoint, self._domain, self._attempts = endpoint, domain, attempts
        self._max_new_tokens, self._temperature = max_new_tokens, temperature
        self.accepted = 0
        self.rejected: dict[str, int] = {}

    @property
    def version(self) -> str:
        """Domain, model and sampling settings; not the address, the limits or the number of attempts, so that what was
        paid for stays when those change."""
        c = self._endpoint.config
        sampling = [c.sampling, self._temperature] if c.sampling else [False]
        return f"{self._domain}-{fingerprint(c.model, sampling, self._max_new_tokens, c.extra)[:16]}"

    def figures(self) -> dict[str, int]:
        """What a progress bar shows."""
        spent = self._endpoint.spending
        return {"accepted": self.accepted, "rejected": sum(self.rejected.values()), "retried": spent.retried,
                "tokens_in": spent.tokens_in, "tokens_out": spent.tokens_out}

    def write_each(self, tasks: Sequence[Task]) -> Generator[list[Outcome], None, None]:
        """As :class:`~r2rec_jax.thoughts.teacher.Teacher` says.

        Raises:
            Stopped: the budget is spent, the server answers nobody, or it refused questions before it answered any.
        """
        if not tasks:
            return
        yield from self._endpoint.work(enumerate(tasks), self._write)
        if self._endpoint.unanswered:
            raise Stopped(f"{self._endpoint.unanswered} questions were left: {self._endpoint.why_unanswered}")

    async def _write(self, job: tuple[int, Task], hand_over: Callable[[Outcome], None]) -> None:
        row, task = job
        prompt = teacher_prompt(task.chain, self._domain)
        for attempt in range(task.tried, self._attempts):
            try:
                answer = await self._endpoint.ask(task.name, prompt, max_new_tokens=self._max_new_tokens,
                                                  temperature=self._temperature)
            except HeldBack:
                raise
            except Unanswered as error:
                reason, text = str(error), ""
            else:
                text = completion_text(answer)
                thought, reason = self._judge(answer, text, task.chain)
                if thought is not None:
                    self.accepted += 1
                    hand_over(Written(row, thought))
                    return
            kind = class_of(reason.split("; ")[0])
            self.rejected[kind] = self.rejected.get(kind, 0) + 1
            hand_over(Rejected(row, attempt, reason, text))
        hand_over(GivenUp(row))

    def _judge(self, answer: Answer, text: str, chain: ChainView) -> tuple[Thought | None, str]:
        """The thought in an answer, or why there is none."""
        if answer.refusal:
            return None, f"refused: {answer.refusal}"
        if answer.finish == "length":
            return None, f"cut off at the limit of {self._max_new_tokens} tokens"
        thought = read_thought(_with_think(text), opened_think=False, teacher=self.name)
        if thought is None:
            return None, "no reasoning or no rating"
        found = problems(thought, chain, self._domain)
        return (None, "; ".join(found)) if found else (thought, "")
