"""LoRA adapters as PEFT folders: adapter_config.json and adapter_model.safetensors, in peft's own naming.

peft keeps ``lora_A.weight`` [r, in] and ``lora_B.weight`` [out, r] for every layer; ours are A [L, in, R] and
B [L, R, out]. Beside peft's two files we write ``r2rec.json`` with the sha256 of the base weights: an adapter that
carries it is refused on any other base. Folders made by peft itself have no such file and are held against the base by
names and shapes alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from r2rec_jax.config import LoraConfig
from r2rec_jax.files import FETCH_AGAIN, read_json, write_json
from r2rec_jax.models.backbone import Backbone
from r2rec_jax.models.folders import new_folder
from r2rec_jax.models.tensor_files import open_safetensors
from r2rec_jax.models.weights import LINEARS, TensorSource, copy_into, first_names, linear_shape

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
RECORD = "r2rec.json"
PREFIX = "base_model.model.model.layers"

PEFT_TO_SHORT = {module.split(".")[1]: short for short, module in LINEARS.items()}
PLAIN_INITS = (True, False, None, "gaussian", "eva")
"""peft's initialisations that leave the base weights as they are (pissa, olora and their kin change them)."""
MUST_BE_EMPTY = (
    "use_dora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform",
    "layer_replication", "fan_in_fan_out", "trainable_token_indices", "target_parameters", "use_qalora", "use_bdlora",
    "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config", "monteclora_config",
)
"""Settings of peft that change what the adapter computes, and that this implementation does not have."""


def save_adapter(
    lora: nnx.State,
    lora_config: LoraConfig,
    backbone: Backbone,
    out: str | Path,
    tokenizer_save: Callable[[Path], None] | None = None,
) -> Path:
    """Write an adapter as a PEFT folder, which appears whole or not at all.

    Args:
        lora: the adapter.
        lora_config: its rank, alpha and targets.
        backbone: what it was trained on.
        out: a new or empty folder.
        tokenizer_save: writes the tokenizer's files into the folder it is given.

    Raises:
        ValueError: ``out`` is not empty.
    """
    from safetensors.numpy import save_file

    flat = {tuple(map(str, path)): np.asarray(variable[...], np.float32)
            for path, variable in nnx.to_flat_state(lora)}
    tensors: dict[str, np.ndarray] = {}
    for short in lora_config.targets:
        a, b = flat[("layers", short, "lora_a")], flat[("layers", short, "lora_b")]
        for i in range(backbone.config.layers):
            name_a, name_b = _tensor_names(i, short)
            tensors[name_a] = np.ascontiguousarray(a[i].T)
            tensors[name_b] = np.ascontiguousarray(b[i].T)
    with new_folder(out) as folder:
        save_file(tensors, str(folder / WEIGHTS), metadata={"format": "pt"})
        write_json(folder / CONFIG, _peft_config(lora_config, _found_from_anywhere(backbone.source)), indent=2)
        write_json(folder / RECORD, {
            "format": 1, "base_sha256": backbone.sha256, "base_source": backbone.source,
            "base_weights_sha256": backbone.weights_sha256, "quantize": backbone.quantize,
            "lora": {"rank": lora_config.rank, "alpha": lora_config.alpha, "targets": list(lora_config.targets)}},
                   indent=2)
        if tokenizer_save is not None:
            tokenizer_save(folder)
    return Path(out).expanduser()


def read_adapter_config(folder: str | Path) -> LoraConfig:
    """Rank, alpha and targets of a PEFT folder: what a backbone must be loaded with to carry it.

    The targets are those that the tensors name, since ``target_modules`` may be a pattern. rsLoRA's alpha / sqrt(r)
    becomes the equal alpha sqrt(r) / r.

    Raises:
        ValueError: no adapter, or not a plain LoRA, naming the setting.
    """
    return _read(Path(folder).expanduser())[0]


def load_adapter(folder: str | Path, backbone: Backbone, *, other_precision: bool = False
                 ) -> tuple[nnx.State, LoraConfig]:
    """(adapter, its configuration) of a PEFT folder, for this backbone.

    Args:
        folder: with the adapter.
        backbone: what will carry it.
        other_precision: take an adapter that was trained on these weights stored otherwise (int8 for full weights, or
            full for int8): for merging and for measuring, never for going on.

    Raises:
        ValueError: no plain LoRA; another rank, alpha or targets than ``backbone.lora_config``; tensors missing,
            unused or of another shape; or an adapter that was trained on other base weights.
    """
    path = Path(folder).expanduser()
    lora_config, source = _read(path)
    _check_base(path, backbone, other_precision)
    room = backbone.lora_config
    if room is None or (room.rank, set(room.targets)) != (lora_config.rank, set(lora_config.targets)) \
            or abs(room.alpha - lora_config.alpha) > 1e-6 * room.alpha:
        raise ValueError(f"the adapter {path} has {_describe(lora_config)}, but the backbone was loaded for "
                         f"{_describe(room)}; set lora.rank, lora.alpha and lora.targets to the adapter's")
    _check_shapes(source, lora_config, backbone)
    values: dict[tuple[str, ...], jnp.ndarray] = {}
    c = backbone.config
    for short in lora_config.targets:
        d_out, d_in = linear_shape(c, short)
        a = np.empty((c.layers, d_in, lora_config.rank), np.float32)
        b = np.empty((c.layers, lora_config.rank, d_out), np.float32)
        for i in range(c.layers):
            name_a, name_b = _tensor_names(i, short)
            copy_into(a[i], source.read(name_a), transposed=True)
            copy_into(b[i], source.read(name_b), transposed=True)
        values[("layers", short, "lora_a")] = jnp.array(a)
        values[("layers", short, "lora_b")] = jnp.array(b)
    flat = [(where, variable.replace(values[tuple(map(str, where))]))
            for where, variable in nnx.to_flat_state(backbone.lora)]
    return nnx.from_flat_state(flat), lora_config


def _tensor_names(layer: int, short: str) -> tuple[str, str]:
    stem = f"{PREFIX}.{layer}.{LINEARS[short]}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


def _found_from_anywhere(source: str) -> str:
    """A local base by its whole path: adapters are loaded from other folders than the one they were trained in."""
    path = Path(source).expanduser()
    return str(path.resolve()) if path.exists() else source


def _peft_config(lora_config: LoraConfig, base: str) -> dict[str, Any]:
    alpha = lora_config.alpha
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": lora_config.rank, "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha, "lora_dropout": 0.0,
        "target_modules": [LINEARS[short].split(".")[1] for short in lora_config.targets], "bias": "none",
        "fan_in_fan_out": False, "use_rslora": False, "use_dora": False, "init_lora_weights": True,
        "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {},
    }


def _read(path: Path) -> tuple[LoraConfig, TensorSource]:
    if not (path / CONFIG).is_file():
        raise ValueError(f"an adapter must be a PEFT folder with {CONFIG}; {path} has none")
    config = read_json(path / CONFIG, FETCH_AGAIN)
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{path / CONFIG}: peft_type must be 'LORA'; got {config.get('peft_type')!r}")
    for name in MUST_BE_EMPTY:
        if config.get(name):
            raise ValueError(f"{path / CONFIG}: only plain LoRA is read; {name} is {config[name]!r}")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{path / CONFIG}: only plain LoRA is read; bias is {config['bias']!r}")
    init = config.get("init_lora_weights", True)
    if init not in PLAIN_INITS:
        raise ValueError(f"{path / CONFIG}: init_lora_weights {init!r} may have changed the base weights; convert the "
                         "adapter to plain LoRA with peft (save_pretrained(..., path_initial_model_for_weight_"
                         "conversion=...))")
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"{path} must hold {WEIGHTS}; it does not (pickled adapters are not read)")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float) or not alpha > 0:
        raise ValueError(f"{path / CONFIG}: r and lora_alpha must be positive numbers; got {rank!r} and {alpha!r}")
    if config.get("use_rslora"):
        alpha = alpha * rank**0.5
    source = open_safetensors(str(path), {path / WEIGHTS: None})
    found = {part for name in source.shapes for part in name.split(".") if part in PEFT_TO_SHORT}
    targets = tuple(short for peft_name, short in PEFT_TO_SHORT.items() if peft_name in found)
    if not targets:
        raise ValueError(f"{path / WEIGHTS} must adapt Llama's linears {', '.join(PEFT_TO_SHORT)}; its tensors are "
                         f"{first_names(source.shapes) or 'none'}")
    return LoraConfig(rank=rank, alpha=float(alpha), targets=targets), source


def _check_base(path: Path, backbone: Backbone, other_precision: bool) -> None:
    if not (path / RECORD).is_file():
        return
    record = read_json(path / RECORD, FETCH_AGAIN)
    if record.get("base_sha256") == backbone.sha256:
        return
    weights = record.get("base_weights_sha256", record.get("base_sha256"))
    if weights == backbone.weights_sha256:
        if other_precision:
            return
        raise ValueError(f"the adapter {path} was trained on these weights with backbone.quantize "
                         f"{record.get('quantize', 'none')}; they are loaded with {backbone.quantize}; set "
                         "backbone.quantize to the adapter's")
    raise ValueError(f"the adapter {path} belongs to another base: it was trained on {record.get('base_source')} "
                     f"(sha256 {str(weights)[:12]}), and {backbone.source} is {backbone.weights_sha256[:12]}; give the "
                     "weights it was trained on, or train on these in another --run_dir")


def _check_shapes(source: TensorSource, lora_config: LoraConfig, backbone: Backbone) -> None:
    wanted: dict[str, tuple[int, ...]] = {}
    for short in lora_config.targets:
        d_out, d_in = linear_shape(backbone.config, short)
        for i in range(backbone.config.layers):
            name_a, name_b = _tensor_names(i, short)
            wanted |= {name_a: (lora_config.rank, d_in), name_b: (d_out, lora_config.rank)}
    missing = [name for name in wanted if name not in source.shapes]
    unused = [name for name in source.shapes if name not in wanted]
    wrong = [f"{name} is {list(source.shapes[name])}, not {list(shape)}" for name, shape in wanted.items()
             if name in source.shapes and source.shapes[name] != shape]
    problems = [f"{len(names)} tensors {kind}: {first_names(names)}"
                for kind, names in (("missing", missing), ("unused", unused), ("of another shape", wrong)) if names]
    if problems:
        raise ValueError(f"the adapter {source.where} does not fit the base {backbone.source}: {'; '.join(problems)}")


def _describe(lora_config: LoraConfig | None) -> str:
    if lora_config is None:
        return "no adapter"
    return f"rank {lora_config.rank}, alpha {lora_config.alpha:g}, targets {','.join(lora_config.targets)}"
