"""Every tokenizer at hand: a trained tiny one, and the real ones where their files are."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2rec_jax.tokens.bpe import train_tokenizer
from r2rec_jax.tokens.tokenizer import Tokenizer

CORPUS = [
    "User 12 gave Toy Story (1995) 5 of 5.",
    "Liked: Fargo (1996), Crime; Alien (1979), Horror, Sci-Fi.\nCandidates:\n1. Babe (1995)\n2. Heat (1995)",
    "<think>\nBoth users gave Heat a 4.\n</think>\n<answer>7, 3, 12</answer>",
] * 4

NAMES = ("tiny", "smollm2", "deepseek", "llama2")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    train_tokenizer(CORPUS, 400, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Tokenizer:
    return Tokenizer.load(tiny_folder)


@pytest.fixture(scope="session")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    return Tokenizer.load(smollm2_gguf)


@pytest.fixture(scope="session")
def deepseek(deepseek_tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.load(deepseek_tokenizer_dir)


@pytest.fixture(scope="session")
def llama2(llama2_tokenizer_file: Path) -> Tokenizer:
    return Tokenizer.load(llama2_tokenizer_file)


@pytest.fixture(scope="session", params=NAMES)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)
