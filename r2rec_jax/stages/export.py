"""What a run hands over: a PEFT adapter folder, or the merged model as HF safetensors, each with what serving it needs.

A server takes prompts from the chat template, and ends, pads and samples by generation_config.json. All three are those
of training: the template as it was rendered (it may open ``<think>`` itself), the end tokens that
were trained and sampled with, which the checkpoint's own file need not name, and the temperature, top-p and limit of
the rollouts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2rec_jax.files import write_json
from r2rec_jax.models.huggingface import save_merged
from r2rec_jax.models.peft import save_adapter

if TYPE_CHECKING:
    from flax import nnx

    from r2rec_jax.config import GrpoConfig, LoraConfig
    from r2rec_jax.models.huggingface import Backbone
    from r2rec_jax.tokens.tokenizer import Tokenizer


GENERATION_CONFIG = "generation_config.json"


def generation_config(tokenizer: Tokenizer, sampling: GrpoConfig, vocab_size: int) -> dict[str, Any]:
    """How to generate as the rollouts did with a backbone of so many rows, in transformers' names.

    DeepSeek-R1-Distill-Llama-8B, trained at 0.6 and 0.9: ``{"bos_token_id": 128000, "eos_token_id": 128001,
    "pad_token_id": 128001, "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 0, "max_new_tokens": 1024}``.
    Where a file does not say that no top-k is taken, transformers draws among 50 tokens.
    """
    ends = list(tokenizer.end_ids)
    return {
        **({} if tokenizer.bos_id is None else {"bos_token_id": tokenizer.bos_id}),
        "eos_token_id": ends[0] if len(ends) == 1 else ends, "pad_token_id": tokenizer.pad_within(vocab_size),
        "do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p,
        "top_k": 0, "max_new_tokens": sampling.max_new_tokens,
    }


def _serving_files(tokenizer: Tokenizer, sampling: GrpoConfig, vocab_size: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        tokenizer.save(folder)
        write_json(folder / GENERATION_CONFIG, generation_config(tokenizer, sampling, vocab_size))

    return write


def export_peft(
    backbone: Backbone, lora: nnx.State, lora_config: LoraConfig, tokenizer: Tokenizer, sampling: GrpoConfig,
    out: str | Path,
) -> Path:
    """Write an adapter that ``peft.PeftModel.from_pretrained(base, out)`` loads, with what serving needs beside it.

    The folder appears whole or not at all.

    Raises:
        ValueError: ``out`` is neither new nor empty.
    """
    return save_adapter(lora, lora_config, backbone, out,
                        _serving_files(tokenizer, sampling, backbone.config.vocab_size))


def export_merged(
    backbone: Backbone, lora: nnx.State, tokenizer: Tokenizer, sampling: GrpoConfig, out: str | Path
) -> Path:
    """Write the model with the adapter added to its weights, for ``AutoModelForCausalLM.from_pretrained(out)``.

    The folder appears whole or not at all.

    Raises:
        ValueError: ``out`` is neither new nor empty.
    """
    return save_merged(backbone, lora, out, _serving_files(tokenizer, sampling, backbone.config.vocab_size))
