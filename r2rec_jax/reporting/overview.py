"""All lists of experiments in one table: what the recipe's steps reach and add, and what classical models reach."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from r2rec_jax.evaluation.comparison import role
from r2rec_jax.reporting.cells import spread, table
from r2rec_jax.reporting.comparison import listed, probability

Entry = Mapping[str, Any]

BEFORE = ("pretrained", "base")
"""What SFT starts from: the model after further reading, where the recipe has that, else as it comes."""
STEPS = ("sft", "sft+grpo")
ADDED = (("sft+grpo", "sft"), ("sft+grpo", "popularity"))
HEAD = ["list", "users a seed", "seeds", "before", "sft", "sft+grpo", "before-likelihood", "sft-likelihood",
        "sft+grpo-likelihood", "popularity", "best classical model run", "sft+grpo minus sft",
        "sft+grpo minus popularity"]


def overview(lists: Sequence[Entry]) -> str:
    """HitRatio@1 of the main systems of every list, mean ± standard deviation over seeds, and two tests (p by Holm).

    A system that a list does not have, or has not run yet, is a dash; lists of searches alone are left out.

    Args:
        lists: contents of ``evidence_*.json``.
    """
    prose = ("HitRatio@1 on test queries, mean ± standard deviation over seeds; in brackets p after Holm's correction "
             "over the main table's tests on HitRatio@1. **before**: pretrained where the recipe has that, else base. "
             "**best classical model run**: of the few that the list ran; others may be better. "
             "Data, negatives and split stand with each list below.")
    return "\n\n".join([prose, table(HEAD, [_line(found) for found in lists if main_rows(found)], right=len(HEAD) - 1)])


def anchor(heading: str) -> str:
    """The fragment by which GitHub links a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def main_rows(found: Entry) -> list[Entry]:
    """Rows that the main table's tests are of: each system's of the first headline experiment that has it."""
    rows = [row for row in found["rows"] if row["headline"] and row["chains"] == "own"]
    order = [experiment["name"] for experiment in found["experiments"]]
    rows.sort(key=lambda row: order.index(row["experiment"]) if row["experiment"] in order else len(order))
    first: dict[str, str] = {}
    return [row for row in rows if first.setdefault(row["system"], row["experiment"]) == row["experiment"]]


def _line(found: Entry) -> list[str]:
    rows = main_rows(found)
    by_system: dict[str, list[Entry]] = {}
    first: dict[str, str] = {}
    for row in rows:
        if first.setdefault(role(row["system"]), row["system"]) == row["system"]:
            by_system.setdefault(role(row["system"]), []).append(row)
    before = next((name for name in BEFORE if name in by_system), BEFORE[-1])
    systems = [*(before, *STEPS), *(f"{name}-likelihood" for name in (before, *STEPS)), "popularity"]
    return [f"[{found['title']}](#{anchor(found['title'])})", listed(sorted({row["users"] for row in rows})),
            listed(sorted({row["seed"] for row in rows})),
            *(spread(by_system.get(name, []), "hr@1") for name in systems), _best_classical(by_system),
            *(_test(found, *pair) for pair in ADDED)]


def _best_classical(by_system: Mapping[str, Sequence[Entry]]) -> str:
    classical = [name for name, own in by_system.items() if own[0]["method"] == "scores"]
    if not classical:
        return "-"
    best = max(classical, key=lambda name: np.mean([row["hr@1"] for row in by_system[name]]))
    return f"{best} {spread(by_system[best], 'hr@1')}"


def _test(found: Entry, system: str, minus: str) -> str:
    tests = [test for test in found["significance"]
             if (test["system"], test["minus"], test["metric"]) == (system, minus, "hr@1")]
    return f"{tests[0]['difference']:+.3f} ({probability(tests[0]['p_holm'])})" if tests else "-"
