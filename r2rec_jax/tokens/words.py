"""Names as tokens of a tokenizer that exists already: rows to be added to a pretrained backbone's vocabulary.

A name becomes an added token of the tokenizers library, so that transformers reads the saved folder with the same ids.
It is found before anything else is split, the longest that begins at a place, and taken only where it stands alone,
between other than letters, digits and underscores. Unlike other added tokens it is no markup, and text from outside may
hold it: it says what its letters say. A GGUF file cannot tell names from markup; read from one, names are markup.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as RustTokenizer

from r2rec_jax.tokens.parts import TokenizerParts, parse_json


def add_words(parts: TokenizerParts, words: Sequence[str]) -> TokenizerParts:
    """The same tokenizer with these names as tokens behind all others, in their order.

    Left as they are: names that are tokens already, of one character, that the decoder would garble (``Amélie``, with
    an accent and no space, in a byte-level tokenizer), or that a vocabulary of whole words (Llama 3's) would find
    inside other text as well (one word without a year).

    Args:
        parts: a tokenizer's data.
        words: names, such as "Heat (1995".

    Raises:
        ValueError: the tokenizer puts a space before every part of a text, and so behind every name; or its ids have
            gaps, into which new tokens would fall.
    """
    rust = parse_json(parts.json)
    document = json.loads(parts.json)
    if _prepends(document.get("normalizer")) or _prepends(document.get("pre_tokenizer")):
        raise ValueError("names cannot be tokens of a tokenizer that puts a space before every part of a text, as "
                         "Llama 2's does: there would be one behind every name; use one that is byte-level")
    known = rust.get_vocab(with_added_tokens=True)
    whole_words = bool(document["model"].get("ignore_merges"))
    kept = [word for word in dict.fromkeys(words) if len(word) > 1 and word not in known
            and _decoded(rust, word) == word and not (whole_words and _is_one_piece(rust, word))]
    rust.add_tokens([AddedToken(word, single_word=True, normalized=False, special=False) for word in kept])
    ids = rust.get_vocab(with_added_tokens=True)
    if kept and min(ids[word] for word in kept) <= max(known.values()):
        raise ValueError(f"a tokenizer must have no gaps among its ids to take names as tokens; this one has "
                         f"{len(known)} tokens up to {max(known.values())}")
    return replace(parts, json=rust.to_str(), words=(*parts.words, *kept))


def words_of(document: dict[str, Any], parts: TokenizerParts, markup: Collection[str]) -> dict[str, int]:
    """Ids of a tokenizer's names.

    Args:
        document: its ``tokenizer.json``, parsed.
        parts: its data.
        markup: what can be no name, beside special tokens.

    Raises:
        ValueError: a name is no added token, or it is markup: text from outside may hold names.
    """
    added = {token["content"]: token for token in document["added_tokens"]}
    reserved = {*parts.special_tokens().values(), *markup}
    wrong = [word for word in parts.words if word not in added or added[word]["special"] or word in reserved]
    if wrong:
        raise ValueError(f"words of a tokenizer must be added tokens of its tokenizer.json and no markup; {len(wrong)} "
                         f"are not so, such as {json.dumps(wrong[0], ensure_ascii=False)}")
    return {word: added[word]["id"] for word in parts.words}


def _decoded(rust: RustTokenizer, word: str) -> str:
    return word if rust.decoder is None else rust.decoder.decode([word])


def _is_one_piece(rust: RustTokenizer, word: str) -> bool:
    return rust.pre_tokenizer is None or len(rust.pre_tokenizer.pre_tokenize_str(word)) == 1


def _prepends(part: Any) -> bool:
    """Whether a component, or one inside it, puts a space before every part of a text."""
    if isinstance(part, list):
        return any(map(_prepends, part))
    if not isinstance(part, dict):
        return False
    return (part.get("type") == "Prepend" or part.get("prepend_scheme") == "always"
            or bool(part.get("add_prefix_space")) or any(map(_prepends, part.values())))
