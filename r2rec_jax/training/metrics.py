"""What a stage logs: ``metrics.jsonl``, one JSON a row, and TensorBoard events beside it.

A row is flat: ``{"stage": "sft", "step": 3, "seconds": 1.2, "loss": 0.7, ...}``. A look between two steps has a row of
its own, with the number of steps before it. When a stage resumes from step k, what came after step k is dropped, so the
file is that of a run that never stopped (but for the seconds).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from r2rec_jax.files import write_text
from r2rec_jax.progress import say

LOOK = "eval_"
"""How all names of a look begin: what was measured after a step, on what is not trained on."""


class JsonLines:
    """An append-only file of one JSON object a line that survives being cut off anywhere.

    Args:
        path: created with its folder on the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop every row that is not wanted, and a torn last line; the file is replaced in one step.

        A damaged line elsewhere, which no kill explains, is dropped too, and named.
        """
        self.close()
        if not self.path.exists():
            return
        kept = []
        lines = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1], start=1):
            try:
                row = json.loads(line)
            except ValueError:
                say(f"{self.path}: line {number} is damaged and left out")
                continue
            if wanted(row):
                kept.append(line.decode("utf-8") + "\n")
        write_text(self.path, "".join(kept))

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, whole, and hand it to the operating system."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make what was written survive a power cut."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; the next row opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class MetricsWriter:
    """Rows of one stage, in ``<folder>/metrics.jsonl`` and ``<folder>/tensorboard/<stage>``.

    Args:
        folder: of the run; the JSONL file may be shared by stages.
        stage: name in the rows, and prefix of the TensorBoard tags.
        tensorboard: write events too.
    """

    def __init__(self, folder: Path, stage: str, tensorboard: bool = True) -> None:
        self.folder, self.stage = Path(folder), stage
        self.rows = JsonLines(self.folder / "metrics.jsonl")
        self._tensorboard = tensorboard
        self._events: Any = None
        self._purge_step: int | None = None

    def resume(self, step: int) -> None:
        """Go on after ``step``: this stage's later rows are dropped (all of them at step 0), and a look after it, which
        is taken again."""
        self.rows.keep(lambda row: row.get("stage") != self.stage or row.get("step", 0) + is_look(row) <= step)
        self._close_events()
        self._purge_step = step + 1 if step else 0

    def write(self, step: int, values: Mapping[str, Any], seconds: float) -> None:
        """One row: numbers of update ``step`` (from 1), or of a look after it (from 0), which took ``seconds``."""
        reserved = {"stage", "step", "seconds"} & values.keys()
        if reserved:
            raise ValueError(f"a metric must not be named like a column of its own; got {sorted(reserved)}")
        self.rows.append({"stage": self.stage, "step": step, "seconds": round(seconds, 4), **values})
        if not self._tensorboard:
            return
        if self._events is None:
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(self.folder / "tensorboard" / self.stage), purge_step=self._purge_step)
        for name, value in {**values, f"{LOOK * is_look(values)}seconds": seconds}.items():
            value = plain(value)
            if isinstance(value, int | float):
                self._events.add_scalar(f"{self.stage}/{name}", value, step)

    def sync(self) -> None:
        """Make the rows durable (before a checkpoint that counts on them)."""
        self.rows.sync()
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Close both files."""
        self.rows.close()
        self._close_events()

    def _close_events(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None


def is_look(row: Mapping[str, Any]) -> bool:
    """Whether a row is of a look, and not of a step."""
    return any(name.startswith(LOOK) for name in row)


def plain(value: Any) -> Any:
    """JSON-ready: arrays and NumPy scalars become Python values, numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return plain(np.asarray(value).tolist())
