"""Thoughts in a run of several processes: one of them asks the teacher and writes, and all get the same texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from r2rec_jax.train import main as train
from tests.devices import REPOSITORY
from tests.endpoint_server import serve
from tests.parallel.processes import processes
from tests.synthetic import SMALL, write_ml100k


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["template", "endpoint"])
def test_one_of_two_processes_writes_and_both_are_told(teacher: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with serve() as server:
        own = [f"--thoughts.endpoint.base_url={server.url}", "--thoughts.endpoint.model=m"]
        assert train([
            "--config", str(REPOSITORY / "configs" / "ci.yaml"), "--data.path", str(write_ml100k(tmp_path / "data")),
            "--run_dir", str(run), *SMALL, "--stages=prepare,thoughts", "--prompts.thoughts=prompt",
            f"--thoughts.teacher={teacher}", *(own if teacher == "endpoint" else [])]) == 0
        store = run / ("endpoint" if teacher == "endpoint" else "thoughts") / "thoughts.jsonl"
        before, asked = store.read_bytes(), server.asked.total()
        started = processes(2, lambda i, flags: [sys.executable, "-m", "tests.parallel.thoughts_work", str(run),
                                                 str(tmp_path / f"{i}.json"), *flags])
        said = [process.communicate(timeout=120)[0] for process in started]
        assert [process.returncode for process in started] == [0, 0], said
        new = [json.loads(line)["key"] for line in store.read_bytes().removeprefix(before).splitlines()]
        assert len(new) == len(set(new)) > 3 and store.read_bytes().startswith(before)
        assert server.asked.total() - asked == (len(new) if teacher == "endpoint" else 0)
    first, second = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert first == second and len(first) >= len(new)
