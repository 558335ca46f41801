"""Result file and table of a benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from r2rec_jax.bench.compare import Worker, measure
from r2rec_jax.bench.presets import WORKS, Preset
from r2rec_jax.bench.projection import project
from r2rec_jax.config import fingerprint
from r2rec_jax.evaluation.tables import cpus, provenance, result_file
from r2rec_jax.files import read_json, write_json
from r2rec_jax.progress import format_duration, say


def run_works(preset: Preset, works: Sequence[str], folder: Path, cache_dir: str, out: Path,
              packages: Mapping[str, str]) -> dict[str, Any]:
    """Measure works one by one; the result file is written after each of them.

    Returns:
        The result file's contents.

    Raises:
        ValueError: ``out`` holds results of another preset, or of other weights or sizes.
        RuntimeError: a side failed, the two are on different devices, or they disagree in their numbers.
    """
    earlier = read_json(out, "move it away") if out.is_file() else {}
    check_earlier(earlier, preset, works, out)
    say(", ".join(f"{name} {found}" for name, found in packages.items()))
    with Worker("ours", preset, folder, cache_dir) as ours:
        ours.ask("export")
        check_devices(ours, preset, folder, cache_dir)
    result = kept_of(earlier, preset, works)
    for work in works:
        say(f"{work}: started")
        measured = measure(work, preset, folder, cache_dir)
        result = merge(result, preset, work, measured.rows, measured.notes, packages)
        write_json(out, result)
    say(f"written to {out}")
    return result


def check_earlier(earlier: Mapping[str, Any], preset: Preset, works: Sequence[str], out: Path) -> None:
    """Rows that stay must be of this machine and of the same settings: all but the repeats, and but the sizes of works
    measured anew.

    Raises:
        ValueError: they are not.
    """
    if not earlier:
        return
    wanted = {name: value for name, value in json.loads(json.dumps(preset.settings())).items()
              if name not in ("repeats", *works)}
    found = earlier.get("settings", {})
    if other := [name for name, value in wanted.items() if found.get(name) != value]:
        raise ValueError(f"{out} must hold results of preset {preset.name!r} as it is now; its {', '.join(other)} "
                         "differ; measure with --works all, or give another --json")
    here = provenance()["hardware"]
    elsewhere = {work: run["hardware"] for work, run in earlier["runs"].items()
                 if work not in works and run["hardware"] != here}
    if elsewhere:
        raise ValueError(f"{out} must hold results of this machine, {here}; its {', '.join(elsewhere)} are of "
                         f"{', '.join(dict.fromkeys(elsewhere.values()))}; measure with --works all, or give another "
                         "--json")


def kept_of(earlier: Mapping[str, Any], preset: Preset, works: Sequence[str]) -> dict[str, Any]:
    """What stays of a result file while ``works`` are measured: all, or without these works where they are of another
    machine or of other settings, so that a stop leaves nothing of two kinds in one file."""
    here, now = provenance()["hardware"], json.loads(json.dumps(preset.settings()))
    same = {name: value for name, value in now.items() if name != "repeats"} == {
        name: value for name, value in earlier.get("settings", {}).items() if name != "repeats"}
    if not earlier or (same and all(run["hardware"] == here for run in earlier["runs"].values())):
        return dict(earlier)
    return {"rows": [row for row in earlier["rows"] if row["work"] not in works],
            "runs": {work: run for work, run in earlier["runs"].items() if work not in works}}


def check_devices(ours: Worker, preset: Preset, folder: Path, cache_dir: str) -> None:
    """Both sides must be on one kind of device.

    Raises:
        RuntimeError: they are not.
    """
    with Worker("pytorch", preset, folder, cache_dir) as pytorch:
        kinds = ours.ask("kind"), pytorch.ask("kind")
    if kinds[0] != kinds[1]:
        raise RuntimeError(f"both sides must be on one kind of device; jax is on {kinds[0]}, PyTorch on {kinds[1]}; "
                           "install the other's build for it, or set JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES=")


def merge(earlier: Mapping[str, Any], preset: Preset, work: str, rows: Sequence[dict[str, Any]],
          notes: Mapping[str, Any], packages: Mapping[str, str]) -> dict[str, Any]:
    """The result file with one work measured anew; each work keeps its own provenance under ``runs``."""
    kept = [row for row in earlier.get("rows", []) if row["work"] != work]
    every = sorted([*kept, *rows], key=lambda row: WORKS.index(row["work"]))
    where = provenance()
    where["versions"] = {**where["versions"], **packages}
    runs = {**earlier.get("runs", {}), work: {**where, "threads": len(cpus()), "repeats": preset.repeats, **notes}}
    projection = project(preset, every)
    file = result_file(
        f"bench, preset {preset.name}: our path and transformers, peft and trl", every,
        fingerprint(preset.settings()), settings=preset.settings(), runs=runs,
        **({"projection": projection} if projection else {}))
    return {**file, "versions": where["versions"]}


def print_rows(result: Mapping[str, Any]) -> None:
    """One table: medians, ratio, spread."""
    settings = result["settings"]
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{result['what']}\n{result['hardware']}; {settings['dtype']}, LoRA rank {settings['rank']} on both sides, "
        f"temperature {settings['temperature']}, top-p {settings['top_p']}", markup=False)
    table = Table()
    for name in ("work", "metric", "ours", "PyTorch", "ratio", "spread", "n"):
        table.add_column(name, justify="left" if name in ("work", "metric") else "right", no_wrap=True)
    for row in result["rows"]:
        table.add_row(row["work"], row["metric"], f"{row['ours']:.4g}", f"{row['pytorch']:.4g}", f"{row['ratio']:.2f}",
                      f"{row['spread']:.0%}", str(row["repeats"]))
    console.print(table)
    for row in result["rows"]:
        if row["about"]:
            console.print(f"{row['work']} {row['metric']}: {row['about']}", markup=False)
    for work, run in result["runs"].items():
        warm = run.get("warm", {}).get("ours", {})
        if warm.get("compile_s"):
            console.print(f"{work}: ours compiled in {format_duration(warm['compile_s'])}, not counted; "
                          f"{warm['compiled']} programs compiled, {warm['read']} read as kept before",
                          markup=False)
    for side, minutes in result.get("projection", {}).items():
        console.print(f"the paper's recipe on this machine, {side}: {minutes['whole']:.0f} minutes. "
                      f"{minutes['arithmetic']}", markup=False)
