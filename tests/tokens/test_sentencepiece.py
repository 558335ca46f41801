"""Our reading of a sentencepiece model gives the library's own ids."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def theirs(llama2_tokenizer_file: Path):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_file=str(llama2_tokenizer_file))


@settings(max_examples=400, deadline=None)
@given(text=st.text(st.one_of(st.sampled_from("abct  \n1995(),.é日▁<>"), st.characters(codec="utf-8")), max_size=40))
def test_same_ids_as_sentencepiece(llama2: Tokenizer, theirs, text: str) -> None:
    if any(token in text for token in ("<s>", "</s>", "<unk>")):
        return
    assert llama2.encode_document(text) == [1, *theirs.encode(text)]


@pytest.mark.parametrize("text", ["  two  spaces ", " " * 40 + "x" + " " * 7, "Toy Story (1995)\n\n\nHeat", ""])
def test_runs_of_spaces(llama2: Tokenizer, theirs, text: str) -> None:
    """Whitespace pieces have the lowest score: they merge last, unlike their early ids suggest."""
    assert llama2.encode_document(text) == [1, *theirs.encode(text)]


def test_known_ids(llama2: Tokenizer) -> None:
    assert llama2.encode_document("Hello world") == [1, 15043, 3186]
    assert llama2.encode(" Hello") == [15043] and llama2.encode("Hello") == [10994]
    assert llama2.vocab_size == 32000 and llama2.bos_id == 1


def test_prompt_begins_as_the_whole_text_would(llama2: Tokenizer, theirs) -> None:
    assert list(llama2.chat("Hello").ids) == [1, *theirs.encode("### User\nHello\n\n### Assistant\n")]


CHATML = {"<|im_start|>": 32000, "<|im_end|>": 32001}
TURN = "<|im_start|>user\nHeat (1995) is it<|im_end|>\n<|im_start|>assistant\n"
TEMPLATE = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


def _slow_folder(model: Path, folder: Path, named: dict | None = None, flagged: dict | None = None, **config) -> Path:
    """As transformers' slow LlamaTokenizer saves itself: no tokenizer.json, added tokens in one file or the other."""
    shutil.copyfile(model, folder / "tokenizer.model")
    if named is not None:
        (folder / "added_tokens.json").write_text(json.dumps(named))
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
              **config, **({} if flagged is None else {"added_tokens_decoder": flagged})}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _flags(content: str, special: bool = True, **flags: bool) -> dict:
    return {"content": content, "special": special, "lstrip": False, "rstrip": False, "normalized": False,
            "single_word": False, **flags}


def _added(tokenizer: Tokenizer, folder: Path) -> dict[str, dict]:
    tokenizer.save(folder)
    return {t["content"]: t for t in json.loads((folder / "tokenizer.json").read_text())["added_tokens"]}


@pytest.mark.parametrize("flagged", [False, True])
def test_added_tokens_of_a_slow_tokenizer(llama2_tokenizer_file: Path, tmp_path: Path, flagged: bool) -> None:
    """The ids are those of transformers, which puts no begin token before a text here.

    ``legacy``: a space goes before every part of a text, as in Llama 2's own tokenizer.json.
    """
    import transformers

    decoder = {str(i): _flags(content, normalized=True) for content, i in CHATML.items()} if flagged else None
    folder = _slow_folder(llama2_tokenizer_file, tmp_path, None if flagged else CHATML, decoder, eos_token="<|im_end|>",
                          chat_template=TEMPLATE, legacy=True)
    ours, auto = Tokenizer.load(folder), transformers.LlamaTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(auto) == 32002
    assert ours.encode_document(TURN) == [1, *auto(TURN, add_special_tokens=False).input_ids]
    assert ours.encode_document("a<|im_start|>b")[2] == 32000
    assert ours.chat("Heat (1995) is it").ids == tuple(ours.encode_document(TURN)[1:])
    assert ours.end_ids == (32001,) and {32000, 32001} <= ours.special_ids()
    assert ours.decode(ours.encode(TURN)) == TURN and max(ours.encode(TURN)) < 32000
    again = ours.save(tmp_path / "again") or Tokenizer.load(tmp_path / "again")
    assert again.fingerprint == ours.fingerprint


def test_added_tokens_have_the_flags_they_are_given(
    llama2: Tokenizer, llama2_tokenizer_file: Path, tmp_path: Path
) -> None:
    """Those of added_tokens_decoder go before the older file, which has none; the model's own tokens change nothing."""
    own = {str(i): _flags(content) for i, content in enumerate(("<unk>", "<s>", "</s>"))}
    assert Tokenizer.load(_slow_folder(llama2_tokenizer_file, tmp_path, {"</s>": 2}, own)).fingerprint == (
        llama2.fingerprint)
    folder = _slow_folder(llama2_tokenizer_file, tmp_path, {"<tool>": 32000, "[PAD]": 32001},
                          own | {"32000": _flags("<tool>", special=False, rstrip=True)}, pad_token="[PAD]")
    tokenizer = Tokenizer.load(folder)
    added = _added(tokenizer, tmp_path / "out")
    assert (added["<tool>"]["special"], added["<tool>"]["rstrip"], added["<tool>"]["id"]) == (False, True, 32000)
    assert (added["[PAD]"]["special"], added["[PAD]"]["id"], tokenizer.pad_id) == (True, 32001, 32001)


@pytest.mark.parametrize(("named", "flagged", "message"), [
    ({"<a>": 32001}, None, "go on where the sentencepiece model ends, without gaps: from 32000; got .32001"),
    ({"<a>": 32000, "<b>": 32002}, None, "without gaps"),
    ({"<a>": -1}, None, "without gaps: from 32000; got .-1"),
    ({"<a>": 5}, None, "'<a>' = 5 beside '<0x02>' = 5"),
    ({"</s>": 32000}, None, "'</s>' = 32000 beside '</s>' = 2"),
    ({"<a>": 32001}, {"32000": _flags("<a>")}, "'<a>' = 32001 beside '<a>' = 32000"),
    ({"<a>": 32000}, {"32000": _flags("<b>")}, "'<a>' = 32000 beside '<b>' = 32000"),
    ({"<a>": "x"}, None, "tokens to ids; got ValueError"),
    ({"<a>": None}, None, "tokens to ids; got TypeError"),
    (None, {"32000": {}}, "tokens with a content"),
    (None, ["<a>"], "tokens with a content"),
])
def test_added_tokens_that_fit_no_embedding(
    llama2_tokenizer_file: Path, tmp_path: Path, named, flagged, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.load(_slow_folder(llama2_tokenizer_file, tmp_path, named, flagged))
    assert "\n" not in str(caught.value)


def test_padding_without_a_row_is_the_end_token(
    llama2: Tokenizer, llama2_tokenizer_file: Path, tmp_path: Path
) -> None:
    """An embedding that was not resized for an added [PAD], common with peft."""
    added = Tokenizer.load(_slow_folder(llama2_tokenizer_file, tmp_path, {"[PAD]": 32000}, pad_token="[PAD]"))
    assert added.pad_id == 32000 and added.end_id == 2
    assert (added.pad_within(32000), added.pad_within(32001), added.pad_within(32064)) == (2, 32000, 32000)
    assert llama2.pad_within(32000) == llama2.pad_id
