"""Tokenizers from GGUF metadata: known ids, and clear errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from r2rec_jax.tokens.tokenizer import Tokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def _write(path: Path, **changes: Any) -> Path:
    import gguf

    fields: dict[str, Any] = {"model": "gpt2", "pre": "smollm", "tokens": ["<|end|>", *ALPHABET, "12", "ab", "<tag>"],
                              "types": [3, *[1] * (len(ALPHABET) + 2), 4], "merges": ["1 2", "a b"], **changes}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(fields["model"])
    writer.add_tokenizer_pre(fields["pre"])
    writer.add_token_list(fields["tokens"])
    writer.add_token_types(fields["types"])
    writer.add_token_merges(fields["merges"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    if "add_bos" in fields:
        writer.add_add_bos_token(fields["add_bos"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_pre_tokenizers_differ_in_digits(tmp_path: Path) -> None:
    smollm = Tokenizer.from_gguf(_write(tmp_path / "a.gguf"))
    gpt2 = Tokenizer.from_gguf(_write(tmp_path / "b.gguf", pre="gpt-2"))
    llama3 = Tokenizer.from_gguf(_write(tmp_path / "c.gguf", pre="llama-bpe"))
    assert [len(t.encode("12")) for t in (smollm, gpt2, llama3)] == [2, 1, 1]
    assert [len(t.encode("ab")) for t in (smollm, gpt2, llama3)] == [1, 1, 1]


def test_types_make_added_tokens_and_flags_the_first_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(_write(tmp_path / "a.gguf", add_bos=True))
    assert {tokenizer.token(i) for i in tokenizer.special_ids()} == {"<|end|>", "<tag>"}
    assert tokenizer.encode_document("ab<tag>") == [0, *tokenizer.encode("ab"), tokenizer.vocab_size - 1]
    assert Tokenizer.from_gguf(_write(tmp_path / "b.gguf", add_bos=False)).encode_document("ab") == [258]


def test_real_smollm2(smollm2: Tokenizer) -> None:
    assert smollm2.encode("Hello world") == [19556, 905]
    assert smollm2.encode("1995") == [smollm2.encode(digit)[0] for digit in "1995"]
    assert smollm2.vocab_size == 49152 and smollm2.end_ids == (2,)


@pytest.mark.parametrize(("changes", "message"), [
    ({"pre": "martian"}, "one of gpt-2, llama-bpe.*'martian'"),
    ({"model": "llama"}, "byte-level BPE.*'llama'"),
    ({"types": [3, 1]}, "one type a token"),
    ({"tokens": ["a", "a"], "types": [1, 1]}, "must differ"),
])
def test_bad_metadata(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Tokenizer.from_gguf(_write(tmp_path / "bad.gguf", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 3, 24, 40, 900])
def test_truncated_files(tmp_path: Path, size: int) -> None:
    whole = _write(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:size])
    with pytest.raises(ValueError, match="whole GGUF file"):
        Tokenizer.load(path)


def test_not_gguf_and_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(ValueError, match="whole GGUF file"):
        Tokenizer.load(path)
    with pytest.raises(OSError, match="nowhere"):
        Tokenizer.load(tmp_path / "nowhere.gguf")


def test_without_torch_or_transformers(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.gguf")
    code = ("import sys; from r2rec_jax.tokens.tokenizer import Tokenizer; t = Tokenizer.load(sys.argv[1]);"
            "t.save(sys.argv[2]); Tokenizer.load(sys.argv[2]).chat('a');"
            "print([name for name in ('torch', 'transformers') if name in sys.modules])")
    ran = subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "out")], capture_output=True, text=True,
                         check=True)
    assert ran.stdout.strip() == "[]"
