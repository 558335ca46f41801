"""``--plan``: exact where shapes decide, near the compiled program where that can be asked, one line where it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from r2rec_jax.config import BackboneConfig, GrpoConfig, PretrainConfig, SftConfig, TrainConfig
from r2rec_jax.config.parallel import ParallelConfig
from r2rec_jax.models.shapes import DEEPSEEK_8B, KNOWN
from r2rec_jax.stages.memory import formula
from r2rec_jax.stages.memory.compiled import gradient_temporaries
from r2rec_jax.stages.memory.plan import DEVICES, GIB, Lengths, Plan, make_plan
from r2rec_jax.train import main as train
from r2rec_jax.training.rows import RowShape

ROOT = Path(__file__).resolve().parents[2]
ONE = {"data": 1, "fsdp": 1, "tensor": 1}
BIG = TrainConfig(backbone=BackboneConfig(source=DEEPSEEK_8B), sft=SftConfig(micro_batch=2, batch_size=16))


def plan(config: TrainConfig, devices: int = 1) -> Plan:
    return make_plan(config, KNOWN[DEEPSEEK_8B], devices, on_cpu=False, lengths=Lengths(2048, 512))


def part(found: Plan, phase: str, kind: str) -> int:
    return next(p for p in found.phases if p.name.startswith(phase)).parts[kind]


def test_the_8b_model_by_hand() -> None:
    found = plan(BIG)
    layer = 4096 * (4096 * 2 + 1024 * 2 + 14336 * 3) + 2 * 4096
    assert found.parameters == 32 * layer + 2 * 128256 * 4096 + 4096 == 8_030_261_248
    assert found.trained == 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)) == 41_943_040
    assert part(found, "sft", "weights") == 2 * found.parameters
    assert part(found, "sft", "optimiser") == 2 * 4 * found.trained
    # 8 prompts of 2,048 slots and 64 rows of 512: keys and values of 8 heads of 128 in 32 layers, two bytes each
    assert part(found, "grpo: rollout", "kv cache") == 2 * 2 * 32 * 8 * 128 * (8 * 2048 + 64 * 512)


def test_the_best_adapter_is_a_tree_more() -> None:
    best = replace(BIG, sft=replace(BIG.sft, keep="best", eval_every=1), grpo=GrpoConfig(keep="best", eval_every=1))
    found, more = plan(BIG), plan(best)
    for phase in ("sft", "grpo: update", "grpo: rollout"):
        assert part(more, phase, "adapter") - part(found, phase, "adapter") == 4 * found.trained, phase


def test_int8_halves_the_linears_and_a_mesh_divides_everything() -> None:
    full, small = plan(BIG), plan(replace(BIG, backbone=replace(BIG.backbone, quantize="int8")))
    linears = 32 * 4096 * (4096 * 2 + 1024 * 2 + 14336 * 3)
    scales = 32 * 4 * (4096 * 3 + 1024 * 2 + 14336 * 2)
    assert part(full, "sft", "weights") - part(small, "sft", "weights") == linears - scales
    assert small.parameters == full.parameters
    spread = plan(replace(BIG, parallel=ParallelConfig(data=1, fsdp=8)), 8)
    norms = 2 * (2 * 32 + 1) * 4096
    assert part(spread, "sft", "weights") == (part(full, "sft", "weights") - norms) // 8 + norms
    assert part(spread, "grpo: rollout", "kv cache") * 8 == part(full, "grpo: rollout", "kv cache")
    assert spread.peak < full.peak / 3


def test_a_backbone_that_is_trained_further_is_held_whole_in_float32() -> None:
    """Weights, two moments and two gradients of every parameter; from the full weights, whatever is used afterwards."""
    assert not any(phase.name.startswith("pretrain") for phase in plan(BIG).phases)
    found = plan(replace(BIG, pretrain=PretrainConfig(adapt=True),
                         backbone=replace(BIG.backbone, quantize="int8")))
    assert part(found, "pretrain", "weights") == 2 * found.parameters
    assert part(found, "pretrain", "trained weights") == 4 * found.parameters
    assert part(found, "pretrain", "optimiser") == part(found, "pretrain", "gradients") == 8 * found.parameters
    saved = part(found, "pretrain", "saved activations")
    assert saved == 32 * 8 * 512 * 4096 * 4, "a layer's input of every token, in float32"
    assert found.peak == next(p for p in found.phases if p.name.startswith("pretrain")).peak and not found.fits("h200")


def test_fit_is_against_what_a_device_has() -> None:
    found = plan(BIG)
    assert {name for name in DEVICES if found.fits(name)} == {
        name for name, size in DEVICES.items() if found.peak <= 0.95 * size * GIB}
    assert found.fits("h200") and not found.fits("v5e")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "remat"), [("sft", "off"), ("sft", "on"), ("grpo", "off"), ("pretrain", "off")])
def test_the_formula_is_near_the_compiled_program(stage: str, remat: str) -> None:
    """In float32 on a CPU, where both can be had, at a shape with Llama's proportions."""
    hf = {**KNOWN[DEEPSEEK_8B], "hidden_size": 256, "intermediate_size": 896, "num_hidden_layers": 12,
          "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 8192}
    config = TrainConfig(backbone=BackboneConfig(remat=remat, attention="xla"), grpo=GrpoConfig(beta=0.04))
    shapes = formula.make_shapes(hf, config, ONE, on_cpu=True)
    row = RowShape(1024, 512)
    compiled = gradient_temporaries(shapes, config, stage, row, 2)
    gradient = formula.device_bytes(formula.widened(shapes).base if stage == "pretrain" else shapes.lora, ONE)
    estimated = sum(formula.training_temporaries(shapes, row, 2, remat == "on").values()) + gradient
    assert 0.85 < estimated / compiled < 1.15


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_logits_of_a_row_never_exist(stage: str) -> None:
    """By the compiled step's own account of its memory: less than one array [C, V] of the scored places, let alone of
    all T."""
    hf = {**KNOWN[DEEPSEEK_8B], "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
          "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 4096}
    config = TrainConfig(backbone=BackboneConfig(remat="off", attention="xla"), grpo=GrpoConfig(beta=0.04))
    shapes, row = formula.make_shapes(hf, config, ONE, on_cpu=True), RowShape(4096, 2048)
    assert gradient_temporaries(shapes, config, stage, row, 1) < 4 * row.targets * 4096


def test_entry_prints_a_table_and_touches_no_device(tmp_path: Path) -> None:
    """In a process that is told of a TPU and no CPU: asking for a device would end it."""
    out = tmp_path / "plan.json"
    done = subprocess.run(
        [sys.executable, "-m", "r2rec_jax.train", "--config", "configs/movielens_1m_8b.yaml", "--plan",
         f"--json={out}", "--parallel.fsdp=8", "--parallel.data=1"], cwd=ROOT, capture_output=True, text=True,
        env={"PATH": "/usr/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "tpu"})
    assert done.returncode == 0, done.stderr
    assert "8,030,261,248 parameters" in done.stdout and "a100-40g: fits" in done.stdout
    found = json.loads(out.read_text())
    assert found["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1} and found["fits"]["v5e"] is True
    assert found["peak"] == max(phase["peak"] for phase in found["phases"])


def test_tokens_of_items_are_rows_of_the_embedding(capsys, tmp_path: Path) -> None:
    asked = ["--plan", "--config", str(ROOT / "configs/adapt.yaml"), "--backbone.item_tokens", "true",
             "--json", str(tmp_path / "plan.json")]
    assert train(asked) == 0 and "items' tokens are left out" in capsys.readouterr().out
    without = json.loads((tmp_path / "plan.json").read_text())
    assert train([*asked, "--plan_items", "1000"]) == 0 and "left out" not in capsys.readouterr().out
    added = json.loads((tmp_path / "plan.json").read_text())["parameters"] - without["parameters"]
    assert added == 1000 * 576, "SmolLM2 ties its embedding and its head"


def test_what_cannot_be_planned_is_one_line(capsys) -> None:
    for more, message in ((["--backbone.source", "some/thing"], "needs the backbone's config.json"),
                          (["--plan_lengths", "[0, 5]"], "must be two lengths >= 1"),
                          (["--plan_items", "5"], "got 5 without item_tokens"),
                          (["--parallel.fsdp=3", "--plan_devices=4"], "a divisor of the 4 devices"),
                          (["--plan_devices=0"], "a divisor of the 0 devices"),
                          (["--plan_devices=-3"], "a divisor of the -3 devices")):
        assert train(["--plan", *more]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
