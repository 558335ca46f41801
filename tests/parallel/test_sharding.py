"""The table of rules: every array of a run has one, and what does not divide is replicated and reported."""

from __future__ import annotations

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from r2rec_jax.config import LoraConfig, ParallelConfig, TinyConfig, TrainConfig
from r2rec_jax.models.backbone import tiny_hf_config
from r2rec_jax.models.llama import LlamaConfig, abstract_llama, split_llama
from r2rec_jax.parallel.mesh import make_mesh, row_shards
from r2rec_jax.parallel.sharding import Undivided, names_of, place, spec_of, undivided
from r2rec_jax.stages.keys import stage_key
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.training.state import init_state, make_optimizer

SIZES = st.fixed_dictionaries({name: st.sampled_from([1, 2, 3, 4, 8]) for name in ("data", "fsdp", "tensor")})


def tiny_trees(tied: bool = False) -> tuple[object, object]:
    hf = tiny_hf_config(TinyConfig(hidden_size=48, heads=6, kv_heads=2, ffn=64, layers=2), vocab_size=320, bos_id=None,
                        eos_id=1, pad_id=0) | {"tie_word_embeddings": tied}
    _, lora, base = split_llama(abstract_llama(LlamaConfig.from_hf(hf), LoraConfig(rank=4), jnp.float32))
    return lora, base


def leaf_specs(tree: object, sizes: dict[str, int]) -> dict[str, P]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(names_of(path)): spec_of(names_of(path), leaf.shape, sizes) for path, leaf in leaves}


def test_every_parameter_has_the_stated_place() -> None:
    lora, base = tiny_trees()
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    specs = leaf_specs(base, sizes) | leaf_specs(lora, sizes)
    into, out = P(None, "fsdp", "tensor"), P(None, "tensor", "fsdp")
    assert specs["embed"] == P("tensor", "fsdp")
    assert specs["lm_head"] == P("fsdp", "tensor")
    assert specs["norm/scale"] == specs["layers/attn_norm/scale"] == P()
    assert all(specs[f"layers/{n}/kernel"] == into for n in ("q", "k", "v", "gate", "up"))
    assert all(specs[f"layers/{n}/kernel"] == out for n in ("o", "down"))
    assert specs["layers/q/lora_a"] == P(None, "fsdp", None)
    assert specs["layers/q/lora_b"] == P(None, None, "tensor")
    assert specs["layers/down/lora_a"] == P(None, "tensor", None)
    assert specs["layers/down/lora_b"] == P(None, None, "fsdp")


def test_moments_follow_their_parameters() -> None:
    lora, _ = tiny_trees()
    optimizer = make_optimizer(1e-3, "constant", 0.0, 10, 0.0, 1.0)
    state = jax.eval_shape(lambda: init_state(jax.tree.map(lambda x: jnp.zeros(x.shape), lora), optimizer))
    specs = leaf_specs(state, {"data": 1, "fsdp": 4, "tensor": 2})
    moments = {name: spec for name, spec in specs.items() if "/mu/" in name or "/nu/" in name}
    assert len(moments) == 2 * len(jax.tree.leaves(lora))
    assert all(spec == specs["params/" + name.split("u/", 1)[1]] for name, spec in moments.items())


@given(sizes=SIZES, shape=st.tuples(st.integers(1, 6), st.integers(1, 24), st.integers(1, 24)))
def test_kept_axes_divide_and_lost_ones_are_reported(sizes: dict[str, int], shape: tuple[int, int, int]) -> None:
    path = ("layers", "q", "kernel")
    spec = spec_of(path, shape, sizes)
    lost = undivided({"layers": {"q": {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}}}, sizes)
    assert [("fsdp" in spec), ("tensor" in spec)] == [shape[1] % sizes["fsdp"] == 0, shape[2] % sizes["tensor"] == 0]
    whole = tuple(axis for axis in ("fsdp", "tensor") if axis not in spec)
    assert lost == ([Undivided("layers/q/kernel", shape, 4 * math.prod(shape), whole)] if whole else [])


def test_a_run_says_what_no_axis_divides(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def shape(*size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, jnp.bfloat16)

    base = {"embed": shape(49153, 576), "layers": {"q": {"kernel": shape(30, 576, 576)},
                                                   "down": {"kernel": shape(2, 9, 9)}, "norm": {"scale": shape(3)}}}
    monkeypatch.setattr(Workspace, "_load", lambda self, quantize: SimpleNamespace(base=base))
    work = Workspace(SimpleNamespace(config=SimpleNamespace(backbone=SimpleNamespace(quantize="none"))))
    for sizes, told in (({"data": 2, "fsdp": 1, "tensor": 1}, []), ({"data": 1, "fsdp": 2, "tensor": 4}, [
            "mesh: what an axis does not divide is replicated on it, 56.6 MB of the backbone in 2 of its arrays; "
            "the largest: embed [49153, 576] on tensor, 56.6 MB; "
            "layers/down/kernel [2, 9, 9] on tensor and fsdp, 0.0 MB"])):
        work.__dict__ = {"run": work.run, "mesh": SimpleNamespace(shape=sizes)}
        assert work.backbone.base is base and work.backbone.base is base
        assert capsys.readouterr().err.splitlines() == told


@given(sizes=SIZES, rows=st.integers(1, 64))
def test_joined_axes_split_as_far_as_they_divide(sizes: dict[str, int], rows: int) -> None:
    kept = spec_of(("rows", "tokens"), (rows, 5), sizes)[0]
    names = (kept,) if isinstance(kept, str) else kept or ()
    parts = 1
    for name in names:
        parts *= sizes[name]
    assert rows % parts == 0
    if rows % (sizes["data"] * sizes["fsdp"]) == 0:
        assert names == ("data", "fsdp")


def test_an_unknown_array_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"must have a rule in .*RULES; got layers/q/bias"):
        spec_of(("layers", "q", "bias"), (3,), {"data": 1, "fsdp": 1, "tensor": 1})
    assert spec_of(("anything", "count"), (), {"data": 1, "fsdp": 1, "tensor": 1}) == P()


@pytest.mark.parametrize(("config", "devices", "sizes"), [
    (ParallelConfig(), 8, (8, 1, 1)), (ParallelConfig(fsdp=4), 8, (2, 4, 1)),
    (ParallelConfig(data=1, fsdp=-1, tensor=2), 8, (1, 4, 2)), (ParallelConfig(data=2, fsdp=2, tensor=2), 8, (2, 2, 2)),
])
def test_axis_sizes(config: ParallelConfig, devices: int, sizes: tuple[int, ...]) -> None:
    assert tuple(config.sizes(devices).values()) == sizes


@pytest.mark.parametrize(("settings", "devices", "message"), [
    ({"data": -1, "fsdp": -1}, 8, "-1 on at most one axis"), ({"data": 0}, 8, "parallel.data must be >= 1"),
    ({"fsdp": 3}, 8, "a divisor of the 8 devices"), ({"data": 2, "fsdp": 2}, 8, r"the number of devices \(8\); got 4"),
    ({"fsdp": 16}, 8, "a divisor of the 8 devices"), ({"coordinator": "host:1"}, 8, "'auto' when they are given"),
    ({"distributed": "auto", "coordinator": "host"}, 8, "host:port"),
    ({"distributed": "auto", "num_processes": 2, "process_id": 2}, 8, "parallel.process_id must be in 0"),
])
def test_settings_that_do_not_fit_are_refused(settings: dict, devices: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ParallelConfig(**settings).sizes(devices)


def test_a_single_device_has_no_mesh_and_nothing_is_placed() -> None:
    mesh = make_mesh(ParallelConfig(), jax.devices()[:1])
    tree = {"embed": jnp.ones((4, 2))}
    assert mesh is None and row_shards(mesh) == 1
    assert place(tree, mesh) is tree


@pytest.mark.parametrize("stage", ["prepare", "thoughts", "pretrain", "sft", "grpo", "evaluate", "export"])
def test_the_layout_enters_no_stage_key(stage: str) -> None:
    elsewhere = ParallelConfig(data=1, fsdp=4, tensor=2, distributed="auto", coordinator="10.0.0.1:1234",
                               num_processes=2, process_id=1)
    assert stage_key(TrainConfig(), stage) == stage_key(TrainConfig(parallel=elsewhere), stage)
