"""Both sides of the smoke preset in this process, and the command once from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from r2rec_jax.bench.presets import PRESETS

pytest.importorskip("torch")
pytest.importorskip("peft")

PRESET = PRESETS["smoke"]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # trl, peft and torch warn as they like


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory):
    from r2rec_jax.bench.ours import Ours
    from r2rec_jax.bench.pytorch import PyTorch

    folder = tmp_path_factory.mktemp("bench")
    ours = Ours(PRESET, folder, "~/.cache/r2rec_jax")
    ours.export()
    return ours, PyTorch(PRESET, folder), folder


def test_the_two_paths_agree_on_each_others_tokens(sides) -> None:
    ours, pytorch, folder = sides
    shape = PRESET.rollout
    for drawing, scoring in ((ours, pytorch), (pytorch, ours)):
        drawing.sampled(folder / "drawn.npz")
        with np.load(folder / "drawn.npz") as drawn:
            tokens, logprobs = drawn["tokens"], drawn["logprobs"]
        assert tokens.shape == (shape.prompts, shape.group, shape.new_tokens)
        assert len({tuple(row) for row in tokens[0].tolist()}) > 1, "sampled, not greedy"
        np.testing.assert_allclose(logprobs, scoring.scored(tokens), atol=1e-4)
    assert ours.sft_loss() == pytest.approx(pytorch.sft_loss(), abs=1e-4)


def test_another_adapter_is_seen_by_the_comparison(sides) -> None:
    import jax

    ours, pytorch, folder = sides
    ours.sampled(folder / "drawn.npz")
    with np.load(folder / "drawn.npz") as drawn:
        tokens = drawn["tokens"]
    backbone, lora = ours.backbone, ours.lora
    try:
        ours._loaded = backbone, jax.tree.map(lambda x: 3 * x, lora)
        assert np.abs(ours.scored(tokens) - pytorch.scored(tokens)).mean() > 1e-3
    finally:
        ours._loaded = backbone, lora


def test_the_scratch_folder_of_other_weights_is_refused(sides) -> None:
    from dataclasses import replace

    from r2rec_jax.bench.ours import Ours

    _, _, folder = sides
    with pytest.raises(ValueError, match="give another --scratch"):
        Ours(replace(PRESET, rank=8), folder, "~/.cache/r2rec_jax").export()


def test_a_scratch_folder_with_weights_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    from r2rec_jax.bench.ours import Ours

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("dear")
    with pytest.raises(ValueError, match="that the benchmark did not make"):
        Ours(PRESET, tmp_path, "~/.cache/r2rec_jax").export()
    assert (tmp_path / "model" / "model.safetensors").read_text() == "dear"


def test_a_scratch_folder_that_a_stop_left_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2rec_jax.bench import ours

    side, save = ours.Ours(PRESET, tmp_path, "~/.cache/r2rec_jax"), ours.save_adapter

    def stopped(*given: object) -> None:
        save(*given)  # pyright: ignore[reportArgumentType]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ours, "save_adapter", stopped)
        side.export()
    assert (tmp_path / "model").is_dir() and (tmp_path / "adapter").is_dir()
    side.export()
    assert json.loads((tmp_path / ours.MADE).read_text()) == {
        "backbone": PRESET.backbone, "dtype": PRESET.dtype, "rank": PRESET.rank}


def test_of_sizes_that_do_not_fit_none_is_taken(sides, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from r2rec_jax.bench.pytorch import PyTorch

    _, _, folder = sides
    side, fits = PyTorch(replace(PRESET, sft=replace(PRESET.sft, pytorch_micro=(1, 2, 4))), folder), {1: 3.0, 2: 2.0}

    class Timed:
        def __init__(self, size: int) -> None:
            self.size = size

        def step(self) -> dict[str, float]:
            if self.size not in fits:
                raise side.torch.OutOfMemoryError("no room")
            return {"equal_seconds": fits[self.size], "throughout_seconds": 1.0, "mixed_seconds": float(self.size)}

    monkeypatch.setattr(side, "_training", lambda name, micro: Timed(micro["equal"]))
    assert side._fastest("sft") == {"equal": 2, "throughout": 1, "mixed": 1}
    assert side.tried["4"] is None and side.compilation()["tried"]["2"]["equal_seconds"] == 2.0
    fits.clear()
    with pytest.raises(RuntimeError, match="needs smaller passes"):
        side._fastest("sft")


def test_in_bfloat16_pytorch_multiplies_adapters_in_bfloat16(tmp_path: Path) -> None:
    from dataclasses import replace

    pytest.importorskip("trl")
    from r2rec_jax.bench.ours import Ours
    from r2rec_jax.bench.pytorch import SFT_KINDS, PyTorch, SftWork
    from r2rec_jax.bench.trl_step import GrpoWork

    preset = replace(PRESET, dtype="bfloat16")
    Ours(preset, tmp_path, "~/.cache/r2rec_jax").export()
    side, seen = PyTorch(preset, tmp_path), []
    adapter = next(module for name, module in side.model.named_modules() if name.endswith("q_proj.lora_A.default"))
    assert adapter.weight.dtype == side.torch.float32
    adapter.register_forward_hook(lambda module, given, out: seen.extend((given[0].dtype, out.dtype)))
    for work in (SftWork(side, dict.fromkeys(SFT_KINDS, 2)), GrpoWork(side, 4)):
        work.step()
        assert set(seen) == {side.torch.bfloat16}, type(work)
        seen.clear()
    side.drawing("rollout")(2)
    assert set(seen) == {side.torch.bfloat16}


def test_two_kinds_of_device_are_refused(sides, monkeypatch: pytest.MonkeyPatch) -> None:
    from r2rec_jax.bench import report

    ours, pytorch, folder = sides
    assert ours.kind() == pytorch.kind() == "cpu"

    class OnGpu:
        def __init__(self, *_: object) -> None:
            pass

        def __enter__(self) -> OnGpu:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, op: str) -> str:
            return "gpu"

    monkeypatch.setattr(report, "Worker", OnGpu)
    report.check_devices(OnGpu(), PRESET, folder, "")  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(OnGpu, "ask", lambda self, op: next(kinds))
    kinds = iter(("gpu", "cpu"))
    with pytest.raises(RuntimeError, match="jax is on gpu, PyTorch on cpu"):
        report.check_devices(OnGpu(), PRESET, folder, "")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("work", ["rollout", "sft", "recommend"])
def test_every_work_times_the_same_phases_on_both_sides(sides, work: str) -> None:
    ours, pytorch, _ = sides
    mine, theirs = ours.work(work), pytorch.work(work)
    compiled = ours.compile_s
    first, second = mine.step(), theirs.step()
    assert first.keys() == second.keys() and min(*first.values(), *second.values()) > 0
    assert ours.compile_s == compiled, "a timed step must not compile"


def test_a_grpo_step_of_trl_has_our_phases(sides) -> None:
    pytest.importorskip("trl")
    ours, pytorch, _ = sides
    first, second = ours.work("grpo").step(), pytorch.work("grpo").step()
    assert first.keys() == second.keys()
    assert pytorch.tried.keys() == {"1", "4"} and all(lap["seconds"] > 0 for lap in pytorch.tried.values())
    for laps in (first, second):
        parts = sum(laps[f"{phase}_seconds"] for phase in ("rollout", "reward", "reference", "update"))
        assert parts == pytest.approx(laps["seconds"], rel=1e-6) and min(laps.values()) >= 0


def test_the_command_writes_rows_and_keeps_those_of_other_works(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "r2rec_jax.bench", "--preset", "smoke", "--repeats", "1", "--json", str(out),
               "--scratch", str(tmp_path / "scratch")]
    for works in ("load", "recommend"):
        done = subprocess.run([*command, "--works", works], capture_output=True, text=True, env=os.environ | {
            "JAX_PLATFORMS": "cpu"}, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(out.read_text())
    assert {row["work"] for row in result["rows"]} == {"load", "recommend"} == set(result["runs"])
    needed = {"work", "preset", "metric", "ours", "pytorch", "ratio", "repeats", "spread"}
    assert all(needed <= row.keys() for row in result["rows"])
    assert "users_per_s" in done.stdout and "torch" in result["versions"]
