"""The real SmolLM2's GGUF tokenizer against transformers' own reading of the file (which needs torch)."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2rec_jax.tokens.tokenizer import Tokenizer

pytest.importorskip("torch")


@pytest.mark.slow
def test_same_ids_as_transformers(smollm2_gguf: Path) -> None:
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    ours = Tokenizer.from_gguf(smollm2_gguf)
    for text in ("Hello world", "Toy Story, Heat and Fargo\n\nliked by many", "Amélie, 日本 😀  spaces  ", "it's\tso"):
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids, text
