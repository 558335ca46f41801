"""Training examples as token ids, and the batches they become (SFT of Eq. 3, GRPO of Eq. 4).

Three layouts give one :class:`Batch`: padded rows (one example a row), packed rows (several), and group rows (a prompt
and its G completions). A tokenizer whose pad token is its end token (DeepSeek-R1-Distill has one) still learns to stop:
the end token of a completion is a target of weight 1, whatever its id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from r2rec_jax.tokens.batches import Batch, empty, group_rows

if TYPE_CHECKING:
    from r2rec_jax.tokens.tokenizer import Tokenizer

__all__ = [
    "Batch", "Example", "FittedPrompt", "Limits", "fit_prompt", "group_rows",
    "make_example", "pack", "pad", "plan_packing",
]


@dataclass(frozen=True)
class Example:
    """A prompt and the completion that is trained on it, as token ids.

    Attributes:
        example_id: names the example in errors and logs.
        prompt_ids: context, never a target.
        completion_ids: targets, the end token included.
    """

    example_id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    @property
    def length(self) -> int:
        """Tokens of prompt and completion together."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Limits:
    """Longest prompt and longest completion (end token included), in tokens."""

    prompt_tokens: int
    completion_tokens: int


def check_fit(examples: Sequence[Example], positions: int, vocab_size: int, room: int, lower: str) -> None:
    """Refuse examples that a model cannot read, before hours are spent on those that it can.

    Args:
        examples: to be trained on.
        positions: tokens that the model was made for.
        vocab_size: rows of its embedding; other ids would read the wrong row without an error.
        room: tokens of a completion that is still to be written.
        lower: the settings that shorten them.

    Raises:
        ValueError: the longest is too long, or an id has no row (names the example).
    """
    longest = max(examples, key=lambda example: example.length)
    if longest.length + room > positions:
        written = f" and {room} to be written" if room else ""
        raise ValueError(f"examples must fit the {positions} positions of the backbone; {longest.example_id!r} has "
                         f"{longest.length} tokens{written}; lower {lower}")
    for example in examples:
        highest = max((*example.prompt_ids, *example.completion_ids))
        if highest >= vocab_size:
            raise ValueError(f"token ids must be below {vocab_size}, the rows of the backbone's embedding; "
                             f"{example.example_id!r} has {highest}; give the backbone its own tokenizer")


class FittedPrompt(NamedTuple):
    """A prompt's text within the limit, and how many chains were dropped for it."""

    text: str
    dropped: int


def make_example(
    tokenizer: Tokenizer,
    example_id: str,
    user_text: str,
    completion_text: str,
    limits: Limits,
) -> Example:
    r"""Tokenise one prompt and its completion.

    The user text is untrusted; the completion is our own markup, closed by the tokenizer's end token. Where the chat
    template itself opens ``"<think>\n"``, a completion that begins with it loses it, since the prompt already ends so.

    Args:
        tokenizer: gives the ids.
        example_id: kept, and named in errors.
        user_text: the whole user message.
        completion_text: reasoning and answer, without an end token.
        limits: longest prompt and completion in tokens; neither is ever cut.

    Returns:
        The example. With end token 2 and completion tokens 7, 8 the completion ids are ``(7, 8, 2)``.

    Raises:
        ValueError: when a part is longer than its limit, or the completion is empty.
    """
    chat = tokenizer.chat(user_text)
    completion = tokenizer.encode_completion(completion_text.removeprefix(chat.opening))
    if not completion:
        raise ValueError(f"a completion must hold at least one token; got an empty one in example {example_id!r}")
    completion.append(tokenizer.end_id)
    for part, count, limit in (
        ("prompt", len(chat.ids), limits.prompt_tokens),
        ("completion", len(completion), limits.completion_tokens),
    ):
        if count > limit:
            raise ValueError(
                f"a {part} must have at most {limit} tokens; got {count} in example {example_id!r}; "
                f"raise the limit or shorten the {part}"
            )
    return Example(example_id, tuple(chat.ids), tuple(completion))


def fit_prompt(
    render: Callable[[int], str], count_tokens: Callable[[str], int], n_chains: int, limit: int, name: str = "prompt"
) -> FittedPrompt:
    """The prompt with as many chains as the limit allows; the oldest chains go first, nothing is cut.

    Args:
        render: gives the prompt's text with the k newest chains.
        count_tokens: tokens of a text as it will be sent (template included).
        n_chains: chains at hand.
        limit: longest prompt in tokens.
        name: named in the error.

    Returns:
        Text and number of dropped chains. With chains of 100 tokens around a core of 300 and a limit of 620:
        ``fit_prompt(render, count, 5, 620)`` keeps 3 (600 tokens) and says ``dropped == 2``.

    Raises:
        ValueError: when the prompt is too long without any chain.
    """
    tokens = 0
    for kept in range(n_chains, -1, -1):
        text = render(kept)
        tokens = count_tokens(text)
        if tokens <= limit:
            return FittedPrompt(text, n_chains - kept)
    raise ValueError(
        f"a prompt must have at most {limit} tokens (prompts.max_tokens); got {tokens} for {name} without any chain; "
        "raise prompts.max_tokens, or lower prompts.liked or data.candidates"
    )


def pad(examples: Sequence[Example], length: int, targets: int, rows: int | None = None, pad_id: int = 0) -> Batch:
    """One example a row: ``[prompt | completion | padding]``.

    Completion token j is predicted from the token before it; the last token predicts nothing. Padded targets point at
    index 0 with weight 0; rows beyond the examples are padding throughout.

    Args:
        examples: at most ``rows`` of them.
        length: T, tokens a row.
        targets: C, targets a row.
        rows: B; None takes as many as there are examples.
        pad_id: written where there is no token; never read.

    Returns:
        A batch of NumPy arrays. ``pad([Example("a", (5, 6, 7), (8, 2))], length=7, targets=3)`` gives

            tokens         [[5, 6, 7, 8, 2, 0, 0]]
            positions      [[0, 1, 2, 3, 4, 0, 0]]
            segments       [[1, 1, 1, 1, 1, 0, 0]]
            parents        [[0, 0, 0, 0, 0, 0, 0]]
            target_index   [[2, 3, 0]]
            target_tokens  [[8, 2, 0]]
            target_weights [[1, 1, 0]]

    Raises:
        ValueError: when an example does not fit its row.
    """
    rows = len(examples) if rows is None else rows
    if len(examples) > rows:
        raise ValueError(f"a batch must have at most {rows} examples (one a row); got {len(examples)}")
    return _lay_out([[example] for example in examples], rows, length, targets, pad_id)


def plan_packing(lengths: Sequence[int], length: int) -> list[list[int]]:
    """Which examples share a row of ``length`` tokens: first fit in order of falling length, ties in given order.

    Example: ``plan_packing([3, 7, 4, 2], 8) == [[1], [2, 0], [3]]`` (7; 4 and 3; 2).

    Raises:
        ValueError: when an example is longer than a row.
    """
    plan: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        need = lengths[index]
        if need > length:
            raise ValueError(f"an example must have at most {length} tokens (one row); got {need} at index {index}")
        place = next((row for row, free in enumerate(room) if free >= need), None)
        if place is None:
            plan.append([])
            room.append(length)
            place = len(plan) - 1
        plan[place].append(index)
        room[place] -= need
    return plan


def pack(examples: Sequence[Example], rows: int, length: int, targets: int | None = None, pad_id: int = 0) -> Batch:
    """Several examples a row, each its own segment that sees nothing of the others (:func:`plan_packing` lays them).

    Args:
        examples: to lay out.
        rows: B.
        length: T, tokens a row.
        targets: C, targets a row; None takes T, which always suffices.
        pad_id: written where there is no token; never read.

    Returns:
        A batch of NumPy arrays. Examples ``a = (5, 6) -> (7, 2)`` and ``b = (9,) -> (2,)`` in one row of 7 give

            tokens         [[5, 6, 7, 2, 9, 2, 0]]
            positions      [[0, 1, 2, 3, 0, 1, 0]]
            segments       [[1, 1, 1, 1, 2, 2, 0]]
            target_index   [[1, 2, 4, 0, 0, 0, 0]]
            target_tokens  [[7, 2, 2, 0, 0, 0, 0]]
            target_weights [[1, 1, 1, 0, 0, 0, 0]]

    Raises:
        ValueError: when the examples need more rows, or one of them a longer row.
    """
    plan = plan_packing([example.length for example in examples], length)
    if len(plan) > rows:
        raise ValueError(f"packed examples must fit {rows} rows of {length} tokens; got {len(examples)} examples "
                         f"that need {len(plan)}; use more rows or fewer examples")
    layout = [[examples[index] for index in row] for row in plan]
    return _lay_out(layout, rows, length, length if targets is None else targets, pad_id)


def _lay_out(layout: Sequence[Sequence[Example]], rows: int, length: int, targets: int, pad_id: int) -> Batch:
    batch = empty(rows, length, targets, pad_id)
    for row, members in enumerate(layout):
        start = target = 0
        for segment, example in enumerate(members, start=1):
            prompt, count = len(example.prompt_ids), len(example.completion_ids)
            end = start + prompt + count
            if prompt == 0:
                raise ValueError(f"a prompt must have at least one token (it predicts the first target); "
                                 f"got none in example {example.example_id!r}")
            if end > length or target + count > targets:
                raise ValueError(
                    f"a row must hold at most {length} tokens and {targets} targets; "
                    f"got {end} and {target + count} with example {example.example_id!r}; use a larger bucket"
                )
            batch.tokens[row, start:end] = (*example.prompt_ids, *example.completion_ids)
            batch.positions[row, start:end] = np.arange(end - start)
            batch.segments[row, start:end] = segment
            batch.target_index[row, target : target + count] = np.arange(start + prompt - 1, end - 1)
            batch.target_tokens[row, target : target + count] = example.completion_ids
            batch.target_weights[row, target : target + count] = 1
            start, target = end, target + count
    return batch
