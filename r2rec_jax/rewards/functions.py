"""Reward functions of a user's own, named in the configuration by import path, called as trl calls them.

    def brevity(prompts, completions, **columns):
        return [1.0 if len(text) < 2000 else 0.0 for text in completions]

    rewards:
      functions:
        - function: my_rewards:brevity
          weight: 0.5

A function gets lists of one entry a completion, all by keyword: ``prompts`` (the user message), ``completions``
(decoded, end token removed) and the columns of :class:`Columns`. It returns one number a completion, None where it has
no opinion, which then adds nothing. It is called once a step, and with ``grpo.eval_every`` for held-out prompts too, in
the training process. Of what trl also hands in there is no ``completion_ids``, ``trainer_state``, ``log_extra`` and
``log_metric``, and a coroutine is refused.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.config import RewardFunction
from r2rec_jax.reasons import one_line

Function = Callable[..., Sequence[float | None]]


@dataclass(frozen=True)
class Columns:
    """What a reward function is told besides prompts and completions, one entry a completion.

    Attributes:
        example_ids: of the query.
        user_ids: raw id of its user.
        candidates: the candidates' labels, in prompt order.
        targets: label of the true item.
        target_numbers: its candidate number, from 1.
    """

    example_ids: list[str]
    user_ids: list[str]
    candidates: list[list[str]]
    targets: list[str]
    target_numbers: list[int]


def load_functions(entries: Sequence[RewardFunction]) -> dict[str, Function]:
    """Import path -> function.

    Raises:
        ValueError: a module or a name cannot be imported, is no function, or one that cannot be called so.
    """
    found: dict[str, Function] = {}
    for entry in entries:
        module, _, name = entry.function.partition(":")
        try:
            function: Any = getattr(importlib.import_module(module), name)
        except (Exception, SystemExit) as error:  # a module of the user's own may fail in any way
            raise ValueError(f"rewards.functions must be importable from the current folder or the environment; "
                             f"{entry.function!r} is not: {type(error).__name__}: {one_line(error)}") from error
        if not callable(function):
            raise ValueError(f"rewards.functions must name functions; {entry.function!r} is a "
                             f"{type(function).__name__}")
        _check_call(entry.function, function)
        found[entry.function] = cast(Function, function)
    return found


def _check_call(name: str, function: Callable[..., Any]) -> None:
    """Refuse what would fail at the first step of GRPO, hours later."""
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"rewards.functions must return their values; {name!r} is a coroutine function: give one that "
                         "runs it (asyncio.run)")
    given = ("prompts", "completions", *(column.name for column in fields(Columns)))
    try:
        inspect.signature(function).bind(**dict.fromkeys(given))
    except TypeError as error:
        raise ValueError(f"rewards.functions must take {', '.join(given)} by keyword, or those they need and "
                         f"**columns; {name!r} does not: {error}") from None
    except ValueError:
        return  # compiled functions may have no signature


def call_function(name: str, function: Function, prompts: Sequence[str], completions: Sequence[str], columns: Columns,
                  ) -> NDArray[np.float64]:
    """One number a completion, NaN where the function has no opinion.

    Raises:
        ValueError: another count of values, or a value that is neither a finite number nor None.
    """
    values = function(prompts=list(prompts), completions=list(completions), **asdict(columns))
    numbers = [float("nan") if value is None else _number(name, value) for value in values]
    if len(numbers) != len(completions):
        raise ValueError(f"reward function {name!r} must return one value a completion; got {len(numbers)} for "
                         f"{len(completions)}")
    return np.asarray(numbers, np.float64)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"reward function {name!r} must return finite numbers or None; got {value!r}")
    return number


TAKEN = frozenset({"reward_rank", "reward_step", "reward_true", "reward_std", "reward_seconds"})
"""Names under which GRPO writes numbers of its own."""


def add_functions(parts: Mapping[str, NDArray], entries: Sequence[RewardFunction],
                  values: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray]:
    """Reward parts with the weighted values in their ``total``, and each function's own under its name (its import
    path where two have one name, or GRPO has it already).

    Args:
        parts: arrays [N] by name, ``total`` among them.
        entries: weights.
        values: import path -> float64 [N], NaN for no opinion.

    Example:
        A total of 2.0, one function of weight 0.5 that says 3.0 and one without an opinion give a total of 3.5.
    """
    total = np.asarray(parts["total"], np.float64)
    for entry in entries:
        total = total + entry.weight * np.nan_to_num(values[entry.function], nan=0.0)
    names = {entry.function: f"reward_{entry.function.rpartition(':')[2]}" for entry in entries}
    if len(set(names.values())) < len(names) or TAKEN & set(names.values()):
        names = {path: f"reward_{path}" for path in names}
    return {**parts, "total": total, **{names[path]: value for path, value in values.items()}}
