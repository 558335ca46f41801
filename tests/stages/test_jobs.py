"""Tasks of a list side by side: who waits for whom, who has which CPUs, what a failure or a request to stop does."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from r2rec_jax.stages.experiments import running
from r2rec_jax.stages.experiments.plan import Task
from r2rec_jax.stages.experiments.running import next_task, run_tasks
from r2rec_jax.stages.experiments.shares import Share, shares
from r2rec_jax.stopping import Interrupted, listening

WORK = """
import json, os, sys, time
from pathlib import Path
folder, kind, seconds, *share = sys.argv[1:]
folder = Path(folder)
started = time.time()
(folder / "started").touch()
if kind == "fails":
    sys.exit("error: it broke")
time.sleep(float(seconds))
key = json.loads((folder / "task.json").read_text())["key"]
(folder / "done.json").write_text(json.dumps({"key": key, "from": started, "to": time.time(), "share": share}))
"""
needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two CPUs are needed")


def task(root: Path, name: str, reuse: Sequence[str] = (), kind: str = "goes well", seconds: float = 0.5) -> Task:
    order: dict[str, Any] = {"kind": "trial", "config": {"data": {}, "sft": {}, "grpo": {}}, "does": kind,
                             "seconds": seconds, "reuse": [str(root / other / "run") for other in reuse]}
    return Task(name, 0, root / name, order)


@pytest.fixture(autouse=True)
def _no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(task: Task, share: Share) -> list[str]:
        return [sys.executable, "-c", WORK, str(task.folder), task.order["does"], str(task.order["seconds"]),
                *map(str, share.cpus)]

    monkeypatch.setattr(running, "command_of", command)


def times(task: Task) -> tuple[float, float]:
    told = json.loads((task.folder / "done.json").read_text())
    return told["from"], told["to"]


@needs_two
def test_two_at_once_have_different_cpus_and_a_third_follows(tmp_path: Path) -> None:
    tasks = [task(tmp_path, name, seconds=1.5) for name in ("a", "b", "c")]
    calls = []
    run_tasks(tasks, lambda: calls.append(sum(t.outcome() is not None for t in tasks)), places=shares(2))
    (a, a_end), (b, b_end), (c, _) = map(times, tasks)
    assert max(a, b) < min(a_end, b_end) <= c, "a and b overlap, c waits for a place"
    assert calls[-1] == 3 and len(calls) == 3
    parts = [set(json.loads((t.folder / "done.json").read_text())["share"]) for t in tasks[:2]]
    assert parts[0] and parts[1] and not parts[0] & parts[1]


@needs_two
def test_what_takes_over_waits_for_what_it_takes_over(tmp_path: Path) -> None:
    main, later, other = task(tmp_path, "main"), task(tmp_path, "later", ["main"]), task(tmp_path, "other")
    run_tasks([main, later, other], lambda: None, places=shares(2))
    assert times(later)[0] >= times(main)[1] and times(other)[0] < times(main)[1]


def test_who_may_start(tmp_path: Path) -> None:
    main, later, other = task(tmp_path, "main"), task(tmp_path, "later", ["main"]), task(tmp_path, "other")
    assert next_task([main, later], []) == 0
    assert next_task([later, other], [main]) == 1
    assert next_task([later], [main]) is None
    assert next_task([later], [other]) == 0, "what it would take over is not asked for now, so it trains it itself"
    assert next_task([later, main], []) == 0, "it stands before what it would take over, as one after the other"
    last = task(tmp_path, "last", ["later"])
    assert next_task([later, last], [main]) is None


@needs_two
def test_a_failure_leaves_the_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good, later = task(tmp_path, "bad", kind="fails"), task(tmp_path, "good"), task(tmp_path, "later", ["bad"])
    run_tasks([bad, good, later], lambda: None, places=shares(2))
    assert bad.failure() == "it broke" and good.outcome() and later.outcome()
    assert "bad, seed 0 (1 of 3): failed after" in capsys.readouterr().err


@needs_two
def test_a_request_to_stop_reaches_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [task(tmp_path, name, seconds=600) for name in ("a", "b")]
    started = time.monotonic()
    processes = []
    start = running._start
    monkeypatch.setattr(running, "_start", lambda *given: processes.append(start(*given)) or processes[-1])

    def stop() -> None:
        while len(processes) < 2 and time.monotonic() < started + 60:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    with pytest.raises(Interrupted), listening():
        run_tasks(tasks, lambda: None, places=shares(2))
    assert [run.process.returncode for run in processes] == [-signal.SIGTERM] * 2
    assert time.monotonic() - started < 120 and not any(t.outcome() or t.failure() for t in tasks)


@needs_two
def test_one_that_was_asked_to_stop_stops_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends well without an outcome was asked to stop: nothing new is started, the others end."""
    monkeypatch.setattr(running, "command_of", lambda task, share: [sys.executable, "-c", "import time; time.sleep("
                                                                   f"{task.order['seconds']})"])
    tasks = [task(tmp_path, "a", seconds=0.1), task(tmp_path, "b", seconds=60), task(tmp_path, "c", seconds=0)]
    started = time.monotonic()
    with pytest.raises(Interrupted):
        run_tasks(tasks, lambda: None, places=shares(2))
    assert time.monotonic() - started < 30 and not (tasks[2].folder / "task.json").exists()


def test_parts_of_the_cpus() -> None:
    cpus = sorted(os.sched_getaffinity(0))
    assert shares(1, {"CUDA_VISIBLE_DEVICES": "0,1"}) == [Share()]
    for jobs in range(2, len(cpus) + 1):
        parts = [share.cpus for share in shares(jobs, {"JAX_PLATFORMS": "cpu"})]
        assert [cpu for part in parts for cpu in part] == cpus and all(parts) and len(parts) == jobs
    for wrong in (0, -1, len(cpus) + 1):
        with pytest.raises(ValueError, match=rf"--jobs must be in 1\.\.{len(cpus)}, the CPUs .*; got {wrong}"):
            shares(wrong)


@needs_two
def test_parts_of_the_gpus(tmp_path: Path) -> None:
    def gpus(environment: dict[str, str], jobs: int = 2) -> list[str | None]:
        return [share.gpus for share in shares(jobs, environment, tmp_path)]

    assert gpus({}) == [None, None], "no GPU"
    for name in ("nvidia0", "nvidia2", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert gpus({}) == ["0", "2,10"]
    assert gpus({"CUDA_VISIBLE_DEVICES": "GPU-a, 3 ,1,7"}) == ["GPU-a,3", "1,7"]
    assert gpus({"CUDA_VISIBLE_DEVICES": ""}) == gpus({"JAX_PLATFORMS": "cpu"}) == [None, None]
    for only in ("5", "5,-1,3"):
        with pytest.raises(ValueError, match=r"--jobs must be in 1\.\.1, the GPUs of this process; got 2; JAX_PLAT"):
            gpus({"CUDA_VISIBLE_DEVICES": only})


@needs_two
@pytest.mark.parametrize(("named", "expected"), [
    ("-1", [None, None]), ("NoDevFiles", [None, None]), (" -1, 0,1", [None, None]), ("0,2,-1,3", ["0", "2"]),
    ("0,1,", ["0", "1"]), ("0,1,,2,3", ["0", "1"]), ("GPU-a,MIG-b,none,1", ["GPU-a", "MIG-b"])])
def test_the_list_of_gpus_ends_where_it_ends_for_cuda(tmp_path: Path, named: str, expected: list[str | None]) -> None:
    (tmp_path / "nvidia0").touch()
    assert [share.gpus for share in shares(2, {"CUDA_VISIBLE_DEVICES": named}, tmp_path)] == expected


@needs_two
def test_a_job_sees_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    work = WORK.replace('"share": share', '"share": os.environ["CUDA_VISIBLE_DEVICES"]')
    assert work != WORK
    monkeypatch.setattr(running, "command_of", lambda task, share: [
        sys.executable, "-c", work, str(task.folder), "goes well", "1"])
    tasks = [task(tmp_path, name) for name in ("a", "b")]
    run_tasks(tasks, lambda: None, places=shares(2))
    assert [json.loads((t.folder / "done.json").read_text())["share"] for t in tasks] == ["4", "6"]
