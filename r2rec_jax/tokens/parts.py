"""What a tokenizer is made of, and its folder on disk.

Sources differ (an HF folder, a hub id, a sentencepiece model, GGUF metadata, our own training); all give
:class:`TokenizerParts`, and :class:`r2rec_jax.tokens.tokenizer.Tokenizer` is built from nothing else.

transformers is asked only where its classes decide something (a folder or hub id that names one). A folder written by
:func:`write_folder` is read directly, and a bare sentencepiece file goes through our own conversion (transformers 5.23
orders the merges of Llama 2's whitespace pieces by id instead of by score and forgets the beginning-of-sequence token).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RustTokenizer

from r2rec_jax.files import FETCH_AGAIN, read_json, write_text
from r2rec_jax.reasons import one_line

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
SENTENCEPIECE_FILE = "tokenizer.model"
ADDED_FILE = "added_tokens.json"

OWN_CLASS = "PreTrainedTokenizerFast"
"""The generic class: tokenizer.json is the whole truth. transformers 4 and 5 both know it."""

CLOCK = "strftime_now"
NO_CLOCK = "{%- set strftime_now = not_defined %}\n"
"""Put before a template that reads the clock (Llama 3.2's), so that others render it as we do: transformers defines the
clock, we do not (:mod:`r2rec_jax.tokens.chat`). The line break is the tag's own, which ``trim_blocks`` removes."""

_OWN_KEYS = {"tokenizer_class", "bos_token", "eos_token", "pad_token", "unk_token", "chat_template",
             "model_max_length", "clean_up_tokenization_spaces", "words"}


@dataclass(frozen=True)
class TokenizerParts:
    """A tokenizer's data.

    Attributes:
        json: a ``tokenizer.json`` as the tokenizers library writes it.
        chat_template: Jinja source, or None.
        bos, eos, pad, unk: contents of the special tokens, or None.
        words: added tokens that are names and no markup (:mod:`r2rec_jax.tokens.words`).
    """

    json: str
    chat_template: str | None = None
    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None
    words: tuple[str, ...] = ()

    def special_tokens(self) -> dict[str, str]:
        """The special tokens that exist, under the names that chat templates use."""
        named = {"bos_token": self.bos, "eos_token": self.eos, "pad_token": self.pad, "unk_token": self.unk}
        return {name: content for name, content in named.items() if content is not None}


def build(parts: TokenizerParts) -> tuple[RustTokenizer, TokenizerParts]:
    """The library's tokenizer without truncation and padding, and the parts as every source gives them: JSON in the
    library's order, and a chat template without the line that :func:`write_folder` puts before it."""
    rust = parse_json(parts.json)
    rust.no_truncation()
    rust.no_padding()
    template = None if parts.chat_template is None else parts.chat_template.removeprefix(NO_CLOCK)
    return rust, replace(parts, json=rust.to_str(), chat_template=template)


def parse_json(text: str) -> RustTokenizer:
    """A tokenizer of the tokenizers library; ValueError where the text is none."""
    try:
        return RustTokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{TOKENIZER_FILE} must be a file of the tokenizers library; got {one_line(error)}") from error


def load_parts(source: str | Path) -> TokenizerParts:
    """Parts of a local folder, a sentencepiece file or a hub id.

    Raises:
        ValueError: when nothing there is a tokenizer, in one line.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.suffix == ".model":
        return _load_sentencepiece(path, {})
    if not path.is_dir():
        if path.exists() or str(source).startswith(("/", ".", "~")):
            raise ValueError(f"a tokenizer must be a folder, a .model or .gguf file, or a hub id; got {source}")
        return _load_with_transformers(str(source))
    config = _read_object(path / CONFIG_FILE)
    if (path / TOKENIZER_FILE).is_file():
        generic = config.get("tokenizer_class") == OWN_CLASS and set(config) <= _OWN_KEYS
        return _read_own(path, config) if generic else _load_with_transformers(str(path))
    if (path / SENTENCEPIECE_FILE).is_file():
        return _load_sentencepiece(path / SENTENCEPIECE_FILE, config)
    raise ValueError(f"a tokenizer folder must hold {TOKENIZER_FILE} or {SENTENCEPIECE_FILE}; got {path} without "
                     "either; copy the backbone's tokenizer files there")


def write_folder(parts: TokenizerParts, folder: Path) -> None:
    """Write a folder that AutoTokenizer loads with the same ids, and whose chat template reads no clock."""
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = {"tokenizer_class": OWN_CLASS, "clean_up_tokenization_spaces": False,
                              "model_max_length": int(1e30), **parts.special_tokens()}
    if parts.words:
        config["words"] = list(parts.words)
    if parts.chat_template is not None:
        template = parts.chat_template.removeprefix(NO_CLOCK)
        config["chat_template"] = NO_CLOCK + template if CLOCK in template else template
    for name, value in ((TOKENIZER_FILE, json.loads(parts.json)), (CONFIG_FILE, config)):
        write_text(folder / name, json.dumps(value, indent=2, ensure_ascii=False))


def _read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is no file."""
    return read_json(path, FETCH_AGAIN) if path.is_file() else {}


def _read_own(folder: Path, config: dict[str, Any]) -> TokenizerParts:
    text = (folder / TOKENIZER_FILE).read_text(encoding="utf-8")
    special = _special(config)
    return TokenizerParts(text, _template(folder, config), special["bos"], special["eos"], special["pad"],
                          special["unk"], _words(folder, config))


def _words(source: str | Path, config: dict[str, Any]) -> tuple[str, ...]:
    words = config.get("words", [])
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"words in {CONFIG_FILE} must be a list of strings; got {type(words).__name__} in {source}")
    return tuple(words)


def _load_sentencepiece(path: Path, config: dict[str, Any]) -> TokenizerParts:
    from r2rec_jax.tokens.sentencepiece_model import read_sentencepiece, with_added_tokens

    parts = with_added_tokens(read_sentencepiece(path), _added_tokens(path.parent, config), path.parent)
    given: dict[str, Any] = {name: content for name, content in _special(config).items() if content is not None}
    return replace(parts, chat_template=_template(path.parent, config), **given)


def _added_tokens(folder: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """Tokens that transformers' slow tokenizers keep beside a sentencepiece model, as entries of ``added_tokens``.

    ``added_tokens_decoder`` has flags; a token that is only in the older ``added_tokens.json`` is taken as special.
    All are matched in the text as it stands (not ``normalized``), as those tokenizers do.
    """
    from r2rec_jax.tokens.sentencepiece_model import added_token

    flagged, named = config.get("added_tokens_decoder") or {}, _read_object(folder / ADDED_FILE)
    try:
        tokens = [added_token(int(index), token["content"], bool(token.get("special")))
                  | {flag: bool(token.get(flag)) for flag in ("single_word", "lstrip", "rstrip")}
                  for index, token in flagged.items()]
        seen = {(token["content"], token["id"]) for token in tokens}
        tokens += [added_token(int(index), content, special=True) for content, index in named.items()
                   if (content, int(index)) not in seen]
        if not all(isinstance(token["content"], str) and token["content"] for token in tokens):
            raise ValueError("a token without text")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"added_tokens_decoder in {CONFIG_FILE} must map ids to tokens with a content, and "
                         f"{ADDED_FILE} tokens to ids; got {type(error).__name__}: {one_line(error)} in "
                         f"{folder}") from error
    return tokens


def _special(config: dict[str, Any]) -> dict[str, str | None]:
    def content(value: Any) -> str | None:
        return value["content"] if isinstance(value, dict) else value

    return {name: content(config.get(f"{name}_token")) for name in ("bos", "eos", "pad", "unk")}


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    path = folder / TEMPLATE_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else _default_template(config.get("chat_template"))


def _default_template(template: Any) -> str | None:
    """One template of those a tokenizer may carry: the only one, or the one named ``default``."""
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        if "default" not in template:
            raise ValueError(f"a tokenizer with several chat templates must have one named 'default'; "
                             f"got {sorted(template)}")
        template = template["default"]
    return template


def _load_with_transformers(source: str) -> TokenizerParts:
    import transformers

    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # OSError, ValueError, ImportError, KeyError, and the tokenizers library's Exception
        raise ValueError(f"the tokenizer must be loadable by transformers' AutoTokenizer; got {source}: "
                         f"{one_line(error)}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, RustTokenizer):
        raise ValueError(f"the tokenizer must have a tokenizers backend; got {type(loaded).__name__} for {source}; "
                         f"save it with a {TOKENIZER_FILE}")
    return TokenizerParts(
        backend.to_str(), _default_template(loaded.chat_template),
        loaded.bos_token, loaded.eos_token, loaded.pad_token, loaded.unk_token, _words(source, loaded.init_kwargs),
    )
