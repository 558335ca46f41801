"""Backbones in and out of HF folders: round trips, hashes, and what is refused, by name and on one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from r2rec_jax.config import LoraConfig
from r2rec_jax.models.backbone import Backbone, random_backbone, resolve_dtype, with_base
from r2rec_jax.models.huggingface import INDEX, SINGLE, load_backbone, plan_shards, save_merged
from r2rec_jax.models.llama import LlamaConfig
from r2rec_jax.models.weights import copy_into, weight_slots

LORA = LoraConfig(rank=4, alpha=8.0)


def assert_same(one: Backbone, other: Backbone) -> None:
    assert one.graphdef == other.graphdef
    for a, b in ((one.base, other.base), (one.lora, other.lora)):
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shard_bytes", [10_000_000, 5_000])
def test_round_trip(make_backbone, tmp_path, dtype, tied, shard_bytes) -> None:
    backbone = make_backbone(LORA, dtype, tie_word_embeddings=tied)
    out = save_merged(backbone, None, tmp_path / "out", max_shard_bytes=shard_bytes)
    loaded = load_backbone(out, LORA, dtype)
    assert_same(backbone, loaded)
    assert loaded.sha256 == backbone.sha256
    assert loaded.config == backbone.config
    assert (out / INDEX).exists() == (shard_bytes == 5_000)
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 1
    assert all(float(jnp.abs(x).max()) == 0 for x in jax.tree.leaves(loaded.lora))


def test_merging_the_zero_adapter_changes_nothing(make_backbone, tmp_path) -> None:
    backbone = make_backbone(LORA)
    merged = save_merged(backbone, backbone.lora, tmp_path / "merged")
    assert load_backbone(merged, None, "float32").sha256 == backbone.sha256


def test_merge_adds_the_scaled_product(make_backbone, random_lora, tmp_path) -> None:
    backbone = make_backbone(LoraConfig(rank=4, alpha=6.0, targets=("k", "down")))
    lora = random_lora(backbone)
    merged = load_backbone(save_merged(backbone, lora, tmp_path / "merged"), None, "float32").base["layers"]
    for name in ("q", "k", "down"):
        expected = np.asarray(backbone.base["layers"][name]["kernel"][...])
        if name != "q":
            adapter = lora["layers"][name]
            expected = expected + 1.5 * np.asarray(adapter["lora_a"][...]) @ np.asarray(adapter["lora_b"][...])
        np.testing.assert_allclose(merged[name]["kernel"][...], expected, atol=1e-5)


def test_hash_is_of_the_values_not_of_their_storage(make_backbone, tmp_path) -> None:
    narrow = make_backbone(dtype="bfloat16")
    path = save_merged(narrow, None, tmp_path / "narrow")
    assert load_backbone(path, LORA, "float32").sha256 == narrow.sha256
    assert make_backbone(dtype="bfloat16", seed=1).sha256 != narrow.sha256
    changed = jax.tree.map(lambda x: x, narrow.base)
    changed["embed"][...] = changed["embed"][...].at[5, 3].add(0.5)
    assert with_base(narrow, changed, "changed").sha256 != narrow.sha256
    assert with_base(narrow, narrow.base, "same").sha256 == narrow.sha256


def test_adapter_room_is_the_zero_tree_and_auto_is_float32_on_cpu(make_backbone) -> None:
    backbone = make_backbone(LORA, "auto")
    assert backbone.lora["layers"]["q"]["lora_a"][...].dtype == jnp.float32
    assert not any(np.any(x) for x in jax.tree.leaves(backbone.lora))
    assert resolve_dtype("auto") == jnp.float32


def _rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)


def _configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _cut(folder: Path, count: int) -> None:
    path = folder / SINGLE
    path.write_bytes(path.read_bytes()[:count])


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda f: _rewrite(f, lambda t: [t.pop(n) for n in list(t) if "layers.1" in n]),
                r"9 missing: model.layers.1.input_layernorm.weight, .*, \.\.\.$"),
    "unused": (lambda f: _rewrite(f, lambda t: t.update({"model.extra.weight": np.zeros(2, np.float32)})),
               "1 unused: model.extra.weight"),
    "bias": (lambda f: _rewrite(f, lambda t: t.update(
        {"model.layers.0.self_attn.q_proj.bias": np.zeros(24, np.float32)})), "unused: .*q_proj.bias"),
    "shape": (lambda f: _rewrite(f, lambda t: t.update({"lm_head.weight": np.zeros((98, 24), np.float32)})),
              r"lm_head.weight is \[98, 24\], not \[97, 24\]"),
    "integers": (lambda f: _rewrite(f, lambda t: t.update({"lm_head.weight": np.zeros((97, 24), np.int8)})),
                 "lm_head.weight must be float32, float16 or bfloat16; got int8"),
    "tied but different": (lambda f: _configure(f, tie_word_embeddings=True), "ties the head.*differs"),
    "truncated": (lambda f: _cut(f, 40_000), "model.safetensors is truncated or not a safetensors file"),
    "truncated header": (lambda f: _cut(f, 5), "is truncated or not"),
    "empty": (lambda f: _cut(f, 0), "is truncated or not"),
    "other model": (lambda f: _configure(f, model_type="mistral"), "model_type 'llama'; config.json says 'mistral'"),
    "attention bias": (lambda f: _configure(f, attention_bias=True), "attention_bias must be False"),
    "yarn": (lambda f: _configure(f, rope_scaling={"rope_type": "yarn"}), "RoPE type .* got 'yarn'"),
    "llama3 without factor": (lambda f: _configure(f, rope_scaling={"rope_type": "llama3"}), "it lacks factor"),
    "no width": (lambda f: _configure(f, hidden_size=None), "must state hidden_size"),
    "quantised": (lambda f: _configure(f, quantization_config={"bits": 4}), "quantised checkpoint"),
    "no config": (lambda f: (f / "config.json").unlink(), "there is no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "must be JSON; .*; fetch the file again"),
    "no weights": (lambda f: (f / SINGLE).unlink(), "it has neither"),
    "missing shard": (lambda f: (f / INDEX).write_text('{"weight_map": {"lm_head.weight": "gone.safetensors"}}'),
                      "gone.safetensors is missing"),
    "index names what is not there": (
        lambda f: (f / INDEX).write_text(f'{{"weight_map": {{"nothing": "{SINGLE}"}}}}'),
        "lacks 1 tensors that the index puts there: nothing"),
    "index without a map": (lambda f: (f / INDEX).write_text("{}"), "under 'weight_map'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folder_is_refused_in_one_line(folder, case) -> None:
    break_it, message = BROKEN[case]
    break_it(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_backbone(folder, LORA, "float32")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_tied_checkpoint_may_repeat_its_embedding(make_backbone, tmp_path) -> None:
    backbone = make_backbone()
    path = save_merged(backbone, None, tmp_path / "tied")
    _rewrite(path, lambda t: t.update({
        "lm_head.weight": t["model.embed_tokens.weight"].copy(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}))
    assert load_backbone(path, None, "float32").sha256 == backbone.sha256


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "some.gguf", "no-such-org/no-such-model"])
def test_source_that_is_not_there_names_what_was_tried(source) -> None:
    with pytest.raises(ValueError, match=re.escape(source)) as error:
        load_backbone(source, None)
    assert "\n" not in str(error.value)


def test_hub_id_takes_data_files_only(folder, monkeypatch) -> None:
    asked = {}

    def download(source: str, **settings: Any) -> str:
        asked.update(settings, source=source)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    loaded = load_backbone("some-org/some-model", None, "float32")
    assert loaded.config.vocab_size == 97
    assert loaded.source == "some-org/some-model", "what an adapter names as its base, on whatever machine"
    assert asked["source"] == "some-org/some-model"
    assert not [p for p in asked["allow_patterns"] if p.endswith((".py", ".bin", ".pth", "*"))
                and p != "tokenizer*"]


def test_a_safetensors_file_is_no_backbone(folder) -> None:
    with pytest.raises(ValueError, match="for safetensors give the folder"):
        load_backbone(folder / SINGLE, None)


def test_output_folder_must_be_new_and_failure_leaves_nothing(make_backbone, folder, tmp_path) -> None:
    backbone = make_backbone()
    with pytest.raises(ValueError, match="must be new or empty"):
        save_merged(backbone, None, folder)

    def fail(_: Path) -> None:
        raise OSError("No space left on device")

    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space left"):
        save_merged(backbone, None, tmp_path / "out", fail)
    assert sorted(tmp_path.iterdir()) == before

    (tmp_path / "empty").mkdir()
    save_merged(backbone, None, tmp_path / "empty", lambda f: (f / "tokenizer.json").write_text("{}") and None)
    assert (tmp_path / "empty" / "tokenizer.json").exists()


@given(limit=st.integers(1, 200_000))
def test_shards_hold_every_tensor_once_in_order(limit: int) -> None:
    slots = weight_slots(LlamaConfig(97, 24, 40, 2, 4, 2, 6, 1e-5, 1e4, None, False, 128))
    sizes = {name: 4 * int(np.prod(slot.shape)) for slot in slots for name in slot.names}
    shards = plan_shards(slots, 4, limit)
    assert [name for shard in shards for name in shard] == list(sizes)
    for shard in shards:
        assert len(shard) == 1 or sum(sizes[name] for name in shard) <= limit


@given(rows=st.integers(1, 200), columns=st.integers(1, 5), transposed=st.booleans())
def test_copy_into_is_the_whole_array(rows: int, columns: int, transposed: bool) -> None:
    tensor = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    expected = tensor.T if transposed else tensor
    out = np.full(expected.shape, -1, np.float32)
    copy_into(out, tensor, transposed)
    np.testing.assert_array_equal(out, expected)


def test_random_backbones_differ_by_seed_only(hf_config) -> None:
    bare, adapted, other = (random_backbone(hf_config, lora, "float32", seed).sha256
                            for lora, seed in ((None, 3), (LORA, 3), (None, 4)))
    assert bare == adapted
    assert bare != other
