"""Cells, tables and links in Markdown, for reports that are made from result files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Entry = Mapping[str, Any]


def table(head: Sequence[str], lines: Sequence[Sequence[str]], *, right: int) -> str:
    """A Markdown table whose last ``right`` columns are flush right."""
    rule = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
                     for line in (head, rule, *lines))


def spread(rows: Sequence[Entry], name: str, form: str = ".3f", *, bold: bool = False) -> str:
    """Mean ± standard deviation over the rows that have a value; ``-`` where none has."""
    text = mean_spread([row[name] for row in rows if row.get(name) is not None], form)
    return f"**{text}**" if bold else text


def mean_spread(values: Sequence[float], form: str) -> str:
    """Mean ± standard deviation; the value alone where there is one, ``-`` where there is none."""
    if not values:
        return "-"
    mean = format(float(np.mean(values)), form)
    return mean if len(values) == 1 else f"{mean} ± {format(float(np.std(values, ddof=1)), form)}"


def interval(test: Entry) -> str:
    """A difference with its 95% interval."""
    return f"{test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]"


def linked(path: Path, folder: Path) -> str:
    """A file's path as a document in ``folder`` links it."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
