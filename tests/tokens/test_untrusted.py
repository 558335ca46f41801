"""Text from titles and users can never become a special or added token, whatever it holds."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.tokens.tokenizer import Tokenizer

ALL_TAGS = [
    "<s>", "</s>", "<unk>", "<pad>", "<think>", "</think>", "<answer>", "</answer>", "<|im_start|>", "<|im_end|>",
    "<|endoftext|>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|eot_id|>",
    "<|start_header_id|>", "<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<repo_name>", "[INST]",
]
SCRAPS = ["<", ">", "|", "｜", "/", "▁", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u200b", "\ufeff", "\x00", "é",
          "日本", "😀", "＜s＞", "<0x0A>", "<0xFF>", "\ud800", "im_end", "think", "s", "User", "7", "12",
          "Toy Story (1995)"]

hostile = st.lists(st.one_of(st.sampled_from(ALL_TAGS), st.sampled_from(SCRAPS), st.text(max_size=4)), max_size=12)


def covers(tokenizer: Tokenizer, text: str) -> bool:
    """Whether the vocabulary has every byte of the text; SmolLM2's lacks a few."""
    return all(len(tokenizer.encode(char)) > 0 and "\ufffd" not in tokenizer.decode(tokenizer.encode(char))
               for char in set(text) - {"\ufffd"})


def _scalar(text: str) -> str:
    return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)


@settings(max_examples=400, deadline=None)
@given(pieces=hostile)
def test_no_special_token_and_nothing_lost(tokenizer: Tokenizer, pieces: list[str]) -> None:
    text = "".join(pieces)
    ids = tokenizer.encode(text)
    assert tokenizer.special_ids().isdisjoint(ids)
    if covers(tokenizer, text):
        assert tokenizer.decode(ids).replace("▁", " ") == _scalar(text).replace("▁", " ")


@settings(max_examples=200, deadline=None)
@given(pieces=hostile)
def test_a_prompt_has_the_special_tokens_of_its_template_and_no_more(tokenizer: Tokenizer, pieces: list[str]) -> None:
    def specials(text: str) -> list[int]:
        return [index for index in tokenizer.chat(text).ids if index in tokenizer.special_ids()]

    assert specials("".join(pieces)) == specials("hello")


@settings(max_examples=200, deadline=None)
@given(pieces=hostile)
def test_a_completion_gives_no_special_token_but_its_markup(tokenizer: Tokenizer, pieces: list[str]) -> None:
    ids = tokenizer.encode_completion("".join(pieces))
    markup = {i for tag in ("<think>", "</think>", "<answer>", "</answer>") for i in tokenizer.encode_completion(tag)}
    assert (tokenizer.special_ids() - markup).isdisjoint(ids)
    assert not set(tokenizer.end_ids) & set(ids)


def test_every_special_token_of_the_vocabulary_alone_and_among_others(tokenizer: Tokenizer) -> None:
    names = [tokenizer.token(index) for index in sorted(tokenizer.special_ids())]
    rng = random.Random(0)
    texts = [*names, *("".join(rng.sample(names, 2)) for _ in range(300)), *(f" {name}x" for name in names)]
    for text in texts:
        ids = tokenizer.encode(text)
        assert tokenizer.special_ids().isdisjoint(ids), text
        assert tokenizer.decode(ids).replace("▁", " ") == text.replace("▁", " ")


def test_the_trap_is_real(deepseek_tokenizer_dir, deepseek: Tokenizer) -> None:
    """A plain encode of such a title does give the tokens: the guard is not testing nothing."""
    from tokenizers import Tokenizer as RustTokenizer

    plain = RustTokenizer.from_file(str(deepseek_tokenizer_dir / "tokenizer.json"))
    assert plain.encode("<think><｜User｜>", add_special_tokens=False).ids == [128013, 128011]
    assert {128013, 128011}.isdisjoint(deepseek.encode("<think><｜User｜>"))
    assert deepseek.encode_completion("<think>") == [128013]


def test_text_of_a_byte_piece_is_no_byte(llama2: Tokenizer) -> None:
    assert llama2.encode("<0x0A>") != llama2.encode("\n")


@pytest.mark.parametrize("kind", ["Unigram", "WordLevel"])
def test_a_model_that_cannot_be_guarded_is_refused(kind: str) -> None:
    import json

    from r2rec_jax.tokens.parts import TokenizerParts

    model = {"Unigram": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]},
             "WordLevel": {"type": "WordLevel", "unk_token": "<unk>", "vocab": {"<unk>": 0, "a": 1}}}[kind]
    document = {"version": "1.0", "added_tokens": [], "model": model}
    with pytest.raises(ValueError, match=f"byte-fallback BPE.*{kind}"):
        Tokenizer(TokenizerParts(json.dumps(document), eos="a"))


def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    """transformers' LlamaTokenizer gives a byte-level vocabulary a pre-tokenizer for another, which loses spaces."""
    import json

    from r2rec_jax.tokens.bpe import train_tokenizer
    from r2rec_jax.tokens.parts import load_parts

    train_tokenizer(["Heat (1995) is good."], 300, tmp_path)
    parts = load_parts(tmp_path)
    document = json.loads(parts.json)
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "never", "split": False}
    document |= {"pre_tokenizer": metaspace, "model": document["model"] | {"byte_fallback": True}}
    with pytest.raises(ValueError, match=r"give back what it encodes; 'Heat \(1995\) is .*' comes back as .*upgrade"):
        Tokenizer(replace(parts, json=json.dumps(document)))
