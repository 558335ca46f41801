"""The ``tiny`` backbone's tokenizer: byte-level BPE trained on the prompts, with special tokens of its own.

Words split so that a candidate's number is the same token wherever it stands: digits go in pairs (1..99 can be one
token, a year is two) and never take the space before them; punctuation takes the space before a digit instead, so an
answer ``7, 3, 12`` is five tokens and the choice of a candidate is one decision.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from r2rec_jax.tokens.gguf_metadata import byte_level_document, split_by
from r2rec_jax.tokens.parts import TokenizerParts
from r2rec_jax.tokens.sentencepiece_model import bos_processor
from r2rec_jax.tokens.tokenizer import MARKUP, Tokenizer

PAD, BOS, END, USER, ASSISTANT = "<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BOS, END, USER, ASSISTANT)

WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+(?: (?=\p{N}))?|\s+(?!\S)|\s+"

TEMPLATE = """\
{{ '<|bos|>' }}{% for message in messages %}\
{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}\
{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|end|>' }}\
{% else %}{{ message['content'] }}{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path) -> Tokenizer:
    """Train on texts, save as an HF folder, and return the tokenizer.

    Deterministic: the same texts in the same order give the same file. Tags and special tokens inside the texts are
    left out of the training, since they are tokens already.

    Args:
        texts: prompts and completions.
        vocab_size: the largest vocabulary, special tokens included; few texts give a smaller one.
        folder: where the tokenizer is saved.

    Raises:
        ValueError: when vocab_size has no room for 256 bytes and the special tokens.
    """
    least = 256 + len(SPECIAL) + len(MARKUP)
    if vocab_size < least:
        raise ValueError(f"backbone.tiny.vocab_size must be >= {least} (256 bytes and the special tokens); "
                         f"got {vocab_size}")
    tags = re.compile("|".join(map(re.escape, (*SPECIAL, *MARKUP))))
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = RustTokenizer.from_str(json.dumps(_document({}, []))).pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKUP), show_progress=False,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    rust.train_from_iterator((part for text in texts for part in tags.split(text) if part), trainer)
    trained = json.loads(rust.to_str())["model"]
    tokenizer = Tokenizer(_parts(trained["vocab"], trained["merges"]))
    tokenizer.save(folder)
    return tokenizer


def _parts(vocab: dict[str, int], merges: list[list[str]]) -> TokenizerParts:
    document = RustTokenizer.from_str(json.dumps(_document(vocab, merges)))
    document.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    document.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in MARKUP])
    full = json.loads(document.to_str())
    full["post_processor"] = bos_processor(BOS, vocab[BOS])
    return TokenizerParts(json.dumps(full), TEMPLATE, BOS, END, PAD, None)


def _document(vocab: dict[str, int], merges: list[list[str]]) -> dict:
    return byte_level_document(vocab, merges, [], split_by(WORDS), ignore_merges=False)
