"""Which examples of an update share which row: packing into rows of a few fixed shapes.

An update's examples are laid first-fit decreasing into rows of T tokens and C targets. T and C follow from the examples
of the whole stage and of the update alone, never from what was compiled before, so a resumed run meets the same shapes;
there are at most three of them, or as many as the configuration names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from r2rec_jax.tokens.examples import Batch, Example, pack

MULTIPLE = 64
SHARES = (0.5, 0.75, 1.0)
"""Row lengths, as shares of the longest example."""
TARGET_SLACK = 1.25
"""Room for targets in a row, over the average share of targets among the tokens."""


@dataclass(frozen=True)
class RowShape:
    """A row of ``length`` tokens with up to ``targets`` trained ones (T and C)."""

    length: int
    targets: int


def round_up(count: float, multiple: int = MULTIPLE) -> int:
    """The next multiple: ``round_up(130) == 192``."""
    return int(-(-count // multiple)) * multiple


def row_shapes(examples: Sequence[Example], lengths: Sequence[int] = ()) -> tuple[RowShape, ...]:
    """The row shapes of a stage, shortest first.

    Args:
        examples: all of the stage's.
        lengths: row lengths to use; empty takes the longest example and 3/4 and 1/2 of it, in multiples of 64.

    Raises:
        ValueError: when the longest of ``lengths`` is shorter than an example, naming it.
    """
    if not examples:
        raise ValueError("training needs at least one example; got none")
    longest = max(examples, key=lambda example: example.length)
    sizes = sorted(set(lengths) or {round_up(share * longest.length) for share in SHARES})
    if sizes[-1] < longest.length:
        raise ValueError(f"sft.buckets must hold the longest example, {longest.length} tokens ({longest.example_id}); "
                         f"got {sizes[-1]}; add a longer one")
    share = sum(len(e.completion_ids) for e in examples) / sum(e.length for e in examples)
    shapes = []
    for size in sizes:
        fitting = max((len(e.completion_ids) for e in examples if e.length <= size), default=1)
        targets = max(fitting, TARGET_SLACK * share * size)
        shapes.append(RowShape(size, min(size, round_up(targets))))
    return tuple(shapes)


def plan_rows(examples: Sequence[Example], shape: RowShape) -> list[list[int]]:
    """Rows of example indices, first fit by falling length, within both limits of the shape.

    Example: with lengths 3, 7, 4, 2 (one target each) and a row of 8 tokens, ``[[1], [2, 0], [3]]``.
    """
    plan: list[list[int]] = []
    room: list[tuple[int, int]] = []
    for index in sorted(range(len(examples)), key=lambda i: (-examples[i].length, i)):
        tokens, targets = examples[index].length, len(examples[index].completion_ids)
        row = next((r for r, free in enumerate(room) if tokens <= free[0] and targets <= free[1]), None)
        if row is None:
            row = len(plan)
            plan.append([])
            room.append((shape.length, shape.targets))
        plan[row].append(index)
        room[row] = (room[row][0] - tokens, room[row][1] - targets)
    return plan


def pack_update(
    examples: Sequence[Example], shapes: Sequence[RowShape], rows: int, pad_id: int = 0
) -> list[Batch]:
    """An update's examples as device passes of ``rows`` rows each, all of one shape.

    Args:
        examples: of the update.
        shapes: of :func:`row_shapes`; the shortest that holds the longest example is taken.
        rows: B of a pass; the last pass may end with rows of padding.
        pad_id: written where there is no token; never read.
    """
    longest = max(example.length for example in examples)
    shape = next(shape for shape in shapes if shape.length >= longest)
    plan = plan_rows(examples, shape)
    laid = [pack([examples[i] for i in row], 1, shape.length, shape.targets, pad_id) for row in plan]
    laid += [pack([], 1, shape.length, shape.targets, pad_id)] * (-len(laid) % rows)
    return [jax.tree.map(lambda *parts: np.concatenate(parts), *laid[start:start + rows])
            for start in range(0, len(laid), rows)]
