"""Settings of the backbone and its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from r2rec_jax.config.check import check


@dataclass(frozen=True)
class TinyConfig:
    """Shape of the ``tiny`` backbone, trained from scratch.

    Attributes:
        vocab_size: BPE vocabulary, special tokens included.
        hidden_size: width of the hidden states, D.
        layers: blocks of attention and feed-forward network.
        heads: query heads a layer.
        kv_heads: key and value heads a layer.
        ffn: inner width of the feed-forward networks.
        max_positions: longest sequence the configuration declares.
        item_tokens: every item's title and year is one token, beside the BPE vocabulary: prompts are shorter and the
            choice of an item is one decision, as in recommenders that index items.
    """

    vocab_size: int = 2048
    hidden_size: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    ffn: int = 512
    max_positions: int = 4096
    item_tokens: bool = False

    def __post_init__(self) -> None:
        check(self.vocab_size >= 300, "backbone.tiny.vocab_size", ">= 300", self.vocab_size,
               "256 bytes and the special tokens")
        for name in ("hidden_size", "layers", "heads", "kv_heads", "ffn", "max_positions"):
            check(getattr(self, name) >= 1, f"backbone.tiny.{name}", ">= 1", getattr(self, name))
        check(self.hidden_size % (2 * self.heads) == 0, "backbone.tiny.hidden_size",
               "a multiple of 2 * backbone.tiny.heads", self.hidden_size, "RoPE rotates pairs")
        check(self.heads % self.kv_heads == 0, "backbone.tiny.heads", "a multiple of backbone.tiny.kv_heads",
               self.heads)


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen language model.

    Attributes:
        source: a local HF folder, a ``.gguf`` file, a hub id, ``tiny``, or ``smollm2-135m`` (SmolLM2-135M-Instruct from
            a package registry, its linears rounded to 4 bits and read back, Q4_1; the weights as they were published
            are ``HuggingFaceTB/SmolLM2-135M-Instruct``).
        dtype: of the frozen weights; ``auto`` is bfloat16 on GPU and TPU and float32 on CPU.
        matmul_dtype: what the factors of products by weights (linears, adapters, head) are rounded to while weights are
            float32; sums and all else, attention too, stay float32. null leaves them as they are, and so do narrower
            weights. On a CPU with bfloat16 instructions ``bfloat16`` is the faster one.
        attention: ``auto`` is cuDNN on GPU (16 bits), splash on TPU and XLA elsewhere.
        remat: recompute activations in the backward pass (less memory, more time); ``auto`` does so on GPU and TPU.
        quantize: ``int8`` stores the layers' linears in int8 with a scale an output channel (embedding, head and norms
            keep ``dtype``): less memory, less to read a decoded token, log-probabilities that drift a little
            (``python -m r2rec_jax.score --quantize int8`` prints how far). An adapter belongs to the form it was
            trained on; merging adds it to the full weights.
        item_tokens: an item's title and year becomes one token, added to a pretrained backbone's vocabulary as the mean
            of the tokens that spelled it: shorter prompts and answers, and the choice of an item is one decision. For
            catalogues that an embedding can hold; byte-level tokenizers only.
            The new rows have to be learned, so ``pretrain.adapt`` must be on (*extension*). ``--plan`` knows no items:
            ``--plan_items`` says how many.
        tiny: the shape used by ``source: tiny``, which has a setting of its own for this.
    """

    source: str = "smollm2-135m"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    matmul_dtype: Literal["bfloat16"] | None = None
    attention: Literal["auto", "xla", "cudnn", "splash"] = "auto"
    remat: Literal["auto", "on", "off"] = "auto"
    quantize: Literal["none", "int8"] = "none"
    item_tokens: bool = False
    tiny: TinyConfig = field(default_factory=TinyConfig)

    def __post_init__(self) -> None:
        check(bool(self.source.strip()), "backbone.source", "a path, a hub id, 'tiny' or 'smollm2-135m'", self.source)

    @property
    def has_item_tokens(self) -> bool:
        """Whether items are tokens, by the setting that belongs to ``source``."""
        return self.tiny.item_tokens if self.source == "tiny" else self.item_tokens


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the linear layers (*reconstructed*: r 16, alpha 32, all seven).

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / r.
        targets: which linears, by their short names.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down")

    def __post_init__(self) -> None:
        check(self.rank >= 1, "lora.rank", ">= 1", self.rank)
        check(self.alpha > 0, "lora.alpha", "> 0", self.alpha)
        known = ("q", "k", "v", "o", "gate", "up", "down")
        unknown = [t for t in self.targets if t not in known]
        check(bool(self.targets) and not unknown and len(set(self.targets)) == len(self.targets),
               "lora.targets", f"distinct names out of {known}", tuple(self.targets))
