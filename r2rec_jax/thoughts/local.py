"""The ``local`` teacher: a language model of ours under the masked progressive prompt (section 3.2.2).

It knows no model: it is handed a callable that turns prompts into completions. Every attempt at a chain has a random
key of its own; the first valid thought is kept, and a chain with none after the last attempt is given up and reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from r2rec_jax.prompts.answer import parse_rating, split_completion
from r2rec_jax.prompts.thought import teacher_prompt
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.thoughts.teacher import BatchTeacher, Thought
from r2rec_jax.thoughts.validate import problems

Generate = Callable[[list[str], list[str]], list[str]]
"""(prompts, random keys, one each) -> completions, one each."""

_LABEL = re.compile(r"^(?:reasoning(?: process)?|final answer)\s*:\s*", re.IGNORECASE)
_MARK = re.compile(r"^(?:[-*•#>]+\s*|(?:step|hop)\s*[0-9]{1,2}\s*[.:)]?\s*|[0-9]{1,2}\s*[.):]\s+)+", re.IGNORECASE)


def read_thought(text: str, *, opened_think: bool, teacher: str = "local") -> Thought | None:
    """A teacher's completion as a thought; None without a rating or without reasoning.

    List marks ("2.", "Step 2:", "-") in front of a line are taken off: models number their steps whatever they are
    told, and numbered lines do not count as statements.
    """
    rating = parse_rating(text, opened_think=opened_think)
    reasoning, _ = split_completion(text, opened_think=opened_think)
    lines = (_MARK.sub("", _LABEL.sub("", " ".join(line.replace("**", "").split()))) for line in reasoning.split("\n"))
    statements = tuple(dict.fromkeys(line for line in lines if line))
    if rating is None or not statements:
        return None
    return Thought(statements, rating, teacher)


class LocalTeacher(BatchTeacher):
    """Asks a model, validates, asks again.

    Args:
        generate: prompts and random keys in, completions out.
        domain: whose prompt wording it uses.
        model: what identifies the model and its sampling settings; part of the store's key.
        attempts: how often one chain may be tried.
        opened_think: whether the model's chat template ends in ``<think>``.
    """

    name = "local"

    def __init__(self, generate: Generate, domain: str, *, model: str, attempts: int, opened_think: bool) -> None:
        if attempts < 1:
            raise ValueError(f"attempts must be >= 1; got {attempts}")
        self._generate, self._domain, self._model = generate, domain, model
        self._attempts, self._opened_think = attempts, opened_think
        self.rejected: dict[str, int] = {}

    @property
    def version(self) -> str:
        """Domain, model and number of attempts."""
        return f"{self._domain}-{self._model}-{self._attempts}"

    def write_many(self, chains: Sequence[ChainView], keys: Sequence[str]) -> list[Thought | None]:
        """A valid thought for each chain, None where every attempt failed; ``rejected`` counts why."""
        thoughts: list[Thought | None] = [None] * len(chains)
        prompts = [teacher_prompt(chain, self._domain) for chain in chains]
        for attempt in range(self._attempts):
            rows = [row for row, thought in enumerate(thoughts) if thought is None]
            if not rows:
                break
            texts = self._generate([prompts[row] for row in rows], [f"{keys[row]}/{attempt}" for row in rows])
            for row, text in zip(rows, texts, strict=True):
                thoughts[row] = self._accept(text, chains[row])
        return thoughts

    def _accept(self, text: str, chain: ChainView) -> Thought | None:
        thought = read_thought(text, opened_think=self._opened_think)
        if thought is None:
            reason = "no reasoning or no rating"
        else:
            found = problems(thought, chain, self._domain)
            if not found:
                return thought
            reason = class_of(found[0])
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        return None


def class_of(problem: str) -> str:
    """A problem without its numbers and quotations, so that equal kinds are counted together."""
    return re.sub(r"\s+", " ", re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+", "", problem)).strip(" :;,")
