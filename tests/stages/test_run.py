from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest

from r2rec_jax.config import (
    STAGES,
    BackboneConfig,
    GrpoConfig,
    MixConfig,
    PretrainConfig,
    PromptConfig,
    SftConfig,
    TrainConfig,
    as_plain,
)
from r2rec_jax.files import write_json
from r2rec_jax.reporting.plots import read_metrics
from r2rec_jax.stages import run as run_module
from r2rec_jax.stages.keys import LATER, READS, read_settings, stage_key
from r2rec_jax.stages.run import HOSTED, RunFolder, config_from_plain
from r2rec_jax.training.metrics import MetricsWriter


def config(tmp_path: Path, **changes) -> TrainConfig:
    return TrainConfig(run_dir=str(tmp_path / "run"), **changes)


def open_run(c: TrainConfig, overwrite: bool = False) -> RunFolder:
    with RunFolder.open(c, provenance={"commit": "x"}, overwrite=overwrite) as run:
        return run


def finish(run: RunFolder, *stages: str) -> None:
    for stage in stages:
        run.claim(stage)
        run.folder(stage).mkdir(parents=True, exist_ok=True)
        (run.folder(stage) / "product").write_text("x")
        run.mark_done(stage, 1.0, {"value": 1})


def test_a_finished_stage_stays_done(tmp_path):
    run = open_run(config(tmp_path))
    finish(run, "prepare")
    again = open_run(config(tmp_path))
    assert again.is_done("prepare") and not again.is_done("thoughts")
    assert again.result("prepare") == {"value": 1}


def test_other_settings_are_refused_by_name(tmp_path):
    finish(open_run(config(tmp_path)), "prepare", "thoughts", "pretrain", "sft")
    with pytest.raises(ValueError, match=r"sft\.lr \(was 5e-05, now 0\.0001\)"):
        open_run(config(tmp_path, sft=SftConfig(lr=1e-4)))


@pytest.mark.parametrize(("name", "text", "reason"), [
    ("run.json", "[]", r"run\.json must be a JSON object; got a list"),
    ("run.json", "{}", r"run\.json must have an object 'config'; got none"),
    ("stages.json", "[]", r"stages\.json must be a JSON object; got a list"),
    ("stages.json", '{"prepare": 3}', r"stages\.json must have an object for each stage; got .* for prepare"),
    ("claims.json", "[]", r"claims\.json must be a JSON object; got a list"),
])
def test_files_of_another_shape_are_named(tmp_path, name, text, reason):
    run = open_run(config(tmp_path))
    finish(run, "prepare")
    (run.path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{reason}; delete the run folder or restore the file$"):
        finish(open_run(config(tmp_path)), "thoughts")
    if name == "run.json":
        with pytest.raises(ValueError, match=reason):
            RunFolder.existing(run.path)


def test_settings_of_stages_not_begun_may_change(tmp_path):
    finish(open_run(config(tmp_path)), "prepare", "thoughts", "pretrain", "sft")
    run = open_run(config(tmp_path, grpo=GrpoConfig(lr=1e-4)))
    assert run.is_done("sft") and not run.is_done("grpo")


def test_overwrite_keeps_what_the_change_does_not_touch(tmp_path):
    finish(open_run(config(tmp_path)), *STAGES)
    run = open_run(config(tmp_path, sft=SftConfig(lr=1e-4)), overwrite=True)
    assert [run.is_done(s) for s in STAGES] == [True, True, True, False, False, False, False]
    assert (run.folder("thoughts") / "product").exists() and not run.folder("sft").exists()


def test_what_a_deleted_stage_told_goes_with_it(tmp_path):
    run = open_run(config(tmp_path))
    finish(run, *STAGES)
    for stage in ("pretrain", "sft", "grpo"):
        metrics = MetricsWriter(run.path, stage)
        metrics.write(1, {"loss": 1.0}, 0.5)
        metrics.close()
    plots = [run.path / "plots" / name for name in ("loss.png", "reward.png")]
    plots[0].parent.mkdir()
    for plot in plots:
        plot.write_bytes(b"drawn")
    run = open_run(config(tmp_path, grpo=GrpoConfig(lr=1e-4)), overwrite=True)
    assert [row["stage"] for row in read_metrics(run.path / "metrics.jsonl")] == ["pretrain", "sft"]
    assert sorted(path.name for path in (run.path / "tensorboard").iterdir()) == ["pretrain", "sft"]
    assert [plot.exists() for plot in plots] == [True, False]
    finish(run, "grpo", "evaluate", "export")
    assert len(read_metrics(run.path / "metrics.jsonl")) == 2


def test_evaluation_settings_may_change(tmp_path):
    c = config(tmp_path)
    finish(open_run(c), *STAGES)
    run = open_run(replace(c, evaluate=replace(c.evaluate, users=7)))
    assert run.is_done("grpo") and not run.is_done("evaluate") and run.is_done("export")
    (run.folder("evaluate") / "predictions-test-sft.jsonl").write_text("each line names what it is the answer of")
    run.claim("evaluate")
    assert [path.name for path in run.folder("evaluate").iterdir()] == ["predictions-test-sft.jsonl"]


def test_other_texts_are_refused_as_other_settings_are(tmp_path, monkeypatch):
    c = config(tmp_path)
    finish(open_run(c), "prepare", "thoughts")
    keys = {stage: stage_key(c, stage) for stage in STAGES}
    monkeypatch.setattr(run_module, "TEMPLATE_VERSION", "2")
    monkeypatch.setattr(read_settings, "__defaults__", ("2",))
    assert [stage for stage in STAGES if stage_key(c, stage) == keys[stage]] == ["prepare"]
    with pytest.raises(ValueError, match=r"it has those of version 1; use commit x, or train anew"):
        RunFolder.existing(c.run_dir)
    assert RunFolder.existing(c.run_dir, any_texts=True).texts == "1"
    with pytest.raises(ValueError, match=r"version of the texts \(was None, now '2'\)"):
        open_run(c)
    run = open_run(c, overwrite=True)
    assert run.is_done("prepare") and not run.is_done("thoughts")
    finish(run, "thoughts")
    assert open_run(c).is_done("thoughts")


def test_a_stage_says_which_version_finished_it(tmp_path):
    run = open_run(config(tmp_path))
    finish(run, "prepare")
    for stage in ("thoughts", "pretrain", "sft"):
        run.mark_done(stage, 1.0, {}, commit=stage[0], dirty=False, hardware="cpu")
    assert run.origin("sft") == {name: {"commit": name[0], "dirty": False, "hardware": "cpu"}
                                 for name in ("thoughts", "pretrain", "sft")}


def test_what_was_paid_for_outlives_all(tmp_path):
    c = config(tmp_path)
    run = open_run(c)
    finish(run, *STAGES)
    paid = run.folder(HOSTED) / "requests-test-gpt.jsonl"
    paid.parent.mkdir()
    paid.write_text("{}")
    for changed in (replace(c, evaluate=replace(c.evaluate, users=7)), replace(c, train_seed=5)):
        open_run(changed, overwrite=True).claim("evaluate")
        assert paid.exists()


def test_where_data_lies_does_not_matter(tmp_path):
    c = config(tmp_path)
    moved = replace(c, data=replace(c.data, path="/elsewhere", cache_dir="/cache"))
    assert all(stage_key(c, s) == stage_key(moved, s) for s in STAGES)
    assert stage_key(c, "prepare") != stage_key(replace(c, data=replace(c.data, split_seed=1)), "prepare")


def test_a_key_covers_the_stages_below(tmp_path):
    c = config(tmp_path)
    other = replace(c, data=replace(c.data, candidates=10, eval_users=8, validation_users=1),
                    prompts=replace(c.prompts, answer=replace(c.prompts.answer, top=5)))
    assert all(stage_key(c, s) != stage_key(other, s) for s in STAGES)


def test_settings_that_came_later_do_not_undo_what_was_finished_before(tmp_path):
    now = as_plain(config(tmp_path))
    for name, value in LATER.items():
        section, field = name.split(".")
        assert now[section][field] == value, "the default does what was done before"
        before = {key: inner for key, inner in now[section].items() if key != field}
        stage = next(stage for stage, sections in READS.items() if section in sections)
        assert read_settings({**now, section: before}, stage) == read_settings(now, stage)
        assert read_settings({**now, section: {**before, field: 7}}, stage)[name] == 7
    finish(open_run(config(tmp_path)), "prepare", "thoughts", "pretrain", "sft")
    with pytest.raises(ValueError, match=r"sft\.steps \(was None, now 7\)"):
        open_run(config(tmp_path, sft=SftConfig(steps=7)))


def test_the_examples_of_another_mix_are_not_trained_on(tmp_path):
    """``thoughts`` writes them, by a setting of ``sft``."""
    c, other = config(tmp_path), config(tmp_path, sft=SftConfig(thought_weight=0.0))
    assert stage_key(c, "thoughts") == stage_key(other, "thoughts"), "folders of earlier versions stay finished"
    finish(open_run(c), "prepare", "thoughts")
    with pytest.raises(ValueError, match=r"sft\.thought_weight \(was 1\.0, now 0\.0\).* to run thoughts and what"):
        open_run(other)
    run = open_run(other, overwrite=True)
    assert run.is_done("prepare") and not run.is_done("thoughts") and not run.folder("thoughts").exists()


def unread(tmp_path: Path, share: float, **changes) -> TrainConfig:
    """Settings under which thoughts are written for the texts of pretraining or not at all."""
    settings = {"backbone": BackboneConfig(source="tiny"), "prompts": PromptConfig(thoughts="none"),
                "sft": SftConfig(thought_weight=0.0), "pretrain": PretrainConfig(mix=MixConfig(thoughts=share))}
    return config(tmp_path, **(settings | changes))


def test_a_tokenizer_of_other_texts_is_not_kept(tmp_path):
    """The texts that a tokenizer is trained on have thoughts where something reads thoughts, if only pretraining."""
    c = unread(tmp_path, 0.0)
    finish(open_run(c), "prepare", "thoughts")
    with pytest.raises(ValueError, match=r"settings: pretrain\.mix\.thoughts \(was 0\.0, now 0\.5\); .* thoughts and"):
        open_run(unread(tmp_path, 0.5))
    run = open_run(unread(tmp_path, 0.5), overwrite=True)
    assert run.is_done("prepare") and not run.is_done("thoughts")
    finish(run, "thoughts")
    assert open_run(unread(tmp_path, 0.2)).is_done("thoughts"), "how many are read is for pretraining to know"


@pytest.mark.parametrize("changes", [{"prompts": PromptConfig()}, {"sft": SftConfig()}, {"backbone": BackboneConfig()}])
def test_the_share_of_thoughts_does_not_matter_where_it_decides_nothing(tmp_path, changes):
    finish(open_run(unread(tmp_path, 0.0, **changes)), "prepare", "thoughts")
    assert open_run(unread(tmp_path, 0.5, **changes)).is_done("thoughts")


def test_grpo_without_sft_does_not_build_on_it(tmp_path):
    start = GrpoConfig(start="base", reference="base")
    c = config(tmp_path, grpo=start)
    assert stage_key(c, "grpo") == stage_key(replace(c, sft=SftConfig(lr=1e-3)), "grpo")


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not empty and holds no run\.json"):
        open_run(config(tmp_path))
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_config_round_trips(tmp_path):
    from r2rec_jax.config import as_plain

    c = config(tmp_path, grpo=GrpoConfig(epsilon_high=0.3, loss="dapo"), train_seed=3)
    assert as_plain(config_from_plain(as_plain(c))) == as_plain(c)


def test_an_unknown_setting_in_a_run_is_named(tmp_path):
    from r2rec_jax.config import as_plain

    plain = as_plain(config(tmp_path)) | {"surprise": 1}
    with pytest.raises(ValueError, match="surprise"):
        config_from_plain(plain)


def _hold(path: str, ready, release) -> None:
    run = RunFolder.existing(path)
    with run.locked():
        ready.set()
        release.wait(30)


def test_a_second_process_is_refused_and_a_dead_lock_is_not_in_the_way(tmp_path):
    run = open_run(config(tmp_path))
    context = multiprocessing.get_context("spawn")
    ready, release = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(run.path), ready, release))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(ValueError, match=f"in use by process {holder.pid}"), run.locked():
        pass
    holder.kill()
    holder.join()
    with run.locked():
        pass


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n "a": 1\n}\n'


def test_a_run_goes_on_under_other_settings_of_the_kind_that_only_round(tmp_path):
    c = config(tmp_path)
    run = open_run(c)
    keys = {stage: run.key(stage) for stage in STAGES}
    assert keys == {stage: stage_key(c, stage) for stage in STAGES}, "folders of earlier versions stay finished"
    finish(run, "prepare", "thoughts", "pretrain")
    run.claim("sft")
    run.folder("sft").mkdir()
    other = config(tmp_path, sft=SftConfig(micro_batch=1, checkpoint_every=7, log_every=3),
                   grpo=GrpoConfig(checkpoint_every=3, micro_prompts=2),
                   backbone=BackboneConfig(attention="xla", remat="off"))
    for again in (open_run(other), open_run(other), RunFolder.existing(run.path)):
        assert {stage: again.key(stage) for stage in STAGES} == keys
        assert again.is_done("pretrain")
        again.claim("sft")
        assert again.folder("sft").is_dir(), "what was begun goes on"
    assert RunFolder.existing(run.path).config.sft.checkpoint_every == 7


def test_what_was_not_recorded_when_a_folder_was_made_is_from_now_on(tmp_path):
    """Made under ``bnpo``, where ``micro_prompts`` decides a mean; begun anew under another loss."""
    open_run(config(tmp_path, grpo=GrpoConfig(loss="bnpo")))
    run = open_run(config(tmp_path), overwrite=True)
    finish(run, "prepare", "thoughts", "pretrain", "sft", "grpo")
    assert open_run(config(tmp_path, grpo=GrpoConfig(micro_prompts=2))).is_done("grpo")


def test_the_prompts_of_a_pass_decide_what_bnpo_takes_the_mean_of(tmp_path):
    def grpo(prompts: int) -> TrainConfig:
        return config(tmp_path, grpo=GrpoConfig(loss="bnpo", micro_prompts=prompts))

    finish(open_run(grpo(1)), "prepare", "thoughts", "pretrain", "sft", "grpo")
    with pytest.raises(ValueError, match=r"grpo\.micro_prompts \(was 1, now 2\)"):
        open_run(grpo(2))
