"""One tokenizer for training and sampling, strict about who may write special tokens.

Three ways in: :meth:`Tokenizer.encode` for untrusted text (of the added tokens only names),
:meth:`Tokenizer.encode_completion` for our own markup (only the think and answer tags may be single tokens), and
:meth:`Tokenizer.encode_document` for a text as transformers would read it. :meth:`Tokenizer.chat` puts untrusted text
into the chat template. The end token is found from the template, never from the pad token, which may be the same id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from r2rec_jax.tokens import chat as chats
from r2rec_jax.tokens.parts import TokenizerParts, build, load_parts, write_folder
from r2rec_jax.tokens.untrusted import text_decoder, untrusted_encoders
from r2rec_jax.tokens.words import add_words, words_of

MARKUP = ("<think>", "</think>", "<answer>", "</answer>")
"""Tags of our completions; a vocabulary may hold them as tokens of their own."""

_SURROGATES = re.compile("[\ud800-\udfff]")

_PROBE = "Heat (1995) is good.\n7, 3, 12"
"""What every tokenizer must give back: transformers 5 before 5.24 loads some byte-level ones without their spaces."""

_Item = int | str | None
"""A part of a prompt: a token, text to encode, or (None) the user's place."""


@dataclass(frozen=True)
class ChatPrompt:
    r"""A prompt ready for the model.

    Attributes:
        ids: token ids, generation prompt included.
        opening: the ``<think>`` (with the white space after it) that the template itself opened at the end, or "".
    """

    ids: tuple[int, ...]
    opening: str = ""

    @property
    def opened_think(self) -> bool:
        """Whether the completion goes on inside a ``<think>`` that the prompt opened."""
        return bool(self.opening)


class Tokenizer:
    """A byte-level or byte-fallback BPE tokenizer with a chat template.

    Attributes:
        end_id: the token that is trained to end a completion: what the chat template puts after an assistant's
            message, else the end-of-sequence token.
        end_ids: tokens that end a completion when sampled: ``end_id`` and the end-of-sequence token.
        pad_id: fills padding; nothing is ever inferred from it, and it may equal ``end_id``. A backbone may have no row
            for it (:meth:`pad_within`).
        bos_id: the beginning-of-sequence token, or None.
        vocab_size: one more than the largest id.
    """

    def __init__(self, parts: TokenizerParts) -> None:
        """Build from parts; ValueError where they lack an end token, cannot encode every byte or lose text."""
        self._full, parts = build(parts)
        document = json.loads(parts.json)
        special = parts.special_tokens()
        words = words_of(document, parts, MARKUP)
        added = {token["content"]: token["id"] for token in document["added_tokens"] if token["content"] not in words}
        for name, content in special.items():
            index = self._full.token_to_id(content)
            if index is None:
                raise ValueError(f"{name} must be in the vocabulary; got {content!r}")
            added[content] = index
        self._added = added
        self._tokens = _matcher([token for token in document["added_tokens"] if token["content"] in added], added)
        self._markup = _matcher([], {tag: added[tag] for tag in MARKUP if tag in added})
        self._plain = untrusted_encoders(document, set(added), words)
        self._decoder = text_decoder(document)
        adds_bos = parts.bos is not None and self._full.encode("").ids[:1] == [added[parts.bos]]
        self._template = parts.chat_template or (chats.BOS if adds_bos else "") + chats.PLAIN_TEMPLATE
        self._parts = replace(parts, chat_template=self._template)
        self._prompt, self._opening = self._prepare()

        self.bos_id: int | None = None if parts.bos is None else added[parts.bos]
        self.end_id: int = self._find_end()
        eos = () if parts.eos is None else (added[parts.eos],)
        self.end_ids: tuple[int, ...] = tuple(dict.fromkeys((self.end_id, *eos)))
        self.pad_id: int = self.end_id if parts.pad is None else added[parts.pad]
        self.vocab_size: int = max(self._full.get_vocab(with_added_tokens=True).values()) + 1
        self._hidden = {*self.end_ids, self.pad_id}
        back = self.decode(self.encode(_PROBE))
        if back != _PROBE:
            raise ValueError(f"a tokenizer must give back what it encodes; {_PROBE!r} comes back as {back!r}; upgrade "
                             "transformers, or give the checkpoint's own tokenizer.json alone")

    @classmethod
    def load(cls, source: str | Path) -> Tokenizer:
        """From an HF folder, a sentencepiece ``.model`` file, a ``.gguf`` file or a hub id.

        Raises:
            ValueError: when there is no tokenizer, or none that we can use, in one line.
        """
        if str(source).lower().endswith(".gguf"):
            return cls.from_gguf(source)
        return cls(load_parts(source))

    @classmethod
    def from_gguf(cls, path: str | Path) -> Tokenizer:
        """From a GGUF file's metadata; its weights are not read.

        Raises:
            ValueError: when the file is damaged or its tokenizer is of an unknown kind.
        """
        from r2rec_jax.tokens.gguf_metadata import read_gguf_parts

        return cls(read_gguf_parts(Path(path)))

    def encode(self, text: str) -> list[int]:
        """Ids of untrusted text in the middle of a conversation: no special token can come out, and no added one but
        names.

        ``decode(encode(text)) == text``, with three exceptions: a lone surrogate, which is no Unicode text, becomes
        U+FFFD; a sentencepiece tokenizer has one symbol for the space and U+2581, and gives the space back; and bytes
        that a vocabulary lacks (SmolLM2's has no control character 22) are left out, as transformers does.
        """
        return self._plain.inside.encode(_clean(text), add_special_tokens=False).ids

    def encode_completion(self, text: str) -> list[int]:
        """Ids of our own markup, end token not included: think and answer tags become their tokens where they exist.

        Everything else is encoded as untrusted text, so a completion cannot end itself or open a turn.
        """
        return self._encode_items(self._split(_clean(text), self._markup), goes_on=True)

    @cached_property
    def document_start(self) -> tuple[int, ...]:
        """What stands before a document: the begin token where the tokenizer puts one there, else nothing.

        SmolLM2-135M-Instruct names ``<|im_start|>``, which opens turns, as its begin token, and puts nothing there.
        """
        opening = self.encode_document("")[:1]
        return tuple(opening) if opening == [self.bos_id] else ()

    def encode_document(self, text: str) -> list[int]:
        """Ids of a whole text as transformers gives them: special tokens recognised, beginning token added."""
        return self._full.encode(_clean(text)).ids

    def chat(self, user_text: str) -> ChatPrompt:
        """The chat template around the user's text, ending with the generation prompt.

        On text without special tokens the ids are those of transformers' ``apply_chat_template``. A system message is
        the template's own or none (SmolLM2's has one).

        Args:
            user_text: untrusted.
        """
        text = _clean(user_text)
        ids = self._encode_items([text if item is None else item for item in self._prompt])
        return ChatPrompt(tuple(ids), self._opening)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of a completion's ids; end and pad tokens are left out, every other token stays visible."""
        names = (self._full.id_to_token(int(index)) for index in ids if int(index) not in self._hidden)
        return self._decoder.decode([name for name in names if name is not None])

    def save(self, folder: str | Path) -> None:
        """Write an HF tokenizer folder, chat template included, that AutoTokenizer loads with the same ids."""
        write_folder(self._parts, Path(folder))

    def with_words(self, words: Sequence[str]) -> Tokenizer:
        """The same tokenizer with names as tokens behind all others (:func:`r2rec_jax.tokens.words.add_words`)."""
        return Tokenizer(add_words(self._parts, words))

    @property
    def words(self) -> tuple[str, ...]:
        """Names that are tokens; every other added token is markup."""
        return self._parts.words

    @property
    def fingerprint(self) -> str:
        """Sha256 over vocabulary, merges, special tokens and chat template, as 64 hexadecimal digits."""
        data = asdict(self._parts)
        if not self._parts.words:
            del data["words"]
        return sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()

    def token(self, index: int) -> str:
        """The vocabulary entry of an id; ValueError where there is none."""
        name = self._full.id_to_token(index)
        if name is None:
            raise ValueError(f"a token id must be in the vocabulary of {self.vocab_size}; got {index}")
        return name

    def pad_within(self, vocab_size: int) -> int:
        """What fills padding for a backbone: the pad token, or the end token where the pad token has no row.

        Llama 2 with ``[PAD]`` = 32000 added and its embedding not resized (32,000 rows), as peft adapters often come:
        ``pad_within(32000) == 2``, ``</s>``.

        Args:
            vocab_size: rows of the backbone's embedding.
        """
        return self.pad_id if self.pad_id < vocab_size else self.end_id

    def special_ids(self) -> frozenset[int]:
        """Ids of all special and added tokens but names: what untrusted text can never give."""
        return frozenset(self._added.values())

    def _prepare(self) -> tuple[list[_Item], str]:
        pieces = chats.template_pieces(self._template, self._parts.special_tokens(), (chats.USER,), generate=True)
        items: list[_Item] = []
        for text, is_place in pieces:
            if is_place:
                items.append(None)
            else:
                items.extend(self._split(text, self._tokens))
        return items, chats.opened_think(pieces)

    def _split(self, text: str, matcher: Matcher) -> list[int | str]:
        """Text as tokens that the matcher knows and the text between them."""
        items: list[int | str] = []
        start = 0
        for found in matcher.pattern.finditer(text) if matcher.pattern else ():
            content = found.group() if found.group() in matcher.ids else found.group().strip()
            items += [text[start : found.start()], matcher.ids[content]]
            start = found.end()
        return [*items, text[start:]]

    def _encode_items(self, items: Sequence[int | str], goes_on: bool = False) -> list[int]:
        """Encode tokens and texts; neighbouring texts are encoded together, as one text would be."""
        ids: list[int] = []
        run = ""
        for item in (*items, -1):
            if isinstance(item, str):
                run += item
                continue
            if run:
                encoder = self._plain.after_token if ids else self._plain.inside if goes_on else self._plain.first
                ids += encoder.encode(run, add_special_tokens=False).ids
                run = ""
            if item >= 0:
                ids.append(item)
        return ids

    def _find_end(self) -> int:
        """What the template puts after an answer, if it shows answers at all and ends them with a token; else eos."""
        try:
            after = chats.text_after_answer(self._template, self._parts.special_tokens())
        except ValueError:
            after = ""
        first = next((item for item in self._split(after, self._tokens) if item != ""), None)
        if isinstance(first, int):
            return first
        if self._parts.eos is None:
            raise ValueError("a tokenizer must have an end-of-sequence token, or a chat template that ends a turn with "
                             "a token; got neither; set eos_token in tokenizer_config.json")
        return self._added[self._parts.eos]


@dataclass(frozen=True)
class Matcher:
    """Finds tokens in text, the longest first where several begin at one place."""

    pattern: re.Pattern[str] | None
    ids: dict[str, int]


def _matcher(flags: list[dict], added: dict[str, int]) -> Matcher:
    if not added:
        return Matcher(None, {})
    by_content = {token["content"]: token for token in flags}

    def regex(content: str) -> str:
        token = by_content.get(content, {})
        left, right = (r"\s*" if token.get(side) else "" for side in ("lstrip", "rstrip"))
        return left + re.escape(content) + right

    return Matcher(re.compile("|".join(map(regex, sorted(added, key=len, reverse=True)))), added)


def _clean(text: str) -> str:
    return _SURROGATES.sub("\ufffd", text)
