"""Settings of evaluation and export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from r2rec_jax.config.check import check

SHAPING = {"generate": ("temperature", "top_p", "max_new_tokens", "answers"), "likelihood": ("lines",)}
"""By method, the settings of :class:`EvaluateConfig` that decide its answers and that no file or system is named after
(files are, where a look differs from its run)."""

READ_BY = {"generate": SHAPING["generate"], "likelihood": ("likelihood", *SHAPING["likelihood"])}
"""By method, the settings that no other method reads."""


@dataclass(frozen=True)
class EvaluateConfig:
    """How checkpoints are evaluated.

    Attributes:
        split: ``test`` or ``validation``; ``sft`` and ``rl`` are the training queries themselves, to see whether a
            run has learned what it was shown.
        negatives: whose candidate lists test and validation queries have; null takes those of ``data.negatives``.
        users: how many of the frozen evaluation queries, in file order; null takes all.
        systems: which policies: ``base`` (in tables ``pretrained`` where the run trained its backbone), ``sft``,
            ``sft+grpo``.
        method: ``generate`` (*paper*) reads the ranking out of a completion; ``likelihood`` ranks candidates by how
            likely their lines are after the user's latest likes, which needs no answer format (the paper has no such
            row; systems are then called ``base-likelihood`` and so on).
        likelihood: of a line: the ``sum`` of its tokens' log-probabilities, their ``mean``, or the sum minus that of
            the same line without the user (``prior``). The last two are parts of the system's name.
        lines: of ``likelihood``: items with their ``facts`` (year, genres), or by their ``names`` alone.
        chains: what chains prompts show, to see whether a model uses them: the query's ``own``, those of another
            user's query (``swapped``), or ``none``, as with ``prompts.chains: false``. The last two are written to
            files of their own and are no systems of ``--compare``.
        temperature: of the completion (*paper*: 0.6); 0 is greedy.
        top_p: of the completion (*paper*: 0.9).
        max_new_tokens: completion limit in tokens.
        answers: completions drawn for every query (*paper*: 1). With several, figures and tests take their mean, and
            the luck of one draw weighs less. Of ``generate``.
        batch_size: prompts decoded together, each with its ``answers``.
    """

    split: Literal["test", "validation", "sft", "rl"] = "test"
    negatives: Literal["uniform", "popularity", "disliked"] | None = None
    users: int | None = None
    systems: Sequence[Literal["base", "sft", "sft+grpo"]] = ("base", "sft", "sft+grpo")
    method: Literal["generate", "likelihood"] = "generate"
    likelihood: Literal["sum", "mean", "prior"] = "sum"
    lines: Literal["facts", "names"] = "facts"
    chains: Literal["own", "swapped", "none"] = "own"
    temperature: float = 0.6
    top_p: float = 0.9
    max_new_tokens: int = 1024
    answers: int = 1
    batch_size: int = 8

    def __post_init__(self) -> None:
        check(self.negatives is None or self.split in ("test", "validation"), "evaluate.negatives",
              "null for training queries", self.negatives, "only test and validation queries have several lists")
        check(self.users is None or self.users >= 1, "evaluate.users", ">= 1 or null", self.users)
        check(bool(self.systems) and len(set(self.systems)) == len(self.systems), "evaluate.systems",
              "distinct and at least one", list(self.systems))
        check(self.chains == "own" or self.method == "generate", "evaluate.chains",
              "own with evaluate.method likelihood", self.chains, "its prompts show no chains")
        check(self.temperature >= 0, "evaluate.temperature", ">= 0", self.temperature)
        check(0 < self.top_p <= 1, "evaluate.top_p", "in (0, 1]", self.top_p)
        check(self.max_new_tokens >= 1, "evaluate.max_new_tokens", ">= 1", self.max_new_tokens)
        check(self.answers >= 1, "evaluate.answers", ">= 1", self.answers)
        check(self.answers == 1 or self.temperature > 0, "evaluate.answers", "1 at temperature 0", self.answers,
              "greedy answers to one prompt are all the same")
        check(self.batch_size >= 1, "evaluate.batch_size", ">= 1", self.batch_size)

    def look(self, **given: Any) -> EvaluateConfig:
        """These settings with those that a look gives; of another split all are asked, since ``users`` counts those of
        this one, and training queries have one list, whatever others have."""
        split = given.get("split", self.split)
        own = {"negatives": self.negatives if split in ("test", "validation") else None,
               "users": self.users if split == self.split else None}
        return replace(self, **own | given)

    def answer_settings(self, negatives: str) -> dict[str, Any]:
        """The settings that decide an answer: not who else is asked, nor how many at a time.

        Args:
            negatives: whose candidate lists are asked, ``data.negatives`` where this has none.
        """
        names = ["split", "chains", "method", *READ_BY[self.method]]
        settings = {name: getattr(self, name) for name in names} | {"negatives": negatives}
        # One answer is what there was before several could be drawn; what was answered then keeps its identity.
        return {name: value for name, value in settings.items() if (name, value) != ("answers", 1)}


@dataclass(frozen=True)
class ExportConfig:
    """What the export stage writes under ``<run>/export``.

    Attributes:
        formats: ``peft`` (adapter folder), ``merged`` (HF safetensors folder).
        checkpoint: whose adapter.
    """

    formats: Sequence[Literal["peft", "merged"]] = ("peft",)
    checkpoint: Literal["sft", "grpo"] = "grpo"
