"""Adapter folders: round trip, and adapters that do not belong here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from r2rec_jax.config import LoraConfig
from r2rec_jax.models.peft import CONFIG, RECORD, WEIGHTS, load_adapter, read_adapter_config, save_adapter

LORA = LoraConfig(rank=3, alpha=7.5, targets=("q", "v", "down"))


@pytest.fixture
def adapter(make_backbone, random_lora, tmp_path) -> Path:
    backbone = make_backbone(LORA)
    return save_adapter(random_lora(backbone), LORA, backbone, tmp_path / "adapter")


def test_round_trip(make_backbone, random_lora, adapter) -> None:
    backbone = make_backbone(LORA)
    assert read_adapter_config(adapter) == LORA
    lora, config = load_adapter(adapter, backbone)
    assert config == LORA
    expected = random_lora(backbone)
    assert jax.tree.structure(lora) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(lora), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_files_have_the_names_and_shapes_of_peft(adapter) -> None:
    tensors = load_file(adapter / WEIGHTS)
    assert len(tensors) == 2 * 2 * 3
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"].shape == (3, 40)
    assert tensors["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"].shape == (24, 3)
    config = json.loads((adapter / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 7.5, ["q_proj", "v_proj", "down_proj"])


def _configure(folder: Path, **values: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(("values", "message"), [
    ({"use_dora": True}, "use_dora is True"), ({"bias": "all"}, "bias is 'all'"),
    ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"), ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern is"),
    ({"modules_to_save": ["lm_head"]}, "modules_to_save is"), ({"peft_type": "IA3"}, "peft_type must be 'LORA'"),
    ({"init_lora_weights": "pissa"}, "'pissa' may have changed the base"), ({"r": 0}, "must be positive numbers"),
    ({"lora_alpha": None}, "must be positive numbers"),
])
def test_adapters_that_are_no_plain_lora_are_refused(make_backbone, adapter, values, message) -> None:
    _configure(adapter, **values)
    with pytest.raises(ValueError, match=message) as error:
        load_adapter(adapter, make_backbone(LORA))
    assert "\n" not in str(error.value)


def test_rslora_scales_by_the_square_root(adapter) -> None:
    _configure(adapter, use_rslora=True)
    config = read_adapter_config(adapter)
    assert config.alpha / config.rank == pytest.approx(7.5 / 3**0.5)


@pytest.mark.parametrize("lora", [
    None, LoraConfig(rank=4, alpha=7.5, targets=LORA.targets), LoraConfig(rank=3, alpha=8, targets=LORA.targets),
    LoraConfig(rank=3, alpha=7.5, targets=("q", "v")),
])
def test_another_rank_alpha_or_target_is_refused(make_backbone, adapter, lora) -> None:
    with pytest.raises(ValueError, match=r"rank 3, alpha 7.5, targets q,v,down, but the backbone was loaded for"):
        load_adapter(adapter, make_backbone(lora))


def test_adapter_of_other_weights_is_refused(make_backbone, adapter) -> None:
    other = make_backbone(LORA, seed=1)
    with pytest.raises(ValueError, match="belongs to another base: it was trained on random"):
        load_adapter(adapter, other)
    (adapter / RECORD).unlink()
    load_adapter(adapter, other)  # a folder of peft's own: names and shapes fit, more cannot be known


@pytest.mark.parametrize(("overrides", "message"), [
    ({"num_hidden_layers": 3}, "6 tensors missing: base_model.model.model.layers.2"),
    ({"num_hidden_layers": 1}, "6 tensors unused: base_model.model.model.layers.1"),
    ({"intermediate_size": 48}, r"2 tensors of another shape: .*down_proj.lora_A.weight is \[3, 40\], not \[3, 48\]"),
])
def test_adapter_of_another_shape_is_refused_by_name(make_backbone, adapter, overrides, message) -> None:
    (adapter / RECORD).unlink()
    with pytest.raises(ValueError, match=message) as error:
        load_adapter(adapter, make_backbone(LORA, **overrides))
    assert "\n" not in str(error.value)


def test_tensors_beside_lora_are_refused(make_backbone, adapter) -> None:
    tensors = load_file(adapter / WEIGHTS)
    save_file({**tensors, "base_model.model.lm_head.weight": np.zeros((97, 24), np.float32)}, adapter / WEIGHTS)
    with pytest.raises(ValueError, match=r"1 tensors unused: base_model.model.lm_head.weight"):
        load_adapter(adapter, make_backbone(LORA))


@pytest.mark.parametrize(("name", "message"), [(CONFIG, "has none"), (WEIGHTS, "pickled adapters are not read")])
def test_missing_files_are_named(make_backbone, adapter, name, message) -> None:
    (adapter / name).unlink()
    with pytest.raises(ValueError, match=message):
        load_adapter(adapter, make_backbone(LORA))


def test_truncated_adapter_is_refused(make_backbone, adapter) -> None:
    path = adapter / WEIGHTS
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match="truncated or not a safetensors file"):
        load_adapter(adapter, make_backbone(LORA))
