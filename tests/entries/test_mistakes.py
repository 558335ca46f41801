"""Wrong arguments, files and data: exit code 2, one line that names the mistake, and nothing left behind."""

from __future__ import annotations

import re
import shutil

import pytest

from r2rec_jax.train import main as train
from tests.entries.calls import CONFIG, arguments, refused


@pytest.mark.parametrize(("more", "reason"), [
    (["--sft.learning_rate=1"], "sft.learning_rate"),
    (["--sft.lr=-1"], "sft.lr must be > 0; got -1.0"),
    (["--grpo.group_size=1"], "grpo.group_size must be >= 2"),
    (["--stages=sft,dance"], "--stages must be 'all' or names out of"),
    (["--data.name=netflix"], "netflix"),
    (["--data.eval_users=1000"], "data.eval_users must be <= 40"),
    (["--prompts.max_tokens=64"], "prompts.max_tokens"),
    (["--thoughts.teacher=local"], "needs a pretrained backbone"),
    (["--backbone.source=/nowhere/model"], "/nowhere/model"),
    (["--stages=sft"], "builds on"),
    (["--evaluate.users=9"], "evaluate.users must be <= data.eval_users, 8; got 9"),
    (["--evaluate.split=rl", "--evaluate.users=5"], "evaluate.users must be <= data.rl_queries, 4; got 5"),
    (["--evaluate.max_new_tokens=5000"], "evaluate.max_new_tokens must be < 4096, the backbone's positions"),
])
def test_mistakes_are_one_line(data, tmp_path, capsys, more, reason):
    assert reason in refused(capsys, arguments(data, tmp_path / "run", *more))


def test_a_run_that_is_not_evaluated_may_have_any_users(data, tmp_path):
    assert train(arguments(data, tmp_path / "run", "--evaluate.users=9", "--stages=prepare")) == 0


def test_an_unknown_key_in_a_file_is_named(tmp_path, capsys):
    config = tmp_path / "bad.yaml"
    config.write_text("sft: {lr: 1.0e-4, warm_up: 3}\n")
    assert "warm_up" in refused(capsys, ["--config", str(config)])
    assert "does not exist" in refused(capsys, ["--config", str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(("file", "change", "reason"), [
    ("u.data", lambda b: b + b"1\t2\n", "u.data"),
    ("u.data", lambda b: re.sub(rb"^(\d+\t\d+\t)\d", rb"\g<1>9", b), "rating"),
    ("u.data", lambda b: b[:-9], "u.data"),
    ("u.data", lambda b: b"", "u.data"),
    ("u.item", lambda b: b[: len(b) // 2], "u.item"),
    ("u.item", None, "u.item"),
])
def test_broken_data_is_named_and_nothing_is_left(data, tmp_path, capsys, file, change, reason):
    broken = tmp_path / "data"
    shutil.copytree(data, broken)
    if change is None:
        (broken / file).unlink()
    else:
        (broken / file).write_bytes(change((broken / file).read_bytes()))
    assert reason in refused(capsys, arguments(broken, tmp_path / "run"))
    assert not (tmp_path / "run" / "prepare").exists()


def test_quickstart_is_used_only_without_a_config():
    from r2rec_jax.config import TrainConfig
    from r2rec_jax.stages.cli import add_train_config, make_parser, parse_train_config

    def parsed(*argv: str) -> TrainConfig:
        parser = make_parser("r2rec_jax.train", "")
        add_train_config(parser)
        return parse_train_config(parser, list(argv))[0]

    assert parsed("--train_seed=3").run_dir == "runs/quickstart"
    assert parsed("--config", CONFIG).backbone.source == "tiny"
    assert parsed("--config", CONFIG).note == "A smoke run. Its metrics mean nothing."
