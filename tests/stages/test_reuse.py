"""Which stages are taken from other runs: finished ones, under the same key, on the same inputs, copied whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from r2rec_jax.config import (
    BackboneConfig,
    GrpoConfig,
    MixConfig,
    PretrainConfig,
    PromptConfig,
    SftConfig,
    TrainConfig,
)
from r2rec_jax.files import write_json
from r2rec_jax.stages.reuse import TAKEN, reuse_stages
from r2rec_jax.stages.run import RunFolder


def make_run(path: Path, done: tuple[str, ...] = (), value: int = 1, **settings) -> RunFolder:
    """A run in which some stages have finished, each with a product, a checkpoint and two rows of metrics."""
    with RunFolder.open(TrainConfig(run_dir=str(path), **settings), provenance={}) as run:
        for stage in done:
            run.claim(stage)
            (run.folder(stage) / "checkpoints").mkdir(parents=True)
            (run.folder(stage) / "checkpoints" / "state").write_text("large")
            (run.folder(stage) / "product").write_text(f"{stage} of {path.name}")
            with (path / "metrics.jsonl").open("a") as file:
                file.writelines(json.dumps({"stage": stage, "step": n, "from": path.name}) + "\n" for n in (1, 2))
            run.mark_done(stage, 2.0, {"value": value})
        return run


def origins(run: RunFolder) -> dict[str, str]:
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return {row["stage"]: row["from"] for row in rows}


def test_everything_that_is_the_same_is_taken(tmp_path: Path) -> None:
    donor = make_run(tmp_path / "a", TAKEN)
    run = make_run(tmp_path / "b", grpo=GrpoConfig(lr=1e-4))
    shared = list(TAKEN[:-1])
    assert list(reuse_stages(run, TAKEN, [str(donor.path)])) == shared
    assert [run.is_done(stage) for stage in TAKEN] == [True] * 4 + [False]
    assert (run.folder("sft") / "product").read_text() == "sft of a"
    assert not (run.folder("sft") / "checkpoints").exists() and not run.folder("grpo").exists()
    assert origins(run) == dict.fromkeys(shared, "a")
    assert donor.is_done("grpo") and (donor.folder("sft") / "checkpoints").exists()


@pytest.mark.parametrize(("name", "text"), [("run.json", "{}"), ("stages.json", '{"prepare": 3}')])
def test_a_damaged_file_of_another_run_is_named(tmp_path: Path, name: str, text: str) -> None:
    donor = make_run(tmp_path / "a", TAKEN)
    (donor.path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"a/{name} must have an object .*; .*leave the folder out of --reuse$"):
        reuse_stages(make_run(tmp_path / "b"), TAKEN, [str(donor.path)])


def test_how_often_is_saved_there_does_not_matter(tmp_path: Path) -> None:
    make_run(tmp_path / "a", TAKEN, sft=SftConfig(checkpoint_every=3))
    run = make_run(tmp_path / "b")
    assert list(reuse_stages(run, TAKEN, [str(tmp_path / "a")])) == list(TAKEN)
    assert all(run.is_done(stage) for stage in TAKEN)


def test_what_is_done_here_stays_and_only_what_is_asked_for_comes(tmp_path: Path) -> None:
    make_run(tmp_path / "a", TAKEN)
    run = make_run(tmp_path / "b", ("prepare",))
    assert list(reuse_stages(run, ("prepare", "thoughts"), [str(tmp_path / "a")])) == ["thoughts"]
    assert origins(run) == {"prepare": "b", "thoughts": "a"}
    assert reuse_stages(run, TAKEN, [str(tmp_path / "b")]) == {}


def test_half_finished_and_different_stages_are_not_taken(tmp_path: Path) -> None:
    half = make_run(tmp_path / "half", ("prepare", "thoughts"))
    half.claim("pretrain")
    half.folder("pretrain").mkdir()
    other = make_run(tmp_path / "other", TAKEN, train_seed=1)
    deeper = make_run(tmp_path / "deeper", TAKEN, sft=SftConfig(lr=1e-3))
    run = make_run(tmp_path / "run")
    taken = reuse_stages(run, TAKEN, [str(half.path), str(other.path)])
    assert list(taken) == ["prepare", "thoughts"]
    assert list(reuse_stages(run, TAKEN, [str(deeper.path)])) == ["pretrain"]
    assert not run.is_done("sft") and not run.is_done("grpo")


def test_examples_of_another_mix_are_not_taken(tmp_path: Path) -> None:
    mixed = make_run(tmp_path / "mixed", TAKEN)
    run = make_run(tmp_path / "run", sft=SftConfig(thought_weight=0.0))
    assert list(reuse_stages(run, TAKEN, [str(mixed.path)])) == ["prepare"]


def test_a_tokenizer_of_other_texts_is_not_taken(tmp_path: Path) -> None:
    def settings(share: float) -> dict[str, Any]:
        return {"backbone": BackboneConfig(source="tiny"), "prompts": PromptConfig(thoughts="none"),
                "sft": SftConfig(thought_weight=0.0), "pretrain": PretrainConfig(mix=MixConfig(thoughts=share))}

    read = make_run(tmp_path / "read", TAKEN, **settings(0.5))
    run = make_run(tmp_path / "run", **settings(0.0))
    assert list(reuse_stages(run, TAKEN, [str(read.path)])) == ["prepare"]


def test_other_outcomes_below_are_other_inputs(tmp_path: Path) -> None:
    """A teacher on a server may have written other thoughts under the same settings."""
    make_run(tmp_path / "a", TAKEN, value=2)
    run = make_run(tmp_path / "b", ("prepare", "thoughts"), value=1)
    assert reuse_stages(run, TAKEN, [str(tmp_path / "a")]) == {}


def test_a_donor_that_changes_meanwhile_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    donor = make_run(tmp_path / "a", TAKEN)
    run = make_run(tmp_path / "b")
    copytree = shutil.copytree

    def overtaken(*arguments, **named):
        copytree(*arguments, **named)
        if arguments[0].name == "thoughts":
            donor.clear("thoughts")

    monkeypatch.setattr(shutil, "copytree", overtaken)
    assert list(reuse_stages(run, TAKEN, [str(donor.path)])) == ["prepare"]
    assert not run.folder("thoughts").exists() and "thoughts of" in capsys.readouterr().err
    write_json(donor.path / "stages.json", {})
    assert reuse_stages(run, TAKEN, [str(donor.path)]) == {}


def test_a_product_that_is_gone_is_not_taken(tmp_path: Path) -> None:
    donor = make_run(tmp_path / "a", TAKEN)
    shutil.rmtree(donor.folder("thoughts"))
    run = make_run(tmp_path / "b")
    assert list(reuse_stages(run, TAKEN, [str(donor.path)])) == ["prepare"]
