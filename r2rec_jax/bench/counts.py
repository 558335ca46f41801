"""FLOPs and bytes that the work itself needs, whoever does it: the numerators of utilisation and roofline share.

Counted for SFT: the frozen linears forward and backward (no gradient of a frozen weight), the adapters forward,
backward and their gradients, causal attention (a token sees what came before it and itself), the head at trained
positions only. Not counted: norms, rotary, softmax, recomputation, padding, positions of the head that nobody trains
on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r2rec_jax.bench.inputs import Pair
from r2rec_jax.bench.presets import Decoding


@dataclass(frozen=True)
class Size:
    """Of a Llama, from its config.json.

    Attributes:
        linears: parameters of the linears of all layers.
        head: of the output head.
        edges: sum of in + out over the linears of all layers (an adapter of rank r has r times as many parameters).
        layers, heads, kv_heads, head_dim: shape of attention.
    """

    linears: int
    head: int
    edges: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> Size:
        """Read config.json."""
        d, f, n = hf["hidden_size"], hf["intermediate_size"], hf["num_attention_heads"]
        k, layers = hf.get("num_key_value_heads") or n, hf["num_hidden_layers"]
        h = hf.get("head_dim") or d // n
        shapes = ((d, n * h), (d, k * h), (d, k * h), (n * h, d), (d, f), (d, f), (f, d))
        return cls(linears=layers * sum(a * b for a, b in shapes), head=d * hf["vocab_size"],
                   edges=layers * sum(a + b for a, b in shapes), layers=layers, heads=n, kv_heads=k, head_dim=h)


def sft_flops(size: Size, pairs: Sequence[Pair], rank: int) -> float:
    """Useful FLOPs of one LoRA update; see the module.

    A product with a frozen weight costs 2 FLOPs a parameter and token forward and 2 backward, one with an adapter 6 in
    all. Attention: 2 products of 2 N H FLOPs a seen pair forward, and twice that backward.
    """
    tokens = sum(pair.length for pair in pairs)
    trained = sum(len(pair.completion) for pair in pairs)
    seen = sum(pair.length * (pair.length + 1) / 2 for pair in pairs)
    attention = 4 * size.layers * size.heads * size.head_dim * seen
    return tokens * (4 * size.linears + 6 * rank * size.edges) + 4 * size.head * trained + 3 * attention


def decode_bytes(size: Size, shape: Decoding, itemsize: int) -> float:
    """Bytes that T - 1 decoding steps must read: all weights once a step, each prompt's keys and values once for its
    group, and each row's own as they grow."""
    steps = shape.new_tokens - 1
    kv = 2 * size.layers * size.kv_heads * size.head_dim
    prefix = shape.prompts * shape.prompt_tokens * kv
    suffix = shape.rows * kv * shape.new_tokens / 2
    return steps * itemsize * (size.linears + size.head + prefix + suffix)
