"""A sentencepiece BPE model as a tokenizer of the tokenizers library (Llama 2's ``tokenizer.model``).

Sentencepiece merges, at each step, the adjacent pair whose joined piece has the highest score; the merges are therefore
ranked by the score of the piece they make. Spaces become U+2581, one is put before the text, and bytes without a piece
fall back to byte pieces. The result has the form of the ``tokenizer.json`` that Llama 2 is published with.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from r2rec_jax.reasons import one_line
from r2rec_jax.tokens.parts import TokenizerParts

SPACE = "\u2581"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6


def read_sentencepiece(path: Path) -> TokenizerParts:
    """Parts of a sentencepiece file.

    Raises:
        ValueError: when the file is no BPE model with byte fallback and without text normalisation.
    """
    model = _parse(path)
    if model.trainer_spec.model_type != 2 or not model.trainer_spec.byte_fallback:
        raise ValueError(f"a sentencepiece tokenizer must be a BPE model with byte fallback; got {path}, which is not; "
                         "use a folder with a tokenizer.json")
    if model.normalizer_spec.precompiled_charsmap or model.normalizer_spec.remove_extra_whitespaces:
        raise ValueError(f"a sentencepiece tokenizer must not normalise its text; got {path}, which does "
                         f"({model.normalizer_spec.name}); use a folder with a tokenizer.json")
    pieces = [(piece.piece, piece.score, piece.type) for piece in model.pieces]
    vocab = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    added = [(index, piece, kind) for index, (piece, _, kind) in enumerate(pieces)
             if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)]

    def named(index: int) -> str | None:
        return pieces[index][0] if 0 <= index < len(pieces) else None

    spec = model.trainer_spec
    bos, unk = named(spec.bos_id), named(spec.unk_id)
    document = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [added_token(index, piece, kind != _USER_DEFINED) for index, piece, kind in added],
        "normalizer": {"type": "Sequence", "normalizers": [
            *([{"type": "Prepend", "prepend": SPACE}] if model.normalizer_spec.add_dummy_prefix else []),
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        ]},
        "pre_tokenizer": None,
        "post_processor": None if bos is None else bos_processor(bos, vocab[bos]),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
              if model.normalizer_spec.add_dummy_prefix else []),
        ]},
        "model": {"type": "BPE", "dropout": None, "unk_token": unk, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": vocab, "merges": _merges(pieces, vocab)},
    }
    return TokenizerParts(json.dumps(document), None, bos, named(spec.eos_id), named(spec.pad_id), unk)


def with_added_tokens(parts: TokenizerParts, tokens: Sequence[dict[str, Any]], source: Path) -> TokenizerParts:
    """The same tokenizer with more added tokens, at the ids they are given.

    Example: a ChatML fine-tune of Llama 2 (32,000 pieces) has ``<|im_start|>`` = 32000 and ``<|im_end|>`` = 32001.

    Args:
        parts: of :func:`read_sentencepiece`.
        tokens: entries of ``added_tokens``; one that the model has already, at the same id, takes these flags.
        source: where they are from, for messages.

    Raises:
        ValueError: two tokens have one id or one token two, or the new ids do not go on where the model's pieces end.
    """
    if not tokens:
        return parts
    document = json.loads(parts.json)
    ids: dict[str, int] = dict(document["model"]["vocab"])
    names = {index: piece for piece, index in ids.items()}
    pieces, size = set(names), len(ids)
    for token in tokens:
        content, index = token["content"], token["id"]
        if names.setdefault(index, content) != content or ids.setdefault(content, index) != index:
            other = f"{names[index]!r} = {index}" if names[index] != content else f"{content!r} = {ids[content]}"
            raise ValueError(f"an added token must have one id, which no other token has; got {content!r} = {index} "
                             f"beside {other} in {source}")
    new = sorted(set(names) - pieces)
    if new != list(range(size, size + len(new))):
        raise ValueError(f"ids of added tokens must go on where the sentencepiece model ends, without gaps: from "
                         f"{size}; got {new[:8]} in {source}")
    added = {token["id"]: token for token in (*document["added_tokens"], *tokens)}
    document["added_tokens"] = [added[index] for index in sorted(added)]
    return replace(parts, json=json.dumps(document))


def added_token(index: int, content: str, special: bool) -> dict[str, Any]:
    """An entry of ``added_tokens`` that matches its content exactly, anywhere."""
    return {"id": index, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": special}


def bos_processor(content: str, index: int) -> dict[str, Any]:
    """A post-processor that puts the beginning-of-sequence token before every text."""
    def text(name: str, kind: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": content, "type_id": kind}}, {"Sequence": {"id": name, "type_id": kind}}]

    return {"type": "TemplateProcessing", "single": text("A", 0), "pair": text("A", 0) + text("B", 1),
            "special_tokens": {content: {"id": content, "ids": [index], "tokens": [content]}}}


def _parse(path: Path) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    model: Any = getattr(sentencepiece_model_pb2, "ModelProto")()  # noqa: B009 (made at import time, unseen by pyright)
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError
        raise ValueError(f"{path} must be a sentencepiece model; got {one_line(error)}") from error
    if not model.pieces:
        raise ValueError(f"{path} must be a sentencepiece model; got one without pieces")
    return model


def _merges(pieces: list[tuple[str, float, int]], vocab: dict[str, int]) -> list[tuple[str, str]]:
    usable = {piece for piece, _, kind in pieces if kind == _NORMAL}
    ranked: list[tuple[float, int, int, str, str]] = []
    for piece, score, kind in pieces:
        if kind != _NORMAL:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in usable and right in usable:
                ranked.append((-score, vocab[piece], cut, left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]
