"""``python -m r2rec_jax.baselines``: frozen data, ranks and result files; done once, resumed, refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2rec_jax.baselines.__main__ import data_config, main, model_names
from r2rec_jax.baselines.classical import NAMES
from r2rec_jax.baselines.storage import load_model
from r2rec_jax.config import DataConfig
from r2rec_jax.evaluation.ranks import read_ranks
from r2rec_jax.stages import baselines as stage
from r2rec_jax.stages.prepared import Prepared
from tests.synthetic import write_ml100k

SAMPLERS = ("uniform", "popularity", "disliked")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ml100k(tmp_path_factory.mktemp("data"))


def _arguments(data: Path, out: Path, *more: str, models: str = "popularity,item-knn") -> list[str]:
    return ["--models", models, "--data", "ml-100k", "--data_path", str(data), "--eval_users", "30", "--out",
            str(out / "runs"), "--results", str(out / "results"), *more]


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baselines")
    assert main(_arguments(data, out, "--seeds", "0", "1", "--json", str(out / "all.json"))) == 0
    return out


def _refused(capsys: pytest.CaptureFixture[str], argv: list[str]) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_everything_is_written(done: Path) -> None:
    results = sorted(path.name for path in (done / "results").iterdir())
    assert results == [f"baselines_ml-100k_{name}_{seed}.json" for name in ("item-knn", "popularity")
                       for seed in (0, 1)]
    folder = done / "runs" / "ml-100k" / "seed-1" / "item-knn"
    result = json.loads((folder / "result.json").read_text())
    assert result == json.loads((done / "results" / "baselines_ml-100k_item-knn_1.json").read_text())
    assert [row["negatives"] for row in result["rows"]] == list(SAMPLERS)
    assert {row["seed"] for row in result["rows"]} == {1} and result["settings"]["neighbours"] == 50
    assert result["training"]["validation"]["metric"] == "mrr" and result["training"]["validation"]["users"] == 30
    assert all({"hr@1", "hr@10", "ndcg@10", "mrr", "full_hr@10", "full_ndcg@10"} <= row.keys()
               for row in result["rows"])
    assert len(json.loads((done / "all.json").read_text())["rows"]) == 2 * 2 * 3


def test_ranks_are_those_of_the_loaded_model_on_the_frozen_candidates(done: Path) -> None:
    folder = done / "runs" / "ml-100k" / "seed-0"
    prepared = Prepared.load(folder / "prepared")
    model, params = load_model(folder / "item-knn" / "params.safetensors", stage.training_events(prepared))
    for name, records in stage.judge_model(model, params, prepared).items():
        assert read_ranks(folder / "item-knn" / f"ranks-test-{name}.jsonl") == records
        queries = prepared.with_negatives(name).queries["test"]
        assert [record.query_id for record in records] == [query.query_id for query in queries]
    assert {record.full_rank for record in records} > {1.0} and len(records) == 30


def test_models_judged_in_parts_give_the_same(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = done / "runs" / "ml-100k" / "seed-0"
    prepared = Prepared.load(folder / "prepared")
    model, params = load_model(folder / "item-knn" / "params.safetensors", stage.training_events(prepared))
    whole, value = stage.judge_model(model, params, prepared), stage.validation(model, prepared)(params)
    monkeypatch.setattr(stage, "SCORES_AT_ONCE", 7 * model.events.n_items)
    assert stage.judge_model(model, params, prepared) == whole
    assert stage.validation(model, prepared)(params) == value


def test_a_finished_model_is_not_run_again(data: Path, done: Path, capsys: pytest.CaptureFixture[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "train", lambda *a, **k: pytest.fail("trained again"))
    (done / "results" / "baselines_ml-100k_popularity_0.json").unlink()
    assert main(_arguments(data, done)) == 0
    assert "popularity seed 0: finished before" in capsys.readouterr().err
    assert (done / "results" / "baselines_ml-100k_popularity_0.json").is_file()


def test_other_settings_are_refused_by_name_unless_overwritten(data: Path, tmp_path: Path,
                                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_arguments(data, tmp_path, models="item-knn")) == 0
    other = _arguments(data, tmp_path, "--item_knn.neighbours", "7", models="item-knn")
    assert "result of other settings: settings.neighbours differ" in _refused(capsys, other)
    assert main([*other, "--overwrite"]) == 0
    result = json.loads((tmp_path / "results" / "baselines_ml-100k_item-knn_0.json").read_text())
    assert result["settings"]["neighbours"] == 7
    fewer = [*other, "--eval_users", "20"]
    assert "prepared with other settings: data.eval_users" in _refused(capsys, fewer)


def test_a_result_file_of_other_data_is_refused_before_training_unless_overwritten(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    argv = {name: [*_arguments(write_ml100k(tmp_path / name, seed=seed), tmp_path, models="popularity"),
                   "--out", str(tmp_path / f"runs-{name}")] for seed, name in enumerate("ab")}
    copy = tmp_path / "results" / "baselines_ml-100k_popularity_0.json"
    assert main(argv["a"]) == 0
    first = copy.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(stage, "train", lambda *a, **k: pytest.fail("trained before it was refused"))
        said = _refused(capsys, argv["b"])
    assert f"{copy} holds a result of other settings: " in said and "data.sources.u.data" in said
    assert "choose another --results" in said and copy.read_bytes() == first
    assert main(argv["a"]) == 0 and json.loads(copy.read_text()) == json.loads(first)
    assert main([*argv["b"], "--overwrite"]) == 0
    assert json.loads(copy.read_text())["identity"]["data"] != json.loads(first)["identity"]["data"]


def test_a_seed_out_of_range_is_refused_before_the_others_run(data: Path, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    wrong = _arguments(data, tmp_path, "--seeds", "0", str(2**32), models="popularity")
    assert f"--seeds must be in 0..2**32 - 1; got {2**32}" in _refused(capsys, wrong)
    assert not list(tmp_path.iterdir())


def test_other_data_under_the_same_settings_are_refused(data: Path, tmp_path: Path,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    assert main(_arguments(data, tmp_path, models="popularity")) == 0
    other = tmp_path / "other"
    shutil.copytree(data, other)
    (other / "u.user").write_text((other / "u.user").read_text().replace("|M|", "|F|"))
    assert "files at hand; u.user differ" in _refused(capsys, _arguments(other, tmp_path, models="popularity"))
    assert main([*_arguments(other, tmp_path, models="popularity"), "--overwrite"]) == 0


def test_test_targets_and_later_events_do_not_change_what_is_learned(done: Path) -> None:
    """Only training edges reach a model: no query's target is among them."""
    prepared = Prepared.load(done / "runs" / "ml-100k" / "seed-0" / "prepared")
    events = stage.training_events(prepared)
    learned = set(zip(events.user_idx.tolist(), events.items.tolist(), strict=True))
    for split in ("test", "validation"):
        assert len(prepared.queries[split]) == 30
        assert not learned & {(query.user_idx, query.target) for query in prepared.queries[split]}


@pytest.mark.parametrize(("argv", "reason"), [
    (["--models", "svd"], "--models, where it is not all, must be distinct names among popularity"),
    (["--models", "ease,ease"], "--models, where it is not all, must be distinct names"),
    (["--data", "netflix"], "netflix"),
    (["--seeds", "1", "1"], "--seeds must be distinct"),
    (["--ease.l2", "0"], "ease.l2 must be > 0"),
    (["--eval_users", "5000"], "data.eval_users must be <= "),
])
def test_mistakes_are_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str],
                               reason: str) -> None:
    assert reason in _refused(capsys, [*_arguments(data, tmp_path), *argv])


def test_names_of_models_and_data(tmp_path: Path) -> None:
    assert model_names("all") == list(NAMES) and model_names("ease, popularity") == ["ease", "popularity"]
    assert data_config("ml-100k", None, None).eval_users == 934 and data_config("ml-1m", "x", None).eval_users == 1000
    file = tmp_path / "run.yaml"
    file.write_text("data:\n  name: ml-1m\n  eval_users: 55\n  validation_users: 5\n  negatives: popularity\n")
    assert data_config(str(file), "y", None) == DataConfig(name="ml-1m", eval_users=55, validation_users=5,
                                                           negatives="popularity", path="y")
    config = stage.BaselineConfig(data_config(str(file), None, 44), ["ease"])
    prepare: Any = config.prepare_config(3).data
    assert (prepare.eval_users, prepare.validation_users, prepare.split_seed) == (44, 44, 3)


def test_scores_that_are_not_finite_stop_the_run(done: Path) -> None:
    prepared = Prepared.load(done / "runs" / "ml-100k" / "seed-0" / "prepared")
    model, params = load_model(done / "runs" / "ml-100k" / "seed-0" / "popularity" / "params.safetensors",
                               stage.training_events(prepared))
    with pytest.raises(RuntimeError, match="scores of popularity must be finite"):
        stage.judge_model(model, {"edges": np.full_like(params["edges"], np.nan)}, prepared)
