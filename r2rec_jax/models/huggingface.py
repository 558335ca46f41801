"""Backbones in and out: a local HF folder, a GGUF file or a hub id to a :class:`Backbone`, and back to HF safetensors.

No code of a checkpoint is ever run and nothing is unpickled: config.json and safetensors only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from r2rec_jax.config import LoraConfig
from r2rec_jax.files import FETCH_AGAIN, read_json, write_json
from r2rec_jax.models.backbone import Backbone, assemble, hf_tensors, parameter
from r2rec_jax.models.folders import new_folder
from r2rec_jax.models.gguf import read_gguf
from r2rec_jax.models.quantize import Quantize
from r2rec_jax.models.tensor_files import TensorHeader, open_safetensors, write_safetensors
from r2rec_jax.models.weights import TensorSource, WeightSlot, weight_slots
from r2rec_jax.reasons import one_line

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
HUB_FILES = ["*.json", "*.safetensors", "tokenizer*", "*.model", "*.jinja"]
HUB_SKIP = ["original/*", "onnx/*", "adapter_*", "runs/*"]


def load_backbone(
    source: str | Path,
    lora: LoraConfig | None,
    dtype: str = "auto",
    *,
    quantize: Quantize = "none",
    mesh: Mesh | None = None,
) -> Backbone:
    """Load a frozen Llama, with room for adapters.

    Args:
        source: a folder with config.json and safetensors, a ``.gguf`` file, or a hub id.
        lora: rank, scale and targets of the adapters; None for none.
        dtype: ``auto`` (bfloat16 on GPU and TPU, float32 on CPU), ``bfloat16`` or ``float32``.
        quantize: ``int8`` stores the layers' linears in int8.
        mesh: devices that the weights are laid out on; None for the default one.

    Raises:
        ValueError: there is no such thing, or it is no Llama that this implementation runs, with the reason.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"a backbone file must be a .gguf; got {path}; for safetensors give the folder")
        return assemble(*read_gguf(path), lora, dtype, quantize=quantize, mesh=mesh)
    from_hub = not path.is_dir()
    if from_hub:
        path = fetch_from_hub(str(source))
    hf_config, tensors = open_hf_folder(path)
    generation = path / "generation_config.json"
    loaded = assemble(hf_config, tensors, lora, dtype, quantize=quantize, mesh=mesh,
                      generation_config=read_json(generation, FETCH_AGAIN) if generation.is_file() else None)
    return replace(loaded, source=str(source)) if from_hub else loaded  # an adapter names its base for other machines


def fetch_from_hub(source: str) -> Path:
    """The folder of a hub id's files, downloaded once and then taken from the hub's cache.

    Raises:
        ValueError: no such path here, and the hub cannot be reached or does not have it.
    """
    from huggingface_hub import snapshot_download

    if source.startswith((".", "/", "~")) or source.count("/") > 1 or source.lower().endswith(".gguf"):
        raise ValueError(f"the backbone must be a folder, a .gguf file or a hub id; {source} does not exist")
    try:
        return Path(snapshot_download(source, allow_patterns=HUB_FILES, ignore_patterns=HUB_SKIP))
    except Exception as error:  # the errors of the hub, its HTTP client and its storage back end share no base
        raise ValueError(f"the backbone {source!r} is no folder or file here, and the hub did not give it "
                         f"({type(error).__name__}: {one_line(error)}); give a local folder or a .gguf file, or "
                         "download it while the network is there") from None


def open_hf_folder(folder: Path) -> tuple[dict[str, Any], TensorSource]:
    """(config.json, tensors) of a folder with one safetensors file or several and their index.

    Raises:
        ValueError: a file is missing, broken or not what the index says.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} must hold config.json and safetensors; there is no config.json")
    hf_config = read_json(folder / "config.json", FETCH_AGAIN)
    if hf_config.get("quantization_config"):
        raise ValueError(f"{folder}: a quantised checkpoint cannot be a backbone; take the full one, or a GGUF file")
    if (folder / INDEX).is_file():
        weight_map = read_json(folder / INDEX, FETCH_AGAIN).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{folder / INDEX} must map tensor names to files under 'weight_map'")
        files: dict[Path, tuple[str, ...] | None] = {
            folder / str(file): tuple(n for n, f in weight_map.items() if f == file)
            for file in sorted(set(weight_map.values()))}
    elif (folder / SINGLE).is_file():
        files = {folder / SINGLE: None}
    else:
        raise ValueError(f"{folder} must hold {SINGLE} or {INDEX}; it has neither "
                         "(pickled .bin checkpoints are not read)")
    return hf_config, open_safetensors(str(folder), files)


def save_merged(
    backbone: Backbone,
    lora: nnx.State | None,
    out: str | Path,
    tokenizer_save: Callable[[Path], None] | None = None,
    *,
    max_shard_bytes: int = 5_000_000_000,
) -> Path:
    """Write the model with its adapter merged in, W + (alpha / r) (A B)^T, as an HF folder.

    The sum is taken in float32 and cast to the backbone's dtype. One tensor at a time is on the host. The folder
    appears whole or not at all.

    Args:
        backbone: the frozen model.
        lora: the adapter; None writes the base (the storage form of a backbone of pretraining).
        out: a new or empty folder.
        tokenizer_save: writes the tokenizer's files into the folder it is given, after all others.
        max_shard_bytes: a new safetensors file is begun when the next tensor would pass this.

    Raises:
        ValueError: ``out`` is not empty, or the backbone is quantised: its weights are rounded, and a sum of them and
            the adapter is not what anybody should serve.
    """
    if backbone.quantize != "none":
        raise ValueError(f"an adapter is merged into full weights; {backbone.source} was loaded with "
                         f"backbone.quantize {backbone.quantize}; load it with backbone.quantize none")
    slots = weight_slots(backbone.config)
    dtype = np.dtype(parameter(backbone.base, ("embed",)).dtype)
    shards = plan_shards(slots, dtype.itemsize, max_shard_bytes)
    headers = {name: TensorHeader(name, slot.shape, dtype) for slot in slots for name in slot.names}
    with new_folder(out) as folder:
        weight_map: dict[str, str] = {}
        for i, names in enumerate(shards):
            file = SINGLE if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            write_safetensors(folder / file, [headers[name] for name in names],
                              merged_tensors(backbone, lora, set(names)))
            weight_map |= dict.fromkeys(names, file)
        if len(shards) > 1:
            total = dtype.itemsize * sum(int(np.prod(s.our_shape)) for s in slots)
            write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        write_json(folder / "config.json", _config_for_export(backbone), indent=2)
        write_json(folder / "generation_config.json", _generation_config(backbone), indent=2)
        if tokenizer_save is not None:
            tokenizer_save(folder)
    return Path(out).expanduser()


def plan_shards(slots: tuple[WeightSlot, ...], itemsize: int, max_bytes: int) -> list[list[str]]:
    """Tensor names of each shard: in the model's order, a shard closed before it would pass ``max_bytes``.

    Example: tensors of 40, 40 and 30 bytes with a limit of 80 go to [[first, second], [third]].
    """
    if max_bytes < 1:
        raise ValueError(f"max_shard_bytes must be >= 1; got {max_bytes}")
    shards: list[list[str]] = [[]]
    filled = 0
    for slot in slots:
        size = int(np.prod(slot.shape)) * itemsize
        for name in slot.names:
            if shards[-1] and filled + size > max_bytes:
                shards.append([])
                filled = 0
            shards[-1].append(name)
            filled += size
    return shards


def merged_tensors(
    backbone: Backbone, lora: nnx.State | None, names: set[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """The named tensors as HF stores them, adapters added: (name, contiguous array in the backbone's dtype)."""
    for slot in weight_slots(backbone.config):
        if not names.intersection(slot.names):
            continue
        adapter = _adapter_of(slot, lora)
        for name, tensor in hf_tensors(slot, backbone.base, names):
            if adapter is not None and backbone.lora_config is not None:
                a, b = (np.asarray(part[slot.names.index(name)], np.float32) for part in adapter)
                scale = np.float32(backbone.lora_config.alpha / backbone.lora_config.rank)
                tensor = (tensor.astype(np.float32) + scale * (a @ b).T).astype(tensor.dtype)
            yield name, np.ascontiguousarray(tensor)


def _adapter_of(slot: WeightSlot, lora: nnx.State | None) -> tuple[Any, Any] | None:
    if lora is None or slot.path[-1] != "kernel":
        return None
    module = slot.path[:-1]
    flat = {path: variable[...] for path, variable in nnx.to_flat_state(lora)}
    if (*module, "lora_a") not in flat:
        return None
    return flat[(*module, "lora_a")], flat[(*module, "lora_b")]


def _config_for_export(backbone: Backbone) -> dict[str, Any]:
    dtype = str(parameter(backbone.base, ("embed",)).dtype)
    config = {k: v for k, v in backbone.hf_config.items() if k not in ("torch_dtype", "_name_or_path", "auto_map")}
    return {**config, "architectures": ["LlamaForCausalLM"], "dtype": dtype}


def _generation_config(backbone: Backbone) -> dict[str, Any]:
    if backbone.generation_config:
        return dict(backbone.generation_config)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    known = {name: backbone.hf_config.get(name) for name in names}
    return {"_from_model_config": True, **{name: value for name, value in known.items() if value is not None}}
