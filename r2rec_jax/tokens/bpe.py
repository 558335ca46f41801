"""The ``tiny`` backbone's tokenizer: byte-level BPE trained on the prompts, with special tokens of its own.

Words split so that a candidate's number is the same token wherever it stands: digits go in pairs (1..99 can be one
token, a year is two) and never take the space before them; punctuation takes the space before a digit instead, so an
answer ``7, 3, 12`` is five tokens and the choice of a candidate is one decision. Names that are given as ``words`` are
one token each, so that the choice of an item is one decision too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

from tokenizers import AddedToken, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from r2rec_jax.tokens.gguf_metadata import byte_level_document, split_by
from r2rec_jax.tokens.parts import TokenizerParts
from r2rec_jax.tokens.sentencepiece_model import bos_processor
from r2rec_jax.tokens.tokenizer import MARKUP, Tokenizer

PAD, BOS, END, USER, ASSISTANT = "<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BOS, END, USER, ASSISTANT)

WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+(?: (?=NUMBER))?|\s+(?!\S)|\s+"

TEMPLATE = """\
{{ '<|bos|>' }}{% for message in messages %}\
{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}\
{% elif message['role'] == 'assistant' %}{{ '<|assistant|>' + message['content'] + '<|end|>' }}\
{% else %}{{ message['content'] }}{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | Path, *, words: Sequence[str] = ()
                    ) -> Tokenizer:
    """Train on texts, save as an HF folder, and return the tokenizer.

    Deterministic: the same texts in the same order give the same file. Tags and special tokens inside the texts are
    left out of the training, since they are tokens already.

    Args:
        texts: prompts and completions.
        vocab_size: the largest vocabulary, special tokens included, words not; few texts give a smaller one.
        folder: where the tokenizer is saved.
        words: names, such as "Heat (1995", that become a token of their own wherever they stand between other than
            letters and digits; the longest of several that fit is taken.

    Raises:
        ValueError: when vocab_size has no room for 256 bytes and the special tokens.
    """
    least = 256 + len(SPECIAL) + len(MARKUP)
    if vocab_size < least:
        raise ValueError(f"backbone.tiny.vocab_size must be >= {least} (256 bytes and the special tokens); "
                         f"got {vocab_size}")
    tags = re.compile("|".join(map(re.escape, (*SPECIAL, *MARKUP))))
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = RustTokenizer.from_str(json.dumps(_document({}, [], words))).pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKUP), show_progress=False,
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    rust.train_from_iterator((part for text in texts for part in tags.split(text) if part), trainer)
    trained = json.loads(rust.to_str())["model"]
    vocab = trained["vocab"]
    for word in words:
        vocab.setdefault(_as_bytes(rust, word), len(vocab))
    tokenizer = Tokenizer(_parts(vocab, trained["merges"], words))
    tokenizer.save(folder)
    return tokenizer


def _as_bytes(rust: RustTokenizer, word: str) -> str:
    """A word as the vocabulary spells it."""
    return "".join(piece for piece, _ in rust.pre_tokenizer.pre_tokenize_str(word))


def _parts(vocab: dict[str, int], merges: list[list[str]], words: Sequence[str]) -> TokenizerParts:
    document = RustTokenizer.from_str(json.dumps(_document(vocab, merges, words)))
    document.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    document.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in MARKUP])
    full = json.loads(document.to_str())
    full["post_processor"] = bos_processor(BOS, vocab[BOS])
    return TokenizerParts(json.dumps(full), TEMPLATE, BOS, END, PAD, None)


def _document(vocab: dict[str, int], merges: list[list[str]], words: Sequence[str]) -> dict:
    """A word of the vocabulary needs no merges (``ignore_merges``); without ``words`` that changes nothing."""
    return byte_level_document(vocab, merges, [], split_by(_pattern(words)), ignore_merges=bool(words))


def _pattern(words: Sequence[str]) -> str:
    """What splits a text: whole names first, then :data:`WORDS`. Punctuation takes the space before a name as it takes
    that before a digit, and a line break that follows it: lines of names are two tokens each."""
    if not words:
        return WORDS.replace("NUMBER", r"\p{N}")
    whole = rf"(?<![\p{{L}}\p{{N}}]){_any_of(sorted(set(words)))}(?![\p{{L}}\p{{N}}])"
    after = WORDS.replace("(?: (?=NUMBER))", rf"(?:\n| (?=\p{{N}}|{whole}))")
    return f"{whole}| (?={whole})|{after}"


def _any_of(words: Sequence[str], start: int = 0) -> str:
    """A regular expression for sorted words, the longest that fits first, branching at every character that two of them
    share, so that a place in a text is not compared with each word in turn."""
    branches = []
    for first, group in groupby((word for word in words if len(word) > start), key=lambda word: word[start]):
        mine = list(group)
        if len(mine) == 1:
            branches.append(_literal(mine[0][start:]))
        else:
            branches.append(_literal(first) + _any_of(mine, start + 1))
    ends_here = [""] if any(len(word) == start for word in words) else []
    return f"(?:{'|'.join([*branches, *ends_here])})"


def _literal(word: str) -> str:
    """A word as a regular expression that the tokenizers library reads (Oniguruma's syntax)."""
    return re.sub(r"[\\^$.|?*+()\[\]{}]", lambda found: "\\" + found.group(), word)
