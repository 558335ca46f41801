"""Flags of ``evaluate`` that look at a run by other settings than its own."""

from __future__ import annotations

from argparse import SUPPRESS
from collections.abc import Mapping
from typing import Any, Literal

LOOK: Mapping[str, tuple[Any, str]] = {
    "split": (Literal["test", "validation", "sft", "rl"],
              "which frozen queries; of another split than the run's all, unless --users says how many"),
    "negatives": (Literal["uniform", "popularity", "disliked"] | None,
                  "whose candidate lists; null takes those of data.negatives"),
    "users": (int | None, "how many queries, in file order; null takes all"),
    "method": (Literal["generate", "likelihood"],
               "likelihood ranks candidates by how likely their lines are after the user's latest likes"),
    "likelihood": (Literal["sum", "mean", "prior"],
                   "of a line: summed, a token, or minus that of the line without the user"),
    "lines": (Literal["facts", "names"], "items with year and genres, or by their names alone"),
    "chains": (Literal["own", "swapped", "none"],
               "show the chains of another user, or none, to see whether the model uses them"),
    "temperature": (float, "0 is greedy"),
    "top_p": (float, "of the sampling"),
    "max_new_tokens": (int, "completion limit in tokens"),
    "answers": (int, "drawn for a query; figures are their mean"),
    "batch_size": (int, "prompts decoded together"),
}
"""Type and help of the settings of ``evaluate`` that a look may change."""


def add_look(parser: Any, flags: Mapping[str, tuple[Any, str]] = LOOK) -> None:
    """Add flags to an entry's parser, without defaults: null is a value."""
    for name, (kind, text) in flags.items():
        parser.add_argument(f"--{name}", type=kind, default=SUPPRESS, help=text)


def given_look(given: Any) -> dict[str, Any]:
    """Those flags that were given, for :meth:`~r2rec_jax.config.EvaluateConfig.look`."""
    return {name: given[name] for name in LOOK if name in given}
