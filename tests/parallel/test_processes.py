"""The same losses, gradients, greedy tokens and tables of 2 and 4 processes as of one, also after one is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.devices import REPOSITORY, environment
from tests.parallel.processes import processes, work
from tests.synthetic import SMALL, write_ml100k


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    out = tmp_path_factory.mktemp("alone") / "out.npz"
    subprocess.run(work("process", str(out)), env=environment(), cwd=REPOSITORY, check=True, capture_output=True)
    return dict(np.load(out))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "layout"), [(2, ["--parallel.fsdp", "2"]), (4, [])])
def test_several_processes_give_the_numbers_of_one(count: int, layout: list[str], tmp_path: Path,
                                                   one_process: dict[str, np.ndarray]) -> None:
    """Twenty SFT and GRPO steps and greedy tokens; with fsdp over the processes no one holds a whole adapter."""
    started = processes(count, lambda i, flags: work("process", str(tmp_path / f"{i}.npz"), *flags, *layout))
    outputs = [process.communicate(timeout=300)[0] for process in started]
    assert [process.returncode for process in started] == [0] * count, outputs
    for i in range(count):
        found = dict(np.load(tmp_path / f"{i}.npz"))
        assert found.keys() == one_process.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, one_process[name], rtol=0, atol=1e-5, err_msg=f"process {i}: {name}")


def rows_of(run: Path) -> list[dict[str, Any]]:
    result = json.loads((run / "evaluate" / "results-test.json").read_text())
    return [{name: value for name, value in row.items() if "seconds" not in name} for row in result["rows"]]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_lose_one_go_on_and_give_the_table_of_one(tmp_path: Path) -> None:
    """The whole command: process 1 is killed in SFT, process 0 ends with a reason, both start again, on another layout,
    and finish."""
    data, alone, run = write_ml100k(tmp_path / "data"), tmp_path / "alone", tmp_path / "run"

    def command(folder: Path, *flags: str) -> list[str]:
        return [sys.executable, "-m", "r2rec_jax.train", "--config", str(REPOSITORY / "configs" / "ci.yaml"),
                "--data.path", str(data), "--run_dir", str(folder), "--stages",
                "prepare,thoughts,pretrain,sft,grpo,evaluate", "--sft.keep", "best", "--grpo.keep", "best", *SMALL,
                *flags]

    started = processes(2, lambda i, flags: command(run, *flags))
    deadline = time.monotonic() + 300
    while not any(p.name.isdigit() for p in (run / "sft" / "checkpoints").glob("*")):
        assert time.monotonic() < deadline and started[0].poll() is None, started[0].communicate()
        time.sleep(0.05)
    started[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    text, _ = started[0].communicate(timeout=60)
    assert started[0].returncode not in (0, None) and time.monotonic() - killed < 60
    assert "lost the others" in text or "another task died" in text, text[-2000:]
    assert not (run / "sft" / "adapter").exists()

    subprocess.run(command(alone), env=environment(), cwd=REPOSITORY, check=True, capture_output=True)
    again = processes(2, lambda i, flags: command(run, "--parallel.data", "1", "--parallel.fsdp", "2", *flags))
    texts = [process.communicate(timeout=400)[0] for process in again]
    assert [process.returncode for process in again] == [0, 0], texts
    assert "going on after step" in texts[0] and "SFT" not in texts[1]
    assert rows_of(run) == rows_of(alone)
    for ours, wanted in zip(metrics_of(run), metrics_of(alone), strict=True):
        near = {name: value for name, value in wanted.items() if name in ("loss", "eval_loss", "eval_entropy")}
        same = [name for name in wanted if name in ("stage", "step", "examples") or name.startswith("eval_")]
        assert [ours[name] for name in same if name not in near] == [wanted[name] for name in same if name not in near]
        assert {name: ours[name] for name in near} == pytest.approx(near, abs=1e-5)
    assert [row["step"] for row in metrics_of(run) if "eval_hit" in row] == [0, 1, 2]
    assert sum("eval_loss" in row for row in metrics_of(run)) > 2
    for file in (alone / "evaluate").glob("predictions-*"):
        outputs = [[json.loads(line)["output"] for line in (folder / "evaluate" / file.name).read_text().splitlines()]
                   for folder in (run, alone)]
        assert outputs[0] == outputs[1], file.name
