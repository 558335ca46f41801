"""Our reading of a sentencepiece model gives the library's own ids."""

from __future__ import annotations

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
