"""Adapters against peft: forward, merge, and files in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from r2rec_jax.config import LoraConfig
from r2rec_jax.models.backbone import Backbone
from r2rec_jax.models.huggingface import load_backbone, save_merged
from r2rec_jax.models.peft import load_adapter, read_adapter_config, save_adapter

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks for it
ALL = ("q", "k", "v", "o", "gate", "up", "down")
TOKENS = np.random.default_rng(0).integers(0, 97, (2, 21))


def random_adapter(backbone: Backbone, seed: int = 0, scale: float = 0.3) -> Any:
    leaves, treedef = jax.tree.flatten(backbone.lora)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return jax.tree.unflatten(treedef, [scale * jax.random.normal(k, x.shape, jnp.float32)
                                        for k, x in zip(keys, leaves, strict=True)])


def make_peft(model: Any, folder: Path, **settings: Any) -> Any:
    """A peft model with random A and B on ``model``, saved to ``folder``."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    settings = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                                            "up_proj", "down_proj"], **settings}
    adapted = get_peft_model(model, PeftConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.copy_(0.3 * torch.randn_like(weight))
    adapted.save_pretrained(folder)
    return adapted.eval()


@pytest.mark.parametrize("settings", [
    {}, {"target_modules": ["q_proj", "v_proj"]}, {"target_modules": "all-linear"}, {"use_rslora": True},
    {"target_modules": r".*self_attn\.(q|o)_proj"}, {"init_lora_weights": "gaussian"},
], ids=["all", "two", "all-linear", "rslora", "pattern", "gaussian"])
def test_adapter_of_peft_gives_its_logits(make_reference, our_logits, torch_logits, tmp_path, settings) -> None:
    model, folder = make_reference(head_dim=10)
    plain = torch_logits(model, TOKENS)
    adapted = make_peft(model, tmp_path / "adapter", **settings)
    expected = torch_logits(adapted, TOKENS)
    assert np.abs(expected - plain).max() > 0.5
    config = read_adapter_config(tmp_path / "adapter")
    backbone = load_backbone(folder, config, "float32")
    lora, loaded = load_adapter(tmp_path / "adapter", backbone)
    assert loaded == config
    np.testing.assert_allclose(our_logits(backbone, lora, TOKENS), expected, atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(our_logits(backbone, None, TOKENS), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("targets", [ALL, ("q", "down")])
def test_adapter_of_ours_loads_in_peft(make_reference, our_logits, torch_logits, tmp_path, targets) -> None:
    from peft import PeftModel

    model, folder = make_reference(tie_word_embeddings=True)
    config = LoraConfig(rank=4, alpha=10.0, targets=targets)
    backbone = load_backbone(folder, config, "float32")
    lora = random_adapter(backbone)
    save_adapter(lora, config, backbone, tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(model, str(tmp_path / "adapter")).eval()
    ours = our_logits(backbone, lora, TOKENS)
    np.testing.assert_allclose(ours, torch_logits(adapted, TOKENS), atol=2e-4, rtol=1e-4)
    merged = torch_logits(adapted.merge_and_unload(), TOKENS)
    np.testing.assert_allclose(ours, merged, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("shard", [5_000_000_000, 9_000])
def test_merged_folder_gives_the_adapted_logits(make_reference, our_logits, torch_logits, tmp_path, shard) -> None:
    from transformers import AutoModelForCausalLM

    _, folder = make_reference(head_dim=10)
    config = LoraConfig(rank=4, alpha=10.0)
    backbone = load_backbone(folder, config, "float32")
    lora = random_adapter(backbone)
    out = save_merged(backbone, lora, tmp_path / "merged", max_shard_bytes=shard)
    model = AutoModelForCausalLM.from_pretrained(out, dtype="float32").eval()
    np.testing.assert_allclose(our_logits(backbone, lora, TOKENS), torch_logits(model, TOKENS), atol=2e-4, rtol=1e-4)


def test_merge_in_bfloat16_rounds_once(make_reference, tmp_path) -> None:
    _, folder = make_reference()
    config = LoraConfig(rank=4, alpha=10.0)
    backbone = load_backbone(folder, config, "bfloat16")
    lora = random_adapter(backbone)
    merged = load_backbone(save_merged(backbone, lora, tmp_path / "merged"), None, "bfloat16")
    q, adapter = backbone.base["layers"]["q"]["kernel"][...], lora["layers"]["q"]
    exact = np.asarray(q, np.float64) + 2.5 * (np.asarray(adapter["lora_a"][...], np.float64)
                                              @ np.asarray(adapter["lora_b"][...], np.float64))
    written = np.asarray(merged.base["layers"]["q"]["kernel"][...], np.float64)
    assert np.all(np.abs(written - exact) <= np.abs(exact) * 2**-8 + 1e-6)
