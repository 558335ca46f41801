"""The tiny backbone's tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from r2rec_jax.tokens.bpe import train_tokenizer
from r2rec_jax.tokens.tokenizer import Tokenizer


def test_layout(tiny: Tokenizer) -> None:
    names = [tiny.token(index) for index in range(5)]
    assert names == ["<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
    assert tiny.vocab_size <= 400 and len(tiny.special_ids()) == 9
    assert [len(tiny.encode_completion(tag)) for tag in ("<think>", "</think>", "<answer>", "</answer>")] == [1] * 4


def test_template(tiny: Tokenizer) -> None:
    chat = tiny.chat("Heat")
    assert [tiny.token(index) for index in (*chat.ids[:2], chat.ids[-1])] == ["<|bos|>", "<|user|>", "<|assistant|>"]
    assert not chat.opened_think


def test_a_candidate_number_is_one_token_wherever_it_stands(tmp_path: Path) -> None:
    numbers = ", ".join(map(str, range(1, 100)))
    tokenizer = train_tokenizer([f"{numbers}\n{n}. Heat" for n in range(1, 100)] * 2, 500, tmp_path)
    seven, twelve = tokenizer.encode("7"), tokenizer.encode("12")
    assert len(seven) == len(twelve) == 1
    answer = tokenizer.encode("7, 12, 7")
    assert len(answer) == 5 and answer[0] == answer[4] == seven[0] and answer[2] == twelve[0]
    assert tokenizer.encode("12. Heat")[0] == twelve[0]


def test_training_is_deterministic_across_processes(tmp_path: Path) -> None:
    code = ("import sys; from r2rec_jax.tokens.bpe import train_tokenizer;"
            "print(train_tokenizer([f'item {n % 37} of user {n % 11}, rated {n % 5}' for n in range(300)], 330,"
            " sys.argv[1]).fingerprint)")
    prints = {
        subprocess.run([sys.executable, "-c", code, str(tmp_path / seed)], env={"PYTHONHASHSEED": seed, **_env()},
                       capture_output=True, text=True, check=True).stdout
        for seed in ("1", "2")
    }
    assert len(prints) == 1
    assert (tmp_path / "1/tokenizer.json").read_bytes() == (tmp_path / "2/tokenizer.json").read_bytes()


def test_too_small_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be >= 265.*got 264"):
        train_tokenizer(["a"], 264, tmp_path)
    assert train_tokenizer(["a"], 265, tmp_path).vocab_size == 265


def _env() -> dict[str, str]:
    import os

    return {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}


def test_words_are_tokens_of_their_own_between_other_characters(tmp_path: Path) -> None:
    words = ["Heat (1995", "Heat", "The Heat (1995", "A+B [x]", "It's (1990", "Große Fahrt (1953"]
    tokenizer = train_tokenizer(["Heat and The Heat of 1995"] * 3, 400, tmp_path, words=words)
    ids = {word: tokenizer.encode(word) for word in words}
    assert all(len(found) == 1 for found in ids.values()) and len({found[0] for found in ids.values()}) == len(words)
    for text, expected in {"see The Heat (1995; Drama)": "The Heat (1995", "1. Heat (1995)": "Heat (1995",
                           "Heat, or not": "Heat", "-A+B [x]-": "A+B [x]"}.items():
        found = tokenizer.encode(text)
        assert [one for one in found if [one] in ids.values()] == ids[expected]
        assert tokenizer.decode(found) == text
    assert ids["Heat (1995"][0] not in tokenizer.encode("PreHeat (1995) Heat (19953)")


def test_words_are_kept_by_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    text = "12. Heat (1995; Drama)\n- Big (1988): 5, said Big (1988)"
    tokenizer = train_tokenizer([text], 400, tmp_path, words=["Heat (1995", "Big (1988"])
    assert AutoTokenizer.from_pretrained(tmp_path)(text, add_special_tokens=False).input_ids == tokenizer.encode(text)
