"""What a run hands over: a PEFT adapter folder, or the merged model as HF safetensors, each with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from r2rec_jax.models.huggingface import save_merged
from r2rec_jax.models.peft import save_adapter

if TYPE_CHECKING:
    from flax import nnx

    from r2rec_jax.config import LoraConfig
    from r2rec_jax.models.huggingface import Backbone
    from r2rec_jax.tokens.tokenizer import Tokenizer


def export_peft(
    backbone: Backbone, lora: nnx.State, lora_config: LoraConfig, tokenizer: Tokenizer, out: str | Path
) -> Path:
    """Write an adapter that ``peft.PeftModel.from_pretrained(base, out)`` loads, with the tokenizer beside it.

    The folder appears whole or not at all.

    Raises:
        ValueError: ``out`` is neither new nor empty.
    """
    return save_adapter(lora, lora_config, backbone, out, tokenizer.save)


def export_merged(
    backbone: Backbone, lora: nnx.State, lora_config: LoraConfig, tokenizer: Tokenizer, out: str | Path
) -> Path:
    """Write the model with the adapter added to its weights, for ``AutoModelForCausalLM.from_pretrained(out)``.

    The folder appears whole or not at all.

    Raises:
        ValueError: ``out`` is neither new nor empty, or ``lora_config`` is not what the backbone was loaded for.
    """
    room = backbone.lora_config
    if room is None or (room.rank, room.alpha, set(room.targets)) != (
            lora_config.rank, lora_config.alpha, set(lora_config.targets)):
        raise ValueError(f"the adapter to merge must be of the backbone's own LoRA settings {room}; got {lora_config}")
    return save_merged(backbone, lora, out, tokenizer.save)
