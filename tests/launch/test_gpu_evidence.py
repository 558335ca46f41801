"""launch/gpu_evidence.sh with a smoke list: it stops at its limit, goes on elsewhere, and hands over what it must."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.stages.smoke import write_list

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "gpu_evidence.sh"
SHORT = [{"name": "main", "systems": ["pretrained"], "headline": True}]


def environment(folder: Path, **settings: str) -> dict[str, str]:
    return os.environ | {"PYTHON": sys.executable, "LIST": str(folder / "smoke.yaml"), "JAX_PLATFORMS": "cpu",
                         "RESULTS": str(folder / "results"), "OUT": str(folder / "out"), **settings}


def start(folder: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True,
                          env=environment(folder, **settings), check=False)


def archived(out: Path) -> set[str]:
    parts = sorted(out.glob("runs.tar.gz.*"))
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as archive:
        return {Path(name).name for name in archive.getnames()}


@pytest.mark.slow
def test_it_stops_at_the_limit_and_goes_on_elsewhere(tmp_path: Path) -> None:
    write_list(tmp_path, experiments=SHORT, baselines=["popularity"])
    stopped = start(tmp_path, MINUTES="0.05")
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped at the limit of 0.05 minutes" in stopped.stdout and "no result file yet" in stopped.stdout
    done = start(tmp_path, MINUTES="10", KEEP="all")
    assert done.returncode == 0 and "main, seed 0 (1 of 2): done" in done.stderr, done.stderr
    found = json.loads((tmp_path / "out" / "evidence_smoke.json").read_text())
    assert [row["system"] for row in found["rows"]] == ["pretrained", "popularity"]
    kept = archived(tmp_path / "out")
    assert {"stages.json", "model.safetensors", "predictions-test-pretrained.jsonl"} <= kept
    assert "checkpoints" not in kept, "nothing goes on from those of a finished pretraining"
    assert not (tmp_path / "out" / "so-far").exists(), "all of it is in the archive"

    shutil.move(tmp_path / "out", tmp_path / "earlier")
    shutil.rmtree(tmp_path / "runs")
    again = start(tmp_path, FROM=str(tmp_path / "earlier"))
    assert again.returncode == 0 and "of 2 tasks 2 are done, 0 have failed" in again.stderr, again.stderr
    assert json.loads((tmp_path / "out" / "evidence_smoke.json").read_text())["rows"] == found["rows"]
    names = archived(tmp_path / "out")
    assert {"done.json", "metrics.jsonl", "completions.txt", "predictions-test-pretrained.jsonl"} <= names
    assert not names & {"stages.json", "model.safetensors", "checkpoints"}

    shutil.move(tmp_path / "out", tmp_path / "small")
    shutil.rmtree(tmp_path / "runs")
    small = start(tmp_path, FROM=str(tmp_path / "small"))
    assert small.returncode == 0 and "of 2 tasks 2 are done" in small.stderr, "what is done stays done"
    assert json.loads((tmp_path / "out" / "evidence_smoke.json").read_text())["rows"] == found["rows"]


@pytest.mark.parametrize("request_to_stop", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_program_and_what_there_is_is_handed_over(tmp_path: Path, request_to_stop: int) -> None:
    write_list(tmp_path, experiments=SHORT, baselines=[])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs.tar.gz.ab").write_bytes(b"of an earlier start")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "evidence_other.json").write_text("{}")
    listening = ["env", "--default-signal=INT"]  # under nohup, and behind &, SIGINT is ignored
    with subprocess.Popen([*listening, str(SCRIPT)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=environment(tmp_path, EVERY="0.3")) as script:
        assert script.stdout is not None
        assert any("started; log in" in line for line in script.stdout)
        deadline = time.monotonic() + 60
        while not list((tmp_path / "out" / "so-far").rglob("log.txt")):
            assert time.monotonic() < deadline, "what is under way must be readable elsewhere"
            time.sleep(0.1)
        script.send_signal(request_to_stop)
        said = script.stdout.read()
        assert script.wait(60) == 75 and "stopped by SIGTERM" in said and "stopped when asked to" in said
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["runs.tar.gz.aa", "so-far"], "no part of an earlier start, and no other list's result file"
    assert archived(tmp_path / "out"), "and it can be unpacked"


@pytest.mark.slow
def test_after_a_refused_archive_the_right_one_is_unpacked(tmp_path: Path) -> None:
    """Refused: a folder that is not there, and one that lacks a part. Neither leaves anything behind."""
    write_list(tmp_path, experiments=SHORT, baselines=[])
    kept, earlier = tmp_path / "kept" / "main" / "seed-0" / "answers.bin", tmp_path / "earlier"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(random.Random(0).randbytes(100_000))
    earlier.mkdir()
    with tarfile.open(tmp_path / "whole.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "kept", ".")
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    (earlier / "runs.tar.gz.aa").write_bytes(whole[:60_000])
    for wrong in (tmp_path / "nowhere", earlier):
        refused = start(tmp_path, FROM=str(wrong))
        assert refused.returncode == 2 and "error: FROM must hold" in refused.stderr.splitlines()[-1]
        assert not list(tmp_path.glob("runs*")) and not (tmp_path / "out").exists()

    (earlier / "runs.tar.gz.ab").write_bytes(whole[60_000:])
    assert start(tmp_path, FROM=str(earlier), MINUTES="0.01").returncode == 75
    assert (tmp_path / "runs" / "main" / "seed-0" / "answers.bin").read_bytes() == kept.read_bytes()
    assert "answers.bin" in archived(tmp_path / "out") and not (tmp_path / "runs.from").exists()


@pytest.mark.parametrize(("settings", "reason"), [
    ({"MINUTES": "soon"}, "MINUTES must be a number"), ({"KEEP": "some"}, "KEEP must be small or all"),
    ({"LIST": "nowhere.yaml"}, "nowhere.yaml")])
def test_wrong_settings_are_one_line(tmp_path: Path, settings: dict[str, str], reason: str) -> None:
    refused = start(tmp_path, **settings)
    (line,) = refused.stderr.splitlines()
    assert refused.returncode == 2 and line.startswith("error: ") and reason in line
