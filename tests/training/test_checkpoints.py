"""Checkpoints: whole or not at all, refused by name, and read back bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.checkpoints import flatten, is_alive, let_go
from r2rec_jax.config import LoraConfig
from r2rec_jax.training.metrics import JsonLines, MetricsWriter
from r2rec_jax.training.state import init_state, make_optimizer
from tests.damage import damaged_copies, delete, flip_a_bit, truncate

LOADER = {"grain": {"next_index": 3}, "seed": 1}


@pytest.fixture
def state(tiny):
    return init_state(tiny[1], make_optimizer(1e-3, "constant", 0, 10, 0, 1.0)).replace(
        step=jnp.asarray(7, jnp.int32), skipped=jnp.asarray(1, jnp.int32))


def test_what_is_saved_is_read_back(state, checkpoints, trees_equal):
    first = checkpoints()
    for step in (1, 2, 3):
        first.save(step, state.replace(step=jnp.asarray(step)), LOADER | {"seed": step})
    first.close()
    second = checkpoints()
    restored = second.restore(jax.tree.map(jnp.zeros_like, state))
    assert restored is not None and restored.step == 3 and restored.loader_state == LOADER | {"seed": 3}
    assert trees_equal(restored.state, state.replace(step=jnp.asarray(3)))
    assert jax.tree.structure(restored.state) == jax.tree.structure(state)
    kept = sorted(p.name for p in second.folder.iterdir())
    assert kept == ["2", "2.files.json", "3", "3.files.json"], "the last two are kept"
    assert not [p for p in second.folder.rglob("*") if p.suffix in (".pkl", ".pickle")]
    second.close()


def test_bytes_of_an_iterator_survive(state, checkpoints):
    own = checkpoints()
    own.save(1, state, b"\x00\xff")
    assert own.restore(state).loader_state == b"\x00\xff"
    own.close()


def test_an_empty_folder_has_nothing(state, checkpoints):
    own = checkpoints()
    assert own.latest_step is None and own.restore(state) is None
    own.close()


@pytest.mark.parametrize(("changes", "named"), [
    ({"base_sha256": "other"}, "another base model"), ({"config_sha256": "other"}, "another configuration"),
    ({"lora": LoraConfig(rank=2)}, "another LoRA configuration"), ({"stage": "grpo"}, "another stage")])
def test_a_checkpoint_of_something_else_is_refused_by_name(state, checkpoints, changes, named):
    own = checkpoints()
    own.save(1, state, LOADER)
    own.close()
    other = checkpoints(**changes)
    with pytest.raises(ValueError, match=f"was made with {named}") as error:
        other.restore(state)
    assert "\n" not in str(error.value)
    other.close()


@pytest.mark.slow
def test_whatever_happens_to_a_file_of_the_newest_it_says_so_and_takes_the_one_before(
        checkpoints, tmp_path, capsys, trees_equal):
    """Every file of it, metadata too, truncated, with a flipped bit, and deleted."""
    optimizer = make_optimizer(1e-3, "constant", 0, 10, 0, 1.0)
    states = {step: init_state({"w": jnp.arange(300.0) ** 0.5 * step}, optimizer) for step in (1, 2)}
    own = checkpoints()
    for step, state in states.items():
        own.save(step, state, LOADER | {"seed": step})
    own.close()
    damages = 0
    for done, folder in damaged_copies(own.folder, "2", tmp_path):
        again = checkpoints(name=folder.name)
        restored = again.restore(jax.tree.map(jnp.zeros_like, states[1]))
        assert restored is not None and restored.step == 1, done
        assert trees_equal(restored.state, states[1]) and restored.loader_state == LOADER | {"seed": 1}, done
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        assert f"sft: checkpoint of step 2: {WORDS[done.split()[0]]}" in said and done.split()[1] in said, said
        if damages % 10 == 0:
            again.save(2, states[2], LOADER)
            assert again.latest_step == 2, done
        again.close()
        damages += 1
    assert damages > 50


WORDS = {"truncate": "its file", "delete": "its file", "flip_a_bit": "the checksum of its file"}


@pytest.mark.parametrize(("damage", "step"), [(truncate, 1), (flip_a_bit, 1), (delete, 2)])
def test_a_checkpoint_whose_list_of_files_is_damaged(checkpoints, damage, step, trees_equal):
    """A missing list is that of a process killed right before it: the checkpoint is whole."""
    states = {n: init_state({"w": jnp.arange(30.0) * n}, make_optimizer(1e-3, "constant", 0, 10, 0, 1.0))
              for n in (1, 2)}
    own = checkpoints()
    for n, state in states.items():
        own.save(n, state, LOADER)
    own.close()
    damage(own.folder / "2.files.json")
    again = checkpoints()
    restored = again.restore(states[1])
    assert restored is not None and restored.step == step and trees_equal(restored.state, states[step])
    again.close()
    assert sorted(p.name for p in own.folder.glob("*.json")) == [f"{n}.files.json" for n in range(1, step + 1)]


def test_none_good_is_the_reason_to_stop(state, checkpoints):
    own = checkpoints()
    for step in (1, 2):
        own.save(step, state, LOADER)
        delete(own.folder / str(step) / "meta" / "metadata")
    own.close()
    again = checkpoints()
    with pytest.raises(ValueError, match=r"no sft checkpoint in .* can be read \(step 2: its file meta/metadata is "
                                         r"missing; step 1: .*\); delete the folder to start anew") as error:
        again.restore(state)
    assert "\n" not in str(error.value) and again.latest_step == 2, "nothing is deleted"
    again.close()


@pytest.mark.parametrize("error", [
    MemoryError("no room"), PermissionError("no leave"),
    jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")], ids=repr)
def test_what_has_no_room_is_not_called_damaged(state, checkpoints, monkeypatch, error):
    own = checkpoints()
    own.save(1, state, LOADER)
    own.save(2, state, LOADER)
    with monkeypatch.context() as broken:
        broken.setattr(own, "_read_tree", lambda *_: (_ for _ in ()).throw(error))
        with pytest.raises(type(error), match=str(error)):
            own.restore(state)
    assert own.latest_step == 2 and own.restore(state).step == 2
    own.close()


def test_a_state_that_is_read_takes_the_place_of_the_one_that_was_made(state, checkpoints, trees_equal):
    own = checkpoints()
    own.save(1, state, LOADER)
    made = init_state(state.params, make_optimizer(1e-3, "constant", 0, 10, 0, 1.0))
    kept = jax.tree.map(np.asarray, state)
    shapes = let_go(made)
    assert all(x.is_deleted() for x in jax.tree.leaves(made)) and not is_alive(made) and is_alive(state)
    assert trees_equal(own.restore(shapes).state, kept)
    own.close()


def test_other_shapes_are_named(state, checkpoints):
    own = checkpoints()
    own.save(1, state, LOADER)
    wider = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], x.shape[-1] + 1), x.dtype), state.params)
    with pytest.raises(ValueError, match="must have the shapes of this model; layers/down/lora_a"):
        own.restore(state.replace(params=wider))
    own.close()


@pytest.mark.parametrize("reserve", [True, False])
def test_a_full_disk_leaves_the_one_before(tmp_path, reserve):
    """In a process of its own, with files limited to 4 kB after the first save; also when it is full only halfway."""
    script = textwrap.dedent("""
        import resource, signal, sys
        from pathlib import Path
        import jax.numpy as jnp
        from r2rec_jax.training.checkpoints import Checkpoints, Identity
        from r2rec_jax.training.state import init_state, make_optimizer

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if sys.argv[2] == "False":
            Checkpoints._reserve = lambda self, size: None
        state = init_state({"w": jnp.arange(20000.0) ** 0.5}, make_optimizer(1e-3, "constant", 0, 10, 0, 1.0))
        own = Checkpoints(Path(sys.argv[1]), Identity("sft", "b", "c"))
        own.save(1, state, 0)
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            own.save(2, state, 0)
        except OSError as error:
            print("ERROR", error)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        own.close()
        again = Checkpoints(Path(sys.argv[1]), Identity("sft", "b", "c"))
        restored = again.restore(state)
        print("STEP", restored.step, bool((restored.state.params["w"] == state.params["w"]).all()))
        again.save(2, state, 0)
        print("LATEST", again.latest_step)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "c"), str(reserve)], capture_output=True,
                          text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    error, step, latest = done.stdout.splitlines()
    assert error.startswith("ERROR the sft checkpoint of step 2 could not be written")
    assert "the one of step 1 is untouched; free disk space" in error
    assert step == "STEP 1 True" and latest == "LATEST 2"
    if reserve:
        assert done.stderr == ""


def test_names_of_flat_trees(tiny):
    names = list(flatten(tiny[1]))
    assert "layers/q/lora_a/value" in names and len(names) == 14


def test_rows_after_the_checkpoint_are_dropped_and_other_stages_stay(tmp_path: Path):
    sft, grpo = (MetricsWriter(tmp_path, stage, tensorboard=False) for stage in ("sft", "grpo"))
    for step in (1, 2, 3):
        sft.write(step, {"loss": np.float32(1 / step), "odd": np.nan}, 0.5)
    grpo.write(1, {"kl": 0.0}, 0.5)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "st')
    sft.close()
    sft.resume(2)
    sft.write(3, {"loss": 9.0}, 0.5)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [("sft", 1), ("sft", 2), ("grpo", 1), ("sft", 3)]
    assert rows[0]["odd"] is None and rows[0]["loss"] == 1.0
    with pytest.raises(ValueError, match=r"must not be named like a column of its own; got \['step'\]"):
        sft.write(4, {"step": 1}, 0.5)
    sft.resume(0)
    assert [json.loads(line)["stage"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == ["grpo"]


def test_what_was_measured_after_the_checkpoint_is_measured_again(tmp_path: Path):
    """A look has a row of its own beside the step's; of a start anew none is kept."""
    rows = MetricsWriter(tmp_path, "grpo", tensorboard=False)
    rows.write(0, {"eval_hit": 0.1}, 0.5)
    for step in (1, 2):
        rows.write(step, {"loss": 1.0}, 0.5)
        rows.write(step, {"eval_hit": 0.2}, 0.5)

    def kept(step: int) -> list[tuple[int, bool]]:
        rows.resume(step)
        found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        return [(row["step"], "eval_hit" in row) for row in found]

    assert kept(2) == [(0, True), (1, False), (1, True), (2, False)]
    assert kept(1) == [(0, True), (1, False)]
    assert kept(0) == []


def test_a_log_that_is_not_there_is_no_error(tmp_path: Path):
    log = JsonLines(tmp_path / "deep" / "log.jsonl")
    log.keep(lambda row: True)
    log.append({"a": np.arange(2)})
    log.close()
    assert (tmp_path / "deep" / "log.jsonl").read_text() == '{"a": [0, 1]}\n'
