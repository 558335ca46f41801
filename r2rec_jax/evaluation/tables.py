"""Result rows as a table on the terminal, in Markdown, and in a result file that says where its numbers come from.

Tables in documents are generated from result files, never typed.
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table

import r2rec_jax

Row = Mapping[str, Any]

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "grain", "numpy",
            "scipy", "duckdb", "pyarrow")

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("system", "system", ""), ("hr@1", "HitRatio@1", ".3f"), ("hr@3", "HitRatio@3", ".3f"),
    ("ndcg@3", "NDCG@3", ".3f"), ("valid_rate", "valid", ".1%"), ("seconds_per_user", "s/user", ".2f"),
    ("dataset", "data", ""), ("negatives", "negatives", ""), ("split", "split", ""), ("seed", "seed", "d"),
    ("users", "users", "d"),
)
"""(key in a row, heading, format) of the columns of a result table."""

CONTEXT = {"dataset": "{}", "negatives": "{} negatives", "split": "split {}", "seed": "seed {}", "users": "{} users",
           "questions": "{} questions", "answers": "{} answers each"}
"""Columns that say under which conditions a row was measured, and how the heading words them."""

REQUIRED = ("system", "dataset", "negatives", "split", "seed", "users", "hr@1", "hr@3", "ndcg@3")
"""What every ranking row of a result file must hold (baselines have no valid rate)."""

MISSING = "-"


def print_table(rows: Sequence[Row], title: str = "", *, file: IO[str] | None = None) -> None:
    """Print the rows as a table on standard output, or to ``file``.

    What all rows share (data, negatives, split, seed, users) stands once above the table, which then fits a terminal
    of 80 columns.
    """
    rows = [{key: value for key, value in row.items() if (key, value) != ("answers", 1)} for row in rows]
    shared = [key for key in CONTEXT if len({row.get(key) for row in rows}) == 1 and rows[0].get(key) is not None]
    columns = [column for column in (*COLUMNS, ("answers", "answers", "d"))
               if column[0] not in shared and (column[0] != "answers" or any("answers" in row for row in rows))]
    heading = ", ".join([title] * bool(title) + [CONTEXT[key].format(rows[0][key]) for key in shared])
    shown = Table()
    for (_, name, form) in columns:
        shown.add_column(name, justify="right" if form else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(_cell(row, key, form) for key, _, form in columns))
    console = Console(file=file, highlight=False)
    # A pipe has no width; rich would assume 80 columns and cut.
    console.print(heading, soft_wrap=True, markup=False)
    console.print(shown, width=None if console.is_terminal else 200)


def markdown(rows: Sequence[Row], columns: Sequence[tuple[str, str, str]] = COLUMNS) -> str:
    """The same table in Markdown.

    Example:
        >>> print(markdown([{"system": "base", "hr@1": 0.05}], COLUMNS[:3]))
        | system | HitRatio@1 | HitRatio@3 |
        |---|---:|---:|
        | base | 0.050 | - |
    """
    lines = [[heading for _, heading, _ in columns]]
    lines += [[_cell(row, key, form).replace("|", "\\|") for key, _, form in columns] for row in rows]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    rule = "|" + "|".join("---:" if form else "---" for _, _, form in columns) + "|"
    return "\n".join([text[0], rule, *text[1:]])


def provenance() -> dict[str, Any]:
    """Where a number comes from: created (UTC), commit, dirty, hardware, versions."""
    commit, dirty = own_code()
    return {"created": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit, "dirty": dirty,
            "hardware": hardware(), "versions": versions()}


def result_file(what: str, rows: Sequence[Row], config_sha256: str, **extra: Any) -> dict[str, Any]:
    """The contents of a result file.

    Args:
        what: one line that says what was measured.
        rows: ranking rows (:func:`~r2rec_jax.evaluation.protocol.summarize`) or benchmark rows.
        config_sha256: fingerprint of the configuration.
        extra: further entries (notes, significance, settings).

    Raises:
        ValueError: no rows, a ranking row without one of :data:`REQUIRED`, or a value that is no finite number.
    """
    if not rows:
        raise ValueError(f"a result file must have at least one row; {what!r} has none")
    for row in rows:
        lacking = [name for name in REQUIRED if "system" in row and name not in row]
        if lacking:
            raise ValueError(f"a ranking row must hold {', '.join(REQUIRED)}; {row['system']!r} lacks "
                             f"{', '.join(lacking)}")
        endless = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        if endless:
            raise ValueError(f"values of a row must be finite; got {endless[0]} = {row[endless[0]]}")
    return {"what": what, **provenance(), "config_sha256": config_sha256, "rows": [dict(row) for row in rows], **extra}


@cache
def own_code() -> tuple[str, bool | None]:
    """:func:`git_state` of this package when the process first asked: a commit made since is not what it runs."""
    return git_state(Path(r2rec_jax.__file__).resolve().parents[1])


def git_state(folder: Path) -> tuple[str, bool | None]:
    """(commit, dirty) of the checkout that ``folder`` is the root of, or of the one that its image was built from.

    Only the root counts: an installed package inside somebody else's checkout has no commit of its own. Files under
    ``results/`` do not make a checkout dirty, since programs write them. Where there is no checkout, ``R2REC_COMMIT``
    names what ``launch/Dockerfile`` built from; without it the state is ("unknown", None).

    Raises:
        ValueError: ``R2REC_COMMIT`` is needed and no commit.
    """
    root = _git(folder, "rev-parse", "--show-toplevel")
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if root is None or commit is None or Path(root).resolve() != folder.resolve():
        return _built_from("" if (folder / ".git").exists() else os.environ.get("R2REC_COMMIT", ""))
    status = _git(folder, "status", "--porcelain", "--", ".", ":(exclude)results")
    return commit, None if status is None else bool(status)


def _built_from(commit: str) -> tuple[str, bool | None]:
    """:func:`git_state` as an image was told of it: 40 hex digits, and ``-dirty`` behind them where it was."""
    if not commit:
        return "unknown", None
    found = re.fullmatch("([0-9a-f]{40})(-dirty)?", commit)
    if found is None:
        raise ValueError(f"R2REC_COMMIT must be a commit's 40 hex digits, or these and -dirty; got {commit!r}; build "
                         "the image as launch/Dockerfile says, or unset it")
    return found[1], found[2] is not None


def versions() -> dict[str, str]:
    """Versions of what decides a result: Python, this package and the libraries it computes with."""
    found = {"python": platform.python_version(), "r2rec_jax": r2rec_jax.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def cpus() -> list[int]:
    """Numbers of the CPUs that this process may use, rising."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def hardware() -> str:
    """One line: the accelerators, or the CPU with the cores and the memory this process may use.

    Example: ``"1x NVIDIA H100 80GB HBM3 (gpu); AMD EPYC 7B13, 16 cores, 128 GB"``.
    """
    import jax

    host = f"{_cpu_model()}, {len(cpus())} cores"
    try:
        host += f", {os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9:.0f} GB"
    except (ValueError, OSError, AttributeError):
        host += ", memory unknown"
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return host
    return f"{len(devices)}x {devices[0].device_kind} ({devices[0].platform}); {host}"


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None where there is no git or it refuses."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=30,
                              check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cell(row: Row, key: str, form: str) -> str:
    value = row.get(key)
    return MISSING if value is None else format(value, form)
