"""Names as tokens of a tokenizer that exists already: rows to be added to a pretrained backbone's vocabulary.

A name becomes an added token of the tokenizers library, so that transformers reads the saved folder with the same ids.
It is taken only where no letter or digit touches it, the longest of several that fit, before anything else is split.
Unlike other added tokens it is no markup, and text from outside may hold it: it says what its letters say.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokenizers import AddedToken

from r2rec_jax.tokens.parts import TokenizerParts, parse_json


def add_words(parts: TokenizerParts, words: Sequence[str]) -> TokenizerParts:
    """The same tokenizer with these names as tokens behind all others, in their order.

    Names that are tokens already stay what they are, and names that the tokenizer's decoder would garble (``Amelie``
    with its accent and no space, in a byte-level tokenizer) stay several tokens.

    Args:
        parts: a tokenizer's data.
        words: names, such as "Heat (1995".
    """
    full = parse_json(parts.json)
    known = {*full.get_vocab(with_added_tokens=True), *parts.words}
    fresh = [word for word in dict.fromkeys(words) if word and word not in known]
    trial = parse_json(parts.json)
    trial.add_tokens([_token(word) for word in fresh])
    ids = trial.get_vocab(with_added_tokens=True)
    kept = [word for word in fresh if trial.decode([ids[word]], skip_special_tokens=False) == word]
    full.add_tokens([_token(word) for word in kept])
    return replace(parts, json=full.to_str(), words=(*parts.words, *kept))


def words_of(document: dict[str, Any], words: Sequence[str]) -> dict[str, int]:
    """Ids of the names in a parsed ``tokenizer.json``.

    Raises:
        ValueError: a name is no added token there.
    """
    added = {token["content"]: token["id"] for token in document["added_tokens"]}
    lost = [word for word in words if word not in added]
    if lost:
        raise ValueError(f"words of a tokenizer must be added tokens of its tokenizer.json; {len(lost)} are not, such "
                         f"as {json.dumps(lost[0], ensure_ascii=False)}")
    return {word: added[word] for word in words}


def _token(word: str) -> AddedToken:
    return AddedToken(word, single_word=True, normalized=False, special=False)
