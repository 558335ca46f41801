"""Names as added tokens of every kind of tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from transformers import AutoTokenizer

from r2rec_jax.tokens.tokenizer import Tokenizer
from tests.tokens.hostile import CONTROLS, MARKUP, NUMBERS

HOSTILE = (*MARKUP, *NUMBERS, *CONTROLS)
NAMES = ["Heat (1995", "Star Wars", "Star Wars (1977", "Amélie (2001", "七人の侍 (1954"]


@pytest.fixture(scope="module", params=["tiny", "smollm2", "deepseek"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def named(tokenizer: Tokenizer) -> Tokenizer:
    return tokenizer.with_words(NAMES)


def count(tokenizer: Tokenizer, text: str) -> int:
    return sum(index >= tokenizer.vocab_size - len(NAMES) for index in tokenizer.encode(text))


def test_names_are_tokens_behind_all_others(tokenizer: Tokenizer, named: Tokenizer) -> None:
    assert named.words == tuple(NAMES) and named.vocab_size == tokenizer.vocab_size + len(NAMES)
    ids = [named.encode(name)[-1] for name in NAMES]
    assert ids == list(range(tokenizer.vocab_size, named.vocab_size))
    for text in ("- Heat (1995): 5\n", "1. Heat (1995)\n2. Amélie (2001)\n", "<answer>\nStar Wars (1977)\n</answer>"):
        assert named.decode(named.encode(text)) == named.decode(named.encode_completion(text)) == text
        assert ids[0] in named.encode(text) or "Heat" not in text


def test_a_name_stands_alone_and_the_longest_is_taken(named: Tokenizer) -> None:
    assert count(named, "Heat (1995") == 1
    assert count(named, "Heat (19955") == count(named, "xHeat (1995") == count(named, "Heat (1996") == 0
    assert named.token(named.encode("x Star Wars (1977)")[-2]) == "Star Wars (1977"
    assert count(named, "Star Wars (1977)") == count(named, "Star Wars (1978)") == 1


def test_text_without_names_is_encoded_as_before(tokenizer: Tokenizer, named: Tokenizer) -> None:
    for text in ("User 12 gave Toy Story (1995) 5 of 5.\n", *HOSTILE):
        assert named.encode(text) == tokenizer.encode(text)
        assert named.encode_completion(text) == tokenizer.encode_completion(text)
        assert named.chat(text).ids == tokenizer.chat(text).ids


def test_names_open_no_way_to_markup(named: Tokenizer) -> None:
    markup = named.special_ids()
    assert markup and not markup & {named.vocab_size - 1 - i for i in range(len(NAMES))}
    for text in HOSTILE:
        assert not markup & set(named.encode(f"Heat (1995) {text} Star Wars"))


def test_a_saved_folder_is_read_with_the_same_ids_here_and_by_transformers(named: Tokenizer, tmp_path: Path) -> None:
    named.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    text = "1. Heat (1995)\n2. Star Wars (1977)"
    assert again.encode(text) == named.encode(text) and again.words == named.words
    assert again.fingerprint == named.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text) == named.encode_document(text)
    assert theirs.decode(named.encode(text)) == text


def test_names_that_are_tokens_or_cannot_be_decoded_add_nothing(smollm2: Tokenizer) -> None:
    assert smollm2.with_words(["the", "<|im_end|>", "", "Amélie"]).vocab_size == smollm2.vocab_size
    assert smollm2.with_words(["Heat", "Heat"]).vocab_size == smollm2.with_words(["Heat"]).vocab_size
    once, twice = smollm2.with_words(NAMES), smollm2.with_words(NAMES[:2]).with_words(NAMES)
    assert once.encode("Heat (1995), Star Wars (1977)") == twice.encode("Heat (1995), Star Wars (1977)")


def test_a_folder_that_transformers_wrote_again_still_tells_names_from_markup(named: Tokenizer, tmp_path: Path) -> None:
    named.save(tmp_path / "ours")
    AutoTokenizer.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    again = Tokenizer.load(tmp_path / "theirs")
    assert again.words == named.words
    assert again.encode("1. Heat (1995)\n") == named.encode("1. Heat (1995)\n")


def test_one_word_is_not_found_inside_others(deepseek: Tokenizer, smollm2: Tokenizer) -> None:
    """Llama 3's vocabulary is looked up with whole words, whatever touches them."""
    assert deepseek.with_words(["Zyxxa"]).words == ()
    named = smollm2.with_words(["Zyxxa"])
    assert count_of(named, "Zyxxa") == count_of(named, "- Zyxxa, 1") == 1
    assert count_of(named, "Zyxxa1") == count_of(named, "1Zyxxa") == count_of(named, "Zyxxa_") == 0


def count_of(tokenizer: Tokenizer, text: str) -> int:
    return tokenizer.encode(text).count(tokenizer.vocab_size - 1)


@pytest.mark.parametrize("word", ["<|im_end|>", "</answer>", "<repo_name>"])
def test_markup_is_no_name(smollm2: Tokenizer, tmp_path: Path, word: str) -> None:
    smollm2.save(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    if word not in {token["content"] for token in document["added_tokens"]}:
        rust = RustTokenizer.from_str(json.dumps(document))
        rust.add_tokens([word])
        (tmp_path / "tokenizer.json").write_text(rust.to_str())
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"words": [word]}))
    with pytest.raises(ValueError, match="and no markup; 1 are not so"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_that_would_put_a_space_behind_every_name_is_refused(llama2: Tokenizer) -> None:
    with pytest.raises(ValueError, match="a space before every part of a text"):
        llama2.with_words(NAMES)


def test_ids_with_gaps_are_refused(smollm2: Tokenizer, tmp_path: Path) -> None:
    smollm2.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    document = json.loads(path.read_text())
    rare = smollm2.token(40_000)
    del document["model"]["vocab"][rare]
    document["model"]["merges"] = [pair for pair in document["model"]["merges"] if rare not in (*pair, "".join(pair))]
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="no gaps among its ids"):
        Tokenizer.load(tmp_path).with_words(NAMES)


def test_without_names_a_tokenizer_is_the_one_it_was(tokenizer: Tokenizer, named: Tokenizer) -> None:
    assert tokenizer.with_words([]).fingerprint == tokenizer.fingerprint != named.fingerprint


def test_a_folder_whose_names_are_no_tokens_is_refused(tiny: Tokenizer, tmp_path: Path) -> None:
    tiny.save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"words": ["Heat (1995"]}))
    with pytest.raises(ValueError, match=r"must be added tokens of its tokenizer\.json and no markup; 1 are not"):
        Tokenizer.load(tmp_path)
    path.write_text(json.dumps(config | {"words": "Heat"}))
    with pytest.raises(ValueError, match="must be a list of strings"):
        Tokenizer.load(tmp_path)
