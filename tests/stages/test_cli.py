"""What the entries share: sections of settings that are none, flags that say what they are, failures of one line."""

from __future__ import annotations

import json
from importlib import import_module
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from r2rec_jax.baselines.__main__ import main as baselines
from r2rec_jax.config import TrainConfig, as_plain
from r2rec_jax.config.experiments import ExperimentList
from r2rec_jax.stages.cli import (
    EXIT_FAILED,
    BadInput,
    add_train_config,
    check_sections,
    from_plain,
    make_parser,
    parse_train_config,
    run_entry,
    section_names,
)

CONFIG = str(Path(__file__).resolve().parents[2] / "configs" / "ci.yaml")
SECTIONS = list(section_names(TrainConfig))
NONE = (None, False, 3, [])


def nested(name: str, value: Any) -> dict[str, Any]:
    """``nested("a.b", 3)`` is ``{"a": {"b": 3}}``."""
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


def reason(where: str, name: str, value: Any) -> str:
    return f"{where}: {name} must be a section of settings; got {json.dumps(value)}; leave it out for the defaults"


@pytest.fixture(scope="module")
def parser() -> Any:
    made = make_parser("r2rec_jax.train", "")
    add_train_config(made)
    return made


def test_all_sections_are_known() -> None:
    assert {"data", "data.table", "thoughts.endpoint", "pretrain.mix", "parallel"} <= set(SECTIONS)
    assert len(SECTIONS) == sum(isinstance(value, dict) for value in as_plain(TrainConfig()).values()) + 5
    assert not list(section_names(ExperimentList))


@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize("name", SECTIONS)
def test_what_is_no_section_is_refused(name: str, value: Any) -> None:
    for plain in (nested(name, value), {name: value}):
        with pytest.raises(BadInput) as refused:
            check_sections(TrainConfig, plain, "a.yaml")
        assert str(refused.value) == reason("a.yaml", name, value)
    check_sections(TrainConfig, nested(name, {}), "a.yaml")


@pytest.mark.parametrize(("name", "value"), zip(SECTIONS, cycle(NONE)))
def test_a_file_alone_or_over_another(parser: Any, tmp_path: Path, name: str, value: Any) -> None:
    """jsonargparse took the defaults of some, in the place of what an earlier file says, and broke at others."""
    file = tmp_path / "over.yaml"
    file.write_text(yaml.safe_dump(nested(name, value) | {"note": "mine"}))
    for argv in (["--config", str(file)], ["--config", CONFIG, f"--config={file}"]):
        with pytest.raises(BadInput) as refused:
            parse_train_config(parser, argv)
        assert str(refused.value) == reason(str(file), name, value)


def test_what_a_flag_fills_again_is_refused_too(parser: Any, tmp_path: Path) -> None:
    file = tmp_path / "over.yaml"
    file.write_text("data:\n#  eval_users: 5\nnote: mine\n")
    with pytest.raises(BadInput, match="data must be a section"):
        parse_train_config(parser, ["--config", CONFIG, "--config", str(file), "--data.eval_users=12"])
    with pytest.raises(BadInput, match=r"data\.table must be a section of settings; got null"):
        parse_train_config(parser, ["--config", CONFIG, '--data={"table": null}'])


def test_an_empty_section_and_a_file_of_one_are_sections(parser: Any, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("eval_users: 7\nvalidation_users: 3\n")
    (tmp_path / "run.yaml").write_text("data: data.yaml\nsft: {}\n")
    config = parse_train_config(parser, ["--config", CONFIG, "--config", str(tmp_path / "run.yaml")])[0]
    own = parse_train_config(parser, ["--config", CONFIG])[0]
    assert config.data.eval_users == 7 and config.sft == own.sft


def test_settings_that_are_kept_and_data_of_the_baselines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match=r"^run\.json: sft must be a section of settings; got 3"):
        from_plain(TrainConfig, {"sft": 3}, "run.json")
    file = tmp_path / "data.yaml"
    file.write_text("data: 3\n")
    assert baselines(["--models=popularity", "--data", str(file), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"error: {reason(str(file), 'data', 3)}\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("entry", [
    "train", "prepare", "evaluate", "evaluate --endpoint=URL", "evaluate --compare", "recommend", "export", "score",
    "experiments", "baselines.__main__", "bench.__main__", "bench.recbole"])
def test_every_flag_says_what_it_is(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a setting that is what its docstring says, which is read one field an entry: "user, item: ..." is lost."""
    def show(parser: ArgumentParser, _: Any = None) -> None:
        bare = [action.option_strings[-1] for action in parser._actions if action.option_strings and not action.help]
        raise BadInput(f"bare: {bare}")

    monkeypatch.setattr(ArgumentParser, "parse_args", show)
    module, *argv = entry.split()
    with pytest.raises(BadInput, match=r"^bare: \[\]$"):
        import_module(f"r2rec_jax.{module}").run(argv)


def test_a_device_without_room_names_what_helps(capsys: pytest.CaptureFixture) -> None:
    def full(argv: Any) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes.")

    assert run_entry(full, []) == EXIT_FAILED
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(name in said for name in ("RESOURCE_EXHAUSTED", "grpo.micro_prompts", "evaluate.batch_size", "--plan"))
