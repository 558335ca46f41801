"""Compiled programs that outlive their process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from r2rec_jax.parallel import kept
from r2rec_jax.parallel.kept import VARIABLE, keep_compiled, sweep
from tests.synthetic import SMALL, write_ml100k

NOISE = re.compile(r"[a-z]Warning\b|cpu_aot|[Mm]achine type|^[EW]\d{4}")
ROOT = Path(__file__).resolve().parents[2]
def train(tmp_path: Path, run: str) -> tuple[int, int, list[dict[str, object]]]:
    """(programs compiled, programs read, rows of metrics) of one process."""
    environment = {name: value for name, value in os.environ.items()
                   if not (name.startswith("JAX_") and "CACHE" in name)}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), VARIABLE: str(tmp_path / "compiled")}
    done = subprocess.run(
        [sys.executable, "-m", "r2rec_jax.train", "--config", str(ROOT / "configs" / "ci.yaml"), "--data.path",
         str(tmp_path / "data"), "--run_dir", str(tmp_path / run), *SMALL], cwd=tmp_path, env=environment,
        capture_output=True, text=True, check=False)
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown[-2000:]
    assert not [line for line in shown.splitlines() if NOISE.search(line)]
    found = re.search(r"(\d+) programs compiled, (\d+) read as kept before", shown)
    assert found is not None, shown
    rows = [json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
    return int(found[1]), int(found[2]), [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


@pytest.mark.slow
def test_a_second_process_reads_what_was_kept_and_trains_the_same(tmp_path: Path) -> None:
    write_ml100k(tmp_path / "data")
    first = train(tmp_path, "one")
    programs = len(list((tmp_path / "compiled").rglob("*-cache")))
    second = train(tmp_path, "two")
    assert 5 < programs <= first[0] and first[1] < first[0]
    assert second[1] >= programs, "all that were kept are read"
    assert first[2] == second[2] and {row["stage"] for row in second[2]} == {"pretrain", "sft", "grpo"}


@pytest.mark.parametrize("given", [{VARIABLE: "off"}, {"JAX_COMPILATION_CACHE_DIR": "/mine"}])
def test_it_leaves_the_users_settings_alone(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in (VARIABLE, "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    keep_compiled()
    assert dict(os.environ) == before


def test_a_folder_that_cannot_be_made_is_said_and_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                           capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    before = dict(os.environ)
    keep_compiled()
    assert dict(os.environ) == before
    assert "compiled programs are not kept" in "".join(capsys.readouterr())


def test_half_written_entries_are_swept(tmp_path: Path) -> None:
    for name in ("whole-cache", "whole-atime", "torn-cache"):
        (tmp_path / name).write_bytes(b"x")
    sweep(tmp_path)
    assert {path.name for path in tmp_path.glob("*-*")} == {"whole-cache", "whole-atime"}


def test_programs_used_longest_ago_leave_when_there_are_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX looks at all of them before it adds one."""
    monkeypatch.setattr(kept, "MAX_PROGRAMS", 2)
    for name, used in (("a", 30), ("b", 10), ("c", 20)):
        for kind in ("cache", "atime"):
            (tmp_path / f"{name}-{kind}").write_bytes(b"x")
            os.utime(tmp_path / f"{name}-{kind}", (used, used))
    sweep(tmp_path)
    assert {path.name for path in tmp_path.glob("*-*")} == {"a-cache", "a-atime", "c-cache", "c-atime"}
