"""A pretrained backbone that is trained further before its adapter (``pretrain.adapt``)."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r2rec_jax.models.backbone import parameter
from r2rec_jax.models.huggingface import load_backbone
from r2rec_jax.prompts.verbalize import item_name
from r2rec_jax.stages.corpus import pretraining_texts
from r2rec_jax.stages.local_teacher import make_local_teacher
from r2rec_jax.stages.run import RunFolder
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.tokens.tokenizer import Tokenizer
from r2rec_jax.train import main as train
from tests.devices import REPOSITORY, environment
from tests.synthetic import SMALL, write_ml100k

CONFIG = REPOSITORY / "configs" / "ci.yaml"


def arguments(data: Path, run: Path, *more: str) -> list[str]:
    return ["--config", str(CONFIG), *SMALL, f"--data.path={data}", f"--run_dir={run}", *more]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ml100k(tmp_path_factory.mktemp("data") / "ml")


@pytest.fixture(scope="module")
def source(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model that somebody else has trained."""
    run = tmp_path_factory.mktemp("source") / "run"
    assert train(arguments(data, run, "--stages=prepare,thoughts,pretrain")) == 0
    return run / "pretrain" / "backbone"


def results(run: Path) -> dict[str, dict]:
    return {stage: entry["result"] for stage, entry in json.loads((run / "stages.json").read_text()).items()}


def test_everything_after_it_builds_on_the_backbone_that_it_made(data: Path, source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = [f"--backbone.source={source}", "--pretrain.adapt=true", "--pretrain.steps=6", "--pretrain.lr=1e-2",
            "--pretrain.mix.choices=1"]
    assert train(arguments(data, run, *more)) == 0
    done = results(run)
    before, after = (load_backbone(path, None, "float32") for path in (source, run / "pretrain" / "backbone"))
    assert done["pretrain"]["start_sha256"] == before.sha256 != after.sha256 == done["pretrain"]["base_sha256"]
    moved = [float(np.abs(parameter(after.base, path) - parameter(before.base, path)).max())
             for path in (("embed",), ("layers", "up", "kernel"), ("layers", "q", "kernel"))]
    assert min(moved) > 1e-3, "every parameter is trained, not an adapter"
    assert done["sft"]["base_sha256"] == done["grpo"]["base_sha256"] == after.sha256
    losses = [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
              if row["stage"] == "pretrain"]
    assert len(losses) == 6 and np.mean(losses[3:]) < np.mean(losses[:3])
    predictions = {path.name for path in (run / "evaluate").glob("predictions-*")}
    assert predictions == {f"predictions-test-{system}.jsonl" for system in ("pretrained", "sft", "sft+grpo")}
    adapter = json.loads((run / "export" / "peft" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(run / "pretrain" / "backbone")


def test_without_it_a_pretrained_backbone_is_left_as_it_is(data: Path, source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = [f"--backbone.source={source}", "--stages=prepare,thoughts,pretrain,sft"]
    assert train(arguments(data, run, *more)) == 0
    assert results(run)["sft"]["base_sha256"] == load_backbone(source, None, "float32").sha256
    assert not (run / "pretrain").exists()


def test_the_local_teacher_is_the_backbone_as_it_came(data: Path, source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = [f"--backbone.source={source}", "--pretrain.adapt=true", "--thoughts.teacher=local", "--thoughts.attempts=1",
            "--thoughts.max_new_tokens=8", "--data.sft_queries=2", "--stages=prepare,thoughts,pretrain"]
    assert train(arguments(data, run, *more)) == 0
    work = Workspace(RunFolder.existing(run))
    after = make_local_teacher(work, "movies").version
    assert "backbone" not in vars(work), "the adapted one is not asked"
    plain = replace(work.config, pretrain=replace(work.config.pretrain, adapt=False))
    before = make_local_teacher(Workspace(RunFolder(run, plain)), "movies").version
    assert after == before


def test_a_model_that_can_copy_goes_through_no_curriculum(data: Path, source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = [f"--backbone.source={source}", "--pretrain.adapt=true", "--pretrain.mix.choices=1",
            "--pretrain.mix.examples=0", "--stages=prepare,thoughts"]
    assert train(arguments(data, run, *more)) == 0
    work = Workspace(RunFolder.existing(run))
    phases = pretraining_texts(work).phases
    assert len(phases) == 1
    texts = [work.tokenizer.decode(list(text.ids)) for text in phases[0]]
    assert 0 < sum("Candidates:" in text for text in texts) < len(texts), "choices and histories, in one phase"


def test_texts_begin_as_the_tokenizer_begins_documents(data: Path, source: Path, tmp_path: Path) -> None:
    """A begin token that a tokenizer names but puts before nothing, as SmolLM2's, opens no text."""
    run = tmp_path / "run"
    more = [f"--backbone.source={source}", "--pretrain.adapt=true", "--stages=prepare,thoughts",
            "--pretrain.mix.examples=0"]
    assert train(arguments(data, run, *more)) == 0
    work = Workspace(RunFolder.existing(run))
    assert {text.ids[0] for text in pretraining_texts(work).phases[0]} == {work.tokenizer.bos_id}
    vars(work.tokenizer)["document_start"] = ()
    assert work.tokenizer.bos_id not in {text.ids[0] for text in pretraining_texts(work).phases[0]}


def test_items_become_tokens_that_all_later_stages_and_exports_know(data: Path, source: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = [f"--backbone.source={source}", "--pretrain.adapt=true", "--backbone.item_tokens=true", "--pretrain.steps=4",
            "--pretrain.mix.choices=1", "--pretrain.choices_as=completion", "--evaluate.likelihood=sum"]
    assert train(arguments(data, run, *more)) == 0
    work, plain = Workspace(RunFolder.existing(run)), Tokenizer.load(source)
    names = {item_name(item) for item in work.prepared.dataset.items}
    assert set(work.tokenizer.words) == names
    size = plain.vocab_size + len(work.tokenizer.words)
    assert work.tokenizer.vocab_size == work.backbone.config.vocab_size == size
    assert all(len(work.tokenizer.encode(name)) == 1 < len(plain.encode(name)) for name in names)
    exports = [run / "export" / name for name in ("peft", "merged")]
    for folder in (run / "pretrain" / "backbone", run / "thoughts" / "tokenizer", *exports):
        assert Tokenizer.load(folder).words == work.tokenizer.words
    assert load_backbone(exports[1], None, "float32").config.vocab_size == size
    assert results(run)["thoughts"]["vocab_size"] == size
    assert results(run)["pretrain"]["start_sha256"] != load_backbone(source, None, "float32").sha256
    shorter = results(run)["thoughts"]["tokens"]["ranking"]["prompt_median"]
    assert train(arguments(data, tmp_path / "plain", f"--backbone.source={source}", "--stages=prepare,thoughts")) == 0
    assert shorter < results(tmp_path / "plain")["thoughts"]["tokens"]["ranking"]["prompt_median"]


def test_every_stage_rounds_the_factors_of_its_products_where_it_is_told_to(data: Path, source: Path, tmp_path: Path,
                                                                            capsys) -> None:
    more = [f"--backbone.source={source}", "--pretrain.adapt=true", "--backbone.item_tokens=true", "--pretrain.steps=3"]
    narrow, losses = ["--backbone.matmul_dtype=bfloat16"], {}
    for name, setting in (("plain", []), ("narrow", narrow)):
        run = tmp_path / name
        assert train(arguments(data, run, *more, *setting, "--stages=prepare,thoughts,pretrain,sft,grpo")) == 0
        for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
            if "loss" in row:
                losses.setdefault((name, row["stage"]), []).append(row["loss"])
    for stage in ("pretrain", "sft"):
        apart = np.array(losses["narrow", stage]) / losses["plain", stage] - 1
        assert np.abs(apart[0]) > 1e-7 and np.abs(apart).max() < 0.05, (stage, apart)
    work = Workspace(RunFolder.existing(tmp_path / "narrow"))
    assert work.backbone.matmul_dtype == work.backbone.model().layers.q.matmul_dtype == np.dtype("bfloat16")
    assert train(arguments(data, tmp_path / "narrow", *more)) == 2
    assert "backbone.matmul_dtype (was 'bfloat16', now None)" in capsys.readouterr().err


@pytest.mark.slow
def test_several_devices_adapt_it_as_one_does(data: Path, source: Path, tmp_path: Path) -> None:
    losses, hashes = [], []
    for devices, layout in ((1, []), (4, ["--parallel.fsdp=2", "--parallel.tensor=2", "--parallel.data=1"])):
        run = tmp_path / str(devices)
        more = [f"--backbone.source={source}", "--pretrain.adapt=true", "--backbone.item_tokens=true",
                "--pretrain.steps=4", "--pretrain.mix.choices=1", "--stages=prepare,thoughts,pretrain", *layout]
        done = subprocess.run(
            [sys.executable, "-m", "r2rec_jax.train", *arguments(data, run, *more)], capture_output=True, text=True,
            cwd=REPOSITORY, env=environment(devices))
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append([row["loss"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())])
        hashes.append(results(run)["pretrain"]["start_sha256"])
        assert load_backbone(run / "pretrain" / "backbone", None, "float32").sha256
    assert hashes[0] == hashes[1]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_items_that_are_tokens_of_the_source_are_not_added_again(data: Path, source: Path, tmp_path: Path) -> None:
    common = ["--pretrain.adapt=true", "--pretrain.steps=2", "--stages=prepare,thoughts,pretrain"]
    first, again = tmp_path / "first", tmp_path / "again"
    assert train(arguments(data, first, f"--backbone.source={source}", "--backbone.item_tokens=true", *common)) == 0
    for more in ([], ["--backbone.item_tokens=true"]):
        assert train(arguments(data, again / str(len(more)), f"--backbone.source={first / 'pretrain' / 'backbone'}",
                               *common, *more)) == 0
        found = results(again / str(len(more)))
        assert found["pretrain"]["start_sha256"] == results(first)["pretrain"]["base_sha256"]
        assert found["thoughts"]["tokenizer"] == results(first)["thoughts"]["tokenizer"]


def test_items_as_tokens_want_a_backbone_that_is_trained(data: Path, source: Path, tmp_path: Path, capsys) -> None:
    for name, why in ((source, "new tokens must be learned"), ("tiny", "tiny has backbone.tiny.item_tokens")):
        assert train(arguments(data, tmp_path / "run", f"--backbone.source={name}", "--backbone.item_tokens=true")) == 2
        assert f"backbone.item_tokens must be false without pretrain.adapt ({why})" in capsys.readouterr().err


def test_a_backbone_from_scratch_cannot_be_trained_further(data: Path, tmp_path: Path, capsys) -> None:
    assert train(arguments(data, tmp_path / "run", "--pretrain.adapt=true")) == 2
    assert "pretrain.adapt must be false with backbone.source 'tiny'" in capsys.readouterr().err
