"""The files of launch/: shellcheck, the structure of the JobSets, and dry runs whose command the real parser takes."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import pytest
import yaml

from r2rec_jax.config import TrainConfig
from r2rec_jax.evaluation.tables import git_state
from r2rec_jax.stages.cli import add_train_config, make_parser, parse_train_config

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
JOBSETS = sorted(LAUNCH.glob("jobset_*.yaml"))
SETTINGS = ["--config", "configs/movielens_1m_8b.yaml", "--run_dir", "runs/a b; rm *", "--sft.lr", "1e-4"]


def _run(command: Sequence[str | Path], **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True)
    return done.stdout


def _train_config(words: Sequence[str]) -> TrainConfig:
    """What the program makes of a command that ends in ``-m r2rec_jax.train ...``, by its own parser."""
    at = list(words).index("r2rec_jax.train")
    assert words[at - 1] == "-m"
    parser = make_parser("r2rec_jax.train", "")
    add_train_config(parser)
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        return parse_train_config(parser, list(words[at + 1:]))[0]
    finally:
        os.chdir(before)


def _through_run_sh(words: Sequence[str]) -> TrainConfig:
    """The same for a command that calls ``launch/run.sh``, through that script."""
    at = next(index for index, word in enumerate(words) if word.endswith("launch/run.sh"))
    return _train_config(shlex.split(_run([LAUNCH / "run.sh", *words[at + 1:]], DRY_RUN="1")))


def _shellcheck() -> str:
    found = Path(sys.executable).with_name("shellcheck")
    if not found.exists():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("shellcheck is missing: make test installs it")
    return str(found)


def test_scripts_pass_shellcheck_and_can_be_run() -> None:
    assert [path.name for path in SCRIPTS] == ["gpu_bench.sh", "gpu_evidence.sh", "run.sh", "slurm.sh", "tpu_vm.sh"]
    subprocess.run([_shellcheck(), *SCRIPTS], check=True)
    assert all(os.access(path, os.X_OK) for path in SCRIPTS)


def test_the_blocks_of_sky_pass_shellcheck() -> None:
    sky = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    for block in ("setup", "run"):
        subprocess.run([_shellcheck(), "--shell=bash", "-"], input=sky[block], text=True, check=True)


def test_run_sh_hands_the_settings_on_as_they_are() -> None:
    words = shlex.split(_run([LAUNCH / "run.sh", *SETTINGS], DRY_RUN="1", PYTHON="python"))
    assert words == ["python", "-m", "r2rec_jax.train", *SETTINGS]
    config = _train_config(words)
    assert config.run_dir == "runs/a b; rm *" and config.sft.lr == 1e-4
    assert config.parallel.distributed == "off"


@pytest.mark.parametrize(("child", "sent", "code"), [
    ("exit 0", None, 0), ("exit 3", None, 3),
    ("trap 'exit 0' TERM; touch {ready}; while :; do sleep 0.05; done", signal.SIGTERM, 143),
    ("trap 'exit 1' TERM; touch {ready}; while :; do sleep 0.05; done", signal.SIGTERM, 1),
    ("trap 'exit 0' TERM; touch {ready}; while :; do sleep 0.05; done", signal.SIGINT, 143),
])
def test_run_sh_tells_a_stopped_run_from_a_finished_one(child: str, sent: signal.Signals | None, code: int,
                                                        tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    program = _program(tmp_path / "python", child.format(ready=ready))
    listening = ["env", "--default-signal=INT"]  # under nohup, and behind &, SIGINT is ignored
    process = subprocess.Popen([*listening, LAUNCH / "run.sh"], env=os.environ | {"PYTHON": str(program)})
    if sent:
        _wait_for(ready)
        process.send_signal(sent)
    assert process.wait(timeout=30) == code


def _program(path: Path, body: str) -> Path:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.02)


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 8), (4, 4)])
def test_slurm_starts_one_process_a_node(nodes: int, gpus: int) -> None:
    words = shlex.split(_run([LAUNCH / "slurm.sh", *SETTINGS], DRY_RUN="1", SLURM_NNODES=str(nodes),
                             SLURM_GPUS_ON_NODE=str(gpus)))
    assert words[0] == "srun" and "launch/run.sh" in words
    config = _through_run_sh(words)
    assert config.parallel.distributed == ("auto" if nodes > 1 else "off")
    assert config.run_dir == "runs/a b; rm *"
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)", (LAUNCH / "slurm.sh").read_text(), re.M))
    assert options["ntasks-per-node"] == "1" and options["signal"] == "B:TERM@120" and "requeue" in options


@pytest.mark.parametrize(("step", "state", "code", "requeued"), [
    ("exit 0", "RUNNING", 0, False),
    ("exit 1", "RUNNING", 1, False),
    ("exit 143", "RUNNING", 143, True),
    ("exit 143", "COMPLETING", 143, False),
    ("touch {ready}; while [ ! -e {told} ]; do sleep 0.05; done; exit 143", "RUNNING", 143, True),
])
def test_slurm_queues_a_stopped_job_again(step: str, state: str, code: int, requeued: bool, tmp_path: Path) -> None:
    ready, told, log = tmp_path / "ready", tmp_path / "told", tmp_path / "log"
    step = f'echo "devices $JAX_LOCAL_DEVICE_IDS" >> {log}\n' + step.format(ready=ready, told=told)
    _program(tmp_path / "srun", step)
    _program(tmp_path / "scancel", f'echo "scancel $*" >> {log}; touch {told}')
    _program(tmp_path / "squeue", f"echo {state}")
    _program(tmp_path / "scontrol", f'echo "scontrol $*" >> {log}')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2",
                   "SLURM_GPUS_ON_NODE": "4", "SLURM_SUBMIT_DIR": str(ROOT)}
    process = subprocess.Popen([LAUNCH / "slurm.sh"], env=os.environ | environment)
    if "touch" in step:
        _wait_for(ready)
        process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == code
    lines = log.read_text().splitlines()
    assert lines[0] == "devices 0,1,2,3"
    assert ("scontrol requeue 7" in lines) == requeued
    assert ("scancel --signal=TERM 7" in lines) == ("touch" in step)


def test_a_tpu_vm_gets_the_same_command_on_every_host() -> None:
    words = shlex.split(_run([LAUNCH / "tpu_vm.sh", "mine", "us-east5-a", *SETTINGS], DRY_RUN="1"))
    assert words[:7] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "mine", "--zone=us-east5-a"]
    assert words[7] == "--worker=all" and words[8].startswith("--command=")
    remote = shlex.split(words[8].removeprefix("--command="))
    assert remote[:3] == ["cd", "r2rec_jax", "&&"]
    config = _through_run_sh(remote)
    assert config.parallel.distributed == "auto" and config.run_dir == "runs/a b; rm *"


@pytest.mark.parametrize("arguments", [[], ["mine"], ["--config", "x", "y"]])
def test_a_tpu_vm_needs_name_and_zone(arguments: list[str]) -> None:
    done = subprocess.run([LAUNCH / "tpu_vm.sh", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("nodes", "rank"), [(1, 0), (3, 2)])
def test_sky_tells_every_node_its_place(nodes: int, rank: int) -> None:
    sky = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    assert set(sky) >= {"name", "resources", "num_nodes", "setup", "run"} and sky["num_nodes"] == 1
    words = shlex.split(_run(["bash", "-euc", sky["run"]], DRY_RUN="1", ARGS=sky["envs"]["ARGS"],
                             SKYPILOT_NUM_NODES=str(nodes), SKYPILOT_NODE_RANK=str(rank),
                             SKYPILOT_NODE_IPS="\n".join(f"10.0.0.{n}" for n in range(1, nodes + 1))))
    config = _train_config(words)
    assert config.run_dir == "/runs/movielens-1m-8b"
    parallel = config.parallel
    assert (parallel.coordinator, parallel.num_processes, parallel.process_id) == (
        ("10.0.0.1:8476", 3, 2) if nodes > 1 else (None, None, None))


@pytest.mark.parametrize("path", JOBSETS, ids=lambda path: path.stem)
def test_a_jobset_is_whole_and_its_counts_agree(path: Path) -> None:
    found = yaml.safe_load(path.read_text())
    assert (found["apiVersion"], found["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert found["spec"]["failurePolicy"]["maxRestarts"] > 0
    (job,) = found["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert job["replicas"] == 1 and spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"] >= 2  # all hosts at once, each an index
    assert spec["backoffLimit"] == 0  # a lost host fails the job, and the JobSet starts all of them again
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 120
    (container,) = pod["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", found["metadata"]["name"])
    _check_command(found, job, container, spec["completions"])
    if "tpu" in path.stem:
        _check_slice(pod["nodeSelector"], container, spec["completions"])
        chips = prod(map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")))
        assert f"--parallel.fsdp={chips}" in container["args"], "whole weights do not fit a chip"


def _check_command(jobset: Mapping[str, Any], job: Mapping[str, Any], container: Mapping[str, Any], hosts: int) -> None:
    known = {entry["name"]: entry for entry in container["env"]}
    assert known["PYTHON"]["value"] == "python"
    args = [arg.replace("$(PROCESS_ID)", str(hosts - 1)) for arg in container["args"]]
    assert not any("$(" in arg for arg in args)
    config = _through_run_sh([*container["command"], *args])
    parallel = config.parallel
    assert parallel.distributed == "auto"
    shared = tuple(mount["mountPath"] for mount in container["volumeMounts"])
    for path in (config.run_dir, config.data.path, config.data.cache_dir, known["HF_HOME"]["value"]):
        assert path is not None and path.startswith(shared)
    if "PROCESS_ID" not in known:
        assert parallel.coordinator is None
        return
    index = known["PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert index == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert (parallel.num_processes, parallel.process_id) == (hosts, hosts - 1)
    name = jobset["metadata"]["name"]
    host, port = (parallel.coordinator or "").split(":")
    assert host == f"{name}-{job['name']}-0-0.{name}"  # pod 0 of job 0, in the JobSet's own subdomain
    assert int(port) in [entry["containerPort"] for entry in container["ports"]]


def _check_slice(labels: Mapping[str, str], container: Mapping[str, Any], hosts: int) -> None:
    chips = prod(map(int, labels["cloud.google.com/gke-tpu-topology"].split("x")))
    assert container["resources"]["limits"]["google.com/tpu"] * hosts == chips


def test_the_image_is_told_of_the_state_of_its_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the line above each build command, in a clean checkout, with a new result, and with a new module."""
    found = [re.findall(r"^#   (COMMIT=.*)$", path.read_text(), re.M) for path in (LAUNCH / "Dockerfile", *JOBSETS)]
    assert len(found) == 3 and found[0] == found[1] == found[2]
    checkout, image = tmp_path / "checkout", tmp_path / "image"
    (checkout / "results").mkdir(parents=True)
    image.mkdir()
    for arguments in (["init", "-q"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one",
                                       "--allow-empty"]):
        subprocess.run(["git", "-C", str(checkout), *arguments], check=True)
    states = []
    for new in (None, "results/tiny.json", "code.py"):
        if new:
            (checkout / new).write_text("{}")
        told = subprocess.run(["bash", "-euc", f'{found[0][0]}; printf %s "$COMMIT"'], cwd=checkout, check=True,
                              capture_output=True, text=True).stdout
        monkeypatch.setenv("R2REC_COMMIT", told)
        states.append(git_state(image))
        assert states[-1] == git_state(checkout)
    assert [dirty for _, dirty in states] == [False, False, True]


def test_the_image_takes_extras_that_exist() -> None:
    text = (LAUNCH / "Dockerfile").read_text()
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("[tool", 1)[0], re.M))
    assert set(re.findall(r"EXTRA=(\w+)", text)) <= extras and {"cuda", "tpu"} <= extras
    workdir = re.findall(r"^WORKDIR (\S+)", text, re.M)
    assert [f"{folder}/launch/run.sh" for folder in workdir] == yaml.safe_load(JOBSETS[0].read_text())[
        "spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
