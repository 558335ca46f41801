"""The steps lower for GPU and TPU at the 8B shape, from abstract arrays, on a machine that has neither.

XLA's own attention path, and for a TPU jax's splash kernel; the cuDNN kernel can only be shown on a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType

from r2rec_jax.bench.presets import SHAPES
from r2rec_jax.config import GrpoConfig, LoraConfig
from r2rec_jax.models.llama import LlamaConfig, abstract_llama, split_llama
from r2rec_jax.parallel.sharding import shardings
from r2rec_jax.sampling.program import DecodeState, Sampling, empty_caches, prefill, segment
from r2rec_jax.tokens.batches import empty
from r2rec_jax.training.grpo import SUMS, make_grpo_loss
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.rollouts import GroupBatch
from r2rec_jax.training.sft import SUMS as SFT_SUMS
from r2rec_jax.training.sft import make_sft_loss
from r2rec_jax.training.state import init_state, make_optimizer
from r2rec_jax.training.updates import Updates

CONFIG = LlamaConfig.from_hf(SHAPES["random-8b"])
GRAPHDEF, LORA, BASE = split_llama(abstract_llama(CONFIG, LoraConfig(), jnp.bfloat16))
MODEL = FrozenModel(GRAPHDEF, BASE, "xla", remat=True)
OPTIMIZER = make_optimizer(1e-5, "constant", 0.0, 1, 0.0, 1.0)


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def lower(function: Any, platform: str, *args: Any) -> str:
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_sft_step_lowers(platform: str) -> None:
    updates = Updates(make_sft_loss(MODEL), SFT_SUMS, OPTIMIZER)
    state = jax.eval_shape(lambda lora: init_state(lora, OPTIMIZER), LORA)
    total = jax.eval_shape(updates.zeros.function, LORA)
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    text = lower(updates.gradient.function, platform, LORA, total, BASE, shapes(empty(2, 1024, 512)), scale)
    assert "bf16" in text and f"2x1024x{CONFIG.vocab_size}" not in text, "no [B, T, V]"
    lower(updates.update.function, platform, state, total)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_rounded_factors_reach_every_product_with_a_weight(platform: str) -> None:
    """SmolLM2's shape in float32 (``backbone.matmul_dtype``): only attention, whose products have rows and heads as a
    batch, multiplies float32 with float32."""
    config = LlamaConfig.from_hf(SHAPES["random-135m"])
    rounded = abstract_llama(config, LoraConfig(), jnp.float32, matmul_dtype=jnp.dtype(jnp.bfloat16))
    graphdef, lora, base = split_llama(rounded)
    updates = Updates(make_sft_loss(FrozenModel(graphdef, base, "xla", remat=True)), SFT_SUMS, OPTIMIZER)
    total = jax.eval_shape(updates.zeros.function, lora)
    text = lower(updates.gradient.function, platform, lora, total, base, shapes(empty(2, 512, 256)),
                 jax.ShapeDtypeStruct((), jnp.float32))
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    plain = [line for line in products if line.count("xf32>") == 3]
    assert plain and all("batching_dims" in line for line in plain), plain
    assert sum("xbf16>" in line for line in products) > 20


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_grpo_scoring_and_its_update_lower(platform: str) -> None:
    rows, columns = empty(1, 2048, 1024), jax.ShapeDtypeStruct((1, 1024), jnp.float32)
    group = GroupBatch(shapes(rows), columns, columns, columns, jax.ShapeDtypeStruct((1, 1024), jnp.int32),
                       reference=columns)
    lower(lambda lora, base, rows: MODEL.score(lora, base, rows, 0.6)[0], platform, LORA, BASE, shapes(rows))
    updates = Updates(make_grpo_loss(MODEL, GrpoConfig()), SUMS, OPTIMIZER)
    total = jax.eval_shape(updates.zeros.function, LORA)
    lower(updates.gradient.function, platform, LORA, total, BASE, group)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_decode_loop_lowers(platform: str) -> None:
    prompts, group, slots, capacity = 16, 8, 1024, 256
    rows, tokens = (prompts, group), (prompts, group, capacity)

    def array(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    state = DecodeState(
        step=array((), jnp.int32), row_ids=array(rows, jnp.int32), prompt_lengths=array((prompts,), jnp.int32),
        done=array(rows, bool), lengths=array(rows, jnp.int32), tokens=array(tokens, jnp.int32),
        logprobs=array(tokens, jnp.float32),
        caches=jax.eval_shape(lambda: empty_caches(CONFIG, prompts, group, slots, capacity, jnp.bfloat16)))
    rule = Sampling(greedy=False, cut=True, end_ids=(2,), pad_id=0)
    number = array((), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    text = lower(lambda *args: segment(GRAPHDEF, rule, None, *args), platform, LORA, BASE, state, key,
                 array((), jnp.int32), number, number)
    assert "while" in text


KERNEL = "tpu_custom_call"


def test_splash_attention_lowers_with_its_gradient() -> None:
    """One kernel forward, once more where the layer is recomputed, and two backward; one to prefill."""
    updates = Updates(make_sft_loss(replace(MODEL, attention="splash")), SFT_SUMS, OPTIMIZER)
    total = jax.eval_shape(updates.zeros.function, LORA)
    text = lower(updates.gradient.function, "tpu", LORA, total, BASE, shapes(empty(2, 1024, 512)),
                 jax.ShapeDtypeStruct((), jnp.float32))
    assert text.count(KERNEL) == 4
    tokens, lengths = jax.ShapeDtypeStruct((4, 768), jnp.int32), jax.ShapeDtypeStruct((4,), jnp.int32)
    text = lower(lambda *args: prefill(GRAPHDEF, "splash", *args), "tpu", LORA, BASE, tokens, lengths)
    assert text.count(KERNEL) == 1


def test_splash_attention_lowers_for_the_rows_and_heads_of_a_device() -> None:
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    model = replace(MODEL, attention="splash")
    placed = [jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree,
                           shardings(tree, mesh)) for tree in (LORA, BASE, shapes(empty(8, 1024, 512)))]
    with jax.sharding.use_abstract_mesh(mesh):
        text = lower(lambda *args: model.score(*args)[0], "tpu", *placed)
    calls = [line for line in text.splitlines() if KERNEL in line]
    assert len(calls) == 1
    assert "tensor<16x1024x128xbf16>" in calls[0] and "tensor<4x1024x128xbf16>" in calls[0], "32 and 8 heads by 2"
