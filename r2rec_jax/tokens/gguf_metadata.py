"""A tokenizer from a GGUF file's metadata: byte-level BPE ("gpt2" in GGUF's words) with tokens, types and merges.

GGUF stores no pre-tokenizer, only its name; the ones below are those of the models that carry the name.
"""

from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from r2rec_jax.reasons import one_line
from r2rec_jax.tokens.parts import TokenizerParts
from r2rec_jax.tokens.sentencepiece_model import added_token, bos_processor

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": list(parts)}


def split_by(regex: str) -> dict[str, Any]:
    """A pre-tokenizer: the regex's matches are the words, given as bytes."""
    return _sequence({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
                     _byte_level(use_regex=False))


_LLAMA3 = (split_by(LLAMA3_REGEX), True)

PRE_TOKENIZERS: dict[str, tuple[dict[str, Any], bool]] = {
    "gpt-2": (_byte_level(use_regex=True), False),
    "smollm": (_sequence({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)), False),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}
"""GGUF's name to the pre-tokenizer, and whether a word that is itself in the vocabulary skips the merges."""


def read_gguf_parts(path: Path) -> TokenizerParts:
    """Parts of the tokenizer inside a GGUF file.

    Raises:
        ValueError: when the file is no GGUF file, or its tokenizer is of an unknown kind.
    """
    fields = _read_fields(path)

    def field(name: str, default: Any = None) -> Any:
        return fields.get(f"tokenizer.ggml.{name}", default)

    model, pre = field("model"), field("pre", "default")
    if model != "gpt2":
        raise ValueError(f"a GGUF tokenizer must be a byte-level BPE (tokenizer.ggml.model 'gpt2'); got {model!r} in "
                         f"{path}; give the model's own tokenizer folder instead")
    if pre not in PRE_TOKENIZERS:
        raise ValueError(f"tokenizer.ggml.pre must be one of {', '.join(sorted(PRE_TOKENIZERS))}; got {pre!r} in "
                         f"{path}; give the model's own tokenizer folder instead")
    tokens, types, merges = field("tokens"), field("token_type"), field("merges")
    if not tokens or not merges or len(types or ()) != len(tokens):
        raise ValueError(f"a GGUF tokenizer must hold tokens, merges and one type a token; got {len(tokens or ())}, "
                         f"{len(merges or ())} and {len(types or ())} in {path}")
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ValueError(f"a GGUF tokenizer's tokens must differ; got {len(tokens) - len(vocab)} repeated in {path}")
    bos, eos, pad, unk = (_named(tokens, field(f"{key}_token_id")) for key in ("bos", "eos", "padding", "unknown"))
    added = [added_token(index, token, kind != _USER_DEFINED)
             for index, (token, kind) in enumerate(zip(tokens, types, strict=True))
             if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)]
    pre_tokenizer, ignore_merges = PRE_TOKENIZERS[pre]
    document = byte_level_document(vocab, [merge.split(" ") for merge in merges], added, pre_tokenizer, ignore_merges)
    if bos is not None and field("add_bos_token", pre in ("llama-bpe", "llama3", "llama-v3")):
        document["post_processor"] = bos_processor(bos, vocab[bos])
    return TokenizerParts(json.dumps(document), fields.get("tokenizer.chat_template"), bos, eos, pad, unk)


def byte_level_document(
    vocab: dict[str, int], merges: list[list[str]], added: list[dict[str, Any]], pre_tokenizer: dict[str, Any],
    ignore_merges: bool,
) -> dict[str, Any]:
    """A ``tokenizer.json`` of a byte-level BPE, without a post-processor."""
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": pre_tokenizer, "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges},
    }


def _named(tokens: list[str], index: int | None) -> str | None:
    return tokens[index] if index is not None and 0 <= index < len(tokens) else None


_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<b1", 10: "<u8", 11: "<i8",
            12: "<f8"}
_STRING, _ARRAY = 8, 9


def _read_fields(path: Path) -> dict[str, Any]:
    """The metadata as plain values (the gguf package's reader takes 30 times as long over a vocabulary)."""
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Cursor(data).metadata()
        except (ValueError, KeyError, struct.error) as error:
            raise ValueError(f"{path} must be a whole GGUF file of version 2 or 3; got {one_line(error)}") from error


class _Cursor:
    """Reads a GGUF header: magic, version, two counts, then key, type and value of each field."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def metadata(self) -> dict[str, Any]:
        magic, version, _, n_fields = struct.unpack_from("<4sIQQ", self.data)
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"magic {magic!r}, version {version}")
        self.at = 24
        return {self.string(): self.value(self.integer(4)) for _ in range(n_fields)}

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        if len(taken) < count:
            raise ValueError(f"an end after {len(self.data)} bytes, inside the metadata")
        self.at += count
        return taken

    def integer(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def string(self) -> str:
        return self.take(self.integer(8)).decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            kind, count = self.integer(4), self.integer(8)
            return self.scalars(kind, count) if kind in _SCALARS else [self.value(kind) for _ in range(count)]
        return self.scalars(kind, 1)[0]

    def scalars(self, kind: int, count: int) -> list[Any]:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).tolist()
