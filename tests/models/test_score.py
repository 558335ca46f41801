"""``python -m r2rec_jax.score`` and the export functions, on the tiny backbone."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax import score
from r2rec_jax.config import GrpoConfig, LoraConfig
from r2rec_jax.models.backbone import random_backbone
from r2rec_jax.models.huggingface import load_backbone, save_merged
from r2rec_jax.stages.export import export_merged, export_peft
from r2rec_jax.tokens.bpe import train_tokenizer
from r2rec_jax.tokens.tokenizer import Tokenizer

TEXT = "The Matrix (1999)\r\nliked: Alien (1979), Heat (1995)\n"
LORA = LoraConfig(rank=2, alpha=4.0, targets=("q", "up"))


@pytest.fixture
def tokenizer(tmp_path) -> Tokenizer:
    return train_tokenizer([TEXT * 3, "a user liked Heat (1995) and Alien"], 300, tmp_path / "tokenizer")


@pytest.fixture
def checkpoint(hf_config, tokenizer, tmp_path) -> Path:
    backbone = random_backbone({**hf_config, "vocab_size": tokenizer.vocab_size}, LORA, "float32")
    return save_merged(backbone, None, tmp_path / "checkpoint", tokenizer.save)


def run(*arguments: object) -> int:
    return score.main([str(argument) for argument in arguments])


def test_scores_are_log_softmax_of_the_full_forward(checkpoint, tokenizer, tmp_path) -> None:
    (tmp_path / "text").write_bytes(TEXT.encode())
    out = tmp_path / "scores.json"
    assert run("--backbone", checkpoint, "--text-file", tmp_path / "text", "--json", out) == 0
    scores = json.loads(out.read_text())
    ids = scores["token_ids"]
    assert ids == tokenizer.encode_document(TEXT)
    assert scores["logprobs"][0] is None
    assert len(scores["logprobs"]) == len(ids)
    model = load_backbone(checkpoint, None, "float32").model()
    row = jnp.asarray(ids)[None]
    hidden = model.hidden_states(row, jnp.arange(len(ids))[None], jnp.ones_like(row), jnp.zeros_like(row))
    full = jax.nn.log_softmax(hidden @ model.head(), axis=-1)[0, :-1]
    np.testing.assert_allclose(scores["logprobs"][1:], full[np.arange(len(ids) - 1), ids[1:]], atol=1e-5)


def test_exports_score_alike(checkpoint, tokenizer, random_lora, tmp_path) -> None:
    backbone = load_backbone(checkpoint, LORA, "float32")
    lora = random_lora(backbone)
    export_peft(backbone, lora, LORA, tokenizer, GrpoConfig(), tmp_path / "peft")
    export_merged(backbone, lora, tokenizer, GrpoConfig(), tmp_path / "merged")
    (tmp_path / "text").write_text(TEXT)
    scores = {}
    for name, arguments in (("base", [checkpoint]), ("peft", [checkpoint, "--adapter", tmp_path / "peft"]),
                            ("merged", [tmp_path / "merged"])):
        out = tmp_path / f"{name}.json"
        assert run("--text-file", tmp_path / "text", "--json", out, "--backbone", *arguments) == 0
        scores[name] = json.loads(out.read_text())
    assert scores["peft"]["token_ids"] == scores["merged"]["token_ids"]
    np.testing.assert_allclose(scores["peft"]["logprobs"][1:], scores["merged"]["logprobs"][1:], atol=1e-4)
    assert np.abs(np.subtract(scores["peft"]["logprobs"][1:], scores["base"]["logprobs"][1:])).max() > 0.1
    with pytest.raises(ValueError, match="must be new or empty"):
        export_peft(backbone, lora, LORA, tokenizer, GrpoConfig(), tmp_path / "merged")


def test_int8_scores_and_says_how_far_they_drift(checkpoint, tmp_path, capsys) -> None:
    (tmp_path / "text").write_text(TEXT)
    arguments = ["--backbone", checkpoint, "--text-file", tmp_path / "text", "--json"]
    assert run(*arguments, tmp_path / "full.json") == 0
    assert run(*arguments, tmp_path / "int8.json", "--quantize", "int8") == 0
    full, int8 = (json.loads((tmp_path / name).read_text()) for name in ("full.json", "int8.json"))
    apart = np.subtract(int8["logprobs"][1:], full["logprobs"][1:])
    assert int8["drift"] == pytest.approx({"mean": apart.mean(), "mean_abs": np.abs(apart).mean(),
                                           "max_abs": np.abs(apart).max()})
    assert 0 < int8["drift"]["mean_abs"] < 0.05
    assert f"mean absolute {int8['drift']['mean_abs']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "message"), [
    ({"--backbone": "./nowhere"}, "./nowhere does not exist"), ({"--text-file": "/nowhere"}, "/nowhere"),
    ({"--text-file": "empty"}, "is empty"), ({"--text-file": "latin"}, "must be UTF-8"),
    ({"--text-file": "long"}, "must have 1 to 128 tokens"), ({"--adapter": "."}, "must be a PEFT folder"),
    ({"--backbone": "tiny"}, "is trained in a run"), ({"--dtype": "int8"}, "int8"), ({"--colour": "red"}, "--colour"),
])
def test_bad_input_is_one_line_and_exit_code_2(checkpoint, tmp_path, monkeypatch, capsys, change, message) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text(TEXT)
    Path("empty").write_text("")
    Path("latin").write_bytes(b"caf\xe9")
    Path("long").write_text(TEXT * 50)
    arguments = {"--backbone": checkpoint, "--text-file": "text", "--json": "out.json", **change}
    capsys.readouterr()
    assert run(*(part for pair in arguments.items() for part in pair)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out.json").exists()


def test_ids_outside_the_vocabulary_are_refused(make_backbone) -> None:
    backbone = make_backbone()
    with pytest.raises(ValueError, match="below the model's vocabulary of 97; got 97"):
        score.score_ids(backbone, None, [1, 97])
    assert score.score_ids(backbone, None, [5]) == [None]
