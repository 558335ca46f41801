"""What lies in a run folder: whole, half done, and bit for bit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

MORE = "more checkpoints than are kept"


def steps_of(folder: Path) -> list[int]:
    return sorted(int(name) for name in names_of(folder) if name.isdigit())


def names_of(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def left_over(run: Path, stage: str) -> list[str]:
    """What a run folder holds that no orderly end leaves."""
    found = sorted(str(p.relative_to(run)) for folder in (run, run / stage, run / "export")
                   for p in (folder.iterdir() if folder.is_dir() else ())
                   if p.name.startswith(".") and p.suffix in (".tmp", ".old", ".gone", ".lock"))
    checkpoints = run / stage / "checkpoints"
    names, steps = names_of(checkpoints), steps_of(checkpoints)
    found += [f"{stage}/checkpoints/{name}" for name in sorted(names) if name.endswith("-tmp") or name[0] == "."]
    found += [f"step {step} without a list" for step in steps[-1:] if f"{step}.files.json" not in names]
    found += [MORE] if len(steps) > 2 else []
    for name in ("metrics.jsonl", f"{stage}/completions.jsonl"):
        data = (run / name).read_bytes() if (run / name).exists() else b""
        found += [f"a torn line in {name}"] if data and not data.endswith(b"\n") else []
    return found


def metric_rows(run: Path, stage: str) -> list[dict[str, Any]]:
    """The rows of a stage without what depends on the clock; a torn last line is left out."""
    text = (run / "metrics.jsonl").read_bytes() if (run / "metrics.jsonl").exists() else b""
    rows = [json.loads(line) for line in text[:text.rfind(b"\n") + 1].splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows if row["stage"] == stage]


def newest_row(run: Path, stage: str) -> int:
    """Step of a stage's newest row; 0 when it has none."""
    return max([0, *(row["step"] for row in metric_rows(run, stage))])


def read_state(checkpoints: Path) -> dict[str, Any]:
    """The newest checkpoint: bytes of every array, counts, place of the data iterator."""
    import orbax.checkpoint as ocp

    step = max(steps_of(checkpoints))
    found: dict[str, Any] = {"step": step}
    for tree in ("params", "optimizer"):
        with ocp.StandardCheckpointer() as reader:
            arrays = reader.restore((checkpoints / str(step) / tree).absolute())
        found |= {f"{tree} {name}": (str(x.dtype), x.shape, np.asarray(x).tobytes()) for name, x in arrays.items()}
    meta = json.loads((checkpoints / str(step) / "meta" / "metadata").read_text())
    return found | {name: meta[name] for name in ("counts", "loader", "identity", "arrays")}


def assert_same_files(folder: Path, other: Path) -> None:
    """Two folders hold the same files with the same bytes."""
    own, others = ({p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob("*") if p.is_file()}
                   for f in (folder, other))
    assert own.keys() == others.keys(), f"{folder} has other files: {sorted(own.keys() ^ others.keys())}"
    changed = [name for name in own if own[name] != others[name]]
    assert not changed, f"{folder}: {changed} differ"
