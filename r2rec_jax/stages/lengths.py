"""How long ranking prompts are, tokenizer by tokenizer: whether 2,048 or 4,096 tokens suffice, before any GPU hour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r2rec_jax.config import PromptConfig
from r2rec_jax.progress import bar
from r2rec_jax.prompts.ranking import render_ranking
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.rendering import make_view
from r2rec_jax.stages.workspace import SMOLLM2, load_tokenizer

if TYPE_CHECKING:
    from r2rec_jax.tokens.tokenizer import Tokenizer

LIMITS = (1024, 2048, 4096)
"""Prompt limits in tokens that the table gives a share for."""

SAMPLE = 500
"""Prompts that are measured, the first ones of the test queries and after them those of the other splits."""


@dataclass(frozen=True)
class PromptLengths:
    """Lengths of whole ranking prompts, chat template included, no chain dropped.

    Attributes:
        tokenizer: how the table names it.
        prompts: how many were measured.
        median, p95, longest: in tokens.
        within: limit in tokens -> share of the prompts that fit it.
    """

    tokenizer: str
    prompts: int
    median: int
    p95: int
    longest: int
    within: Mapping[int, float]


def open_tokenizers(sources: Sequence[str], cache_dir: str) -> dict[str, Tokenizer]:
    """Name -> tokenizer of each source.

    Args:
        sources: folders, files (``tokenizer.model``, ``.gguf``), hub ids, or ``smollm2-135m``.
        cache_dir: ``data.cache_dir``.

    Raises:
        ValueError: a source holds no tokenizer.
    """
    opened = {}
    for source in sources:
        path = Path(source)
        name = path.parent.name if path.suffix == ".model" else path.name
        opened[name if name not in opened else source] = load_tokenizer(source, cache_dir)
    return opened


def tokenizers_at_hand(cache_dir: str) -> list[str]:
    """Sources that need no download: the quickstart's model, once it is cached."""
    found = sorted(Path(cache_dir).expanduser().rglob("SmolLM2-135M-Instruct.Q4_1.gguf"))
    return [SMOLLM2] if found else []


def prompt_lengths(prepared: Prepared, config: PromptConfig, tokenizers: Mapping[str, Tokenizer]
                   ) -> list[PromptLengths]:
    """Measure the first :data:`SAMPLE` prompts of a prepared folder.

    Args:
        prepared: the data.
        config: what a prompt shows; ``max_tokens`` is not applied.
        tokenizers: name -> tokenizer.
    """
    queries = [query for split in ("test", "validation", "sft", "rl") for query in prepared.queries[split]][:SAMPLE]
    texts = [render_ranking(make_view(prepared, query, config), config).text for query in queries]
    measured = []
    for name, tokenizer in tokenizers.items():
        with bar(f"prompt lengths {name}", len(texts), "prompts") as progress:
            lengths = []
            for text in texts:
                lengths.append(len(tokenizer.chat(text).ids))
                progress.advance()
        counts = np.asarray(lengths)
        measured.append(PromptLengths(
            name, len(texts), int(np.median(counts)), int(np.quantile(counts, 0.95)), int(counts.max()),
            {limit: float((counts <= limit).mean()) for limit in LIMITS}))
    return measured
