"""Prompt lengths: counted as the model would get them, and the entry that prints them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from r2rec_jax.config import DataConfig, PromptConfig, TrainConfig
from r2rec_jax.prepare import main
from r2rec_jax.stages.lengths import open_tokenizers, prompt_lengths
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.stages.rendering import render_query
from r2rec_jax.tokens.bpe import train_tokenizer
from tests.synthetic import write_ml100k

SMALL = {"eval_users": 8, "validation_users": 2, "sft_queries": 4, "rl_queries": 2}


@pytest.fixture
def tokenizer_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "my-tokenizer"
    train_tokenizer(["Rank 20 candidate movies for the target user. Invented Title No. 7 (1995)"] * 4, 400, folder)
    return folder


def test_lengths_are_those_of_the_rendered_prompts(tmp_path: Path, tokenizer_dir: Path) -> None:
    data = write_ml100k(tmp_path / "ml")
    prepared = prepare(TrainConfig(data=DataConfig(path=str(data), **SMALL)), tmp_path / "prepared")
    tokenizers = open_tokenizers([str(tokenizer_dir)], "unused")
    (row,) = prompt_lengths(prepared, PromptConfig(), tokenizers)
    (tokenizer,) = tokenizers.values()
    queries = [query for split in ("test", "validation", "sft", "rl") for query in prepared.queries[split]]
    lengths = sorted(len(render_query(prepared, query, PromptConfig(max_tokens=10**5), tokenizer).chat.ids)
                     for query in queries)
    assert (row.tokenizer, row.prompts, row.longest) == ("my-tokenizer", 16, lengths[-1])
    assert lengths[7] <= row.median <= lengths[8]
    assert row.within == {limit: sum(n <= limit for n in lengths) / 16 for limit in (1024, 2048, 4096)}


def test_prepare_prints_them(tmp_path: Path, tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_ml100k(tmp_path / "ml")
    out = tmp_path / "out.json"
    flags = [f"--data.{name}={value}" for name, value in SMALL.items()]
    assert main(["--out", str(tmp_path / "prepared"), f"--data.path={data}", "--json", str(out), *flags,
                 "--tokenizers", str(tokenizer_dir)]) == 0
    assert "my-tokenizer" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["prompt_lengths"]
    assert row["prompts"] == 16 and row["longest"] >= row["p95"] >= row["median"] > 100


def test_no_such_tokenizer_is_told_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "prepared"), "--tokenizers", str(tmp_path / "nowhere")]) == 2
    assert "tokenizer" in capsys.readouterr().err and not (tmp_path / "prepared").exists()
