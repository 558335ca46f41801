"""Other negatives of a prepared folder, the global-time split in one, and every mismatch refused by its name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from r2rec_jax.config import DataConfig, EvaluateConfig, GraphConfig, PromptConfig, TrainConfig
from r2rec_jax.data.candidates import SAMPLERS
from r2rec_jax.stages.evaluation import make_exam
from r2rec_jax.stages.hosted import exam_of_prepared
from r2rec_jax.stages.manifest import RECORDED
from r2rec_jax.stages.prepare import prepare, prepare_stage
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.run import RunFolder
from r2rec_jax.stages.workspace import Workspace
from tests.synthetic import write_ml100k

COUNTS = {"eval_users": 8, "validation_users": 4, "sft_queries": 6, "rl_queries": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ml100k(tmp_path_factory.mktemp("source"))


def config(source: Path, **changes) -> TrainConfig:
    return TrainConfig(data=DataConfig(**{"path": str(source), **COUNTS} | changes), graph=GraphConfig(chains=2))


@pytest.fixture(scope="module")
def folder(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder with uniform negatives; tests that change it work on a copy."""
    out = tmp_path_factory.mktemp("folder") / "prepared"
    prepare(config(source), out)
    return out


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


@pytest.mark.parametrize("method", ["generate", "likelihood"])
@pytest.mark.parametrize("users", [None, 2])
def test_queries_that_the_data_has_not_are_not_evaluated(source: Path, tmp_path: Path, users: int | None,
                                                         method: Literal["generate", "likelihood"]) -> None:
    """Before a tokenizer or weights are looked for."""
    none = config(source, validation_users=0)
    work: Any = SimpleNamespace(config=none, prepared=prepare(none, tmp_path / "prepared"))
    wanted = EvaluateConfig(split="validation", method=method, users=users)
    with pytest.raises(ValueError, match=r"^data\.validation_users must be >= 1 to evaluate validation queries; got 0"):
        make_exam(work, wanted)
    with pytest.raises(ValueError, match=r"^data\.validation_users must be >= 1 to evaluate validation queries; got 0"):
        exam_of_prepared(tmp_path / "prepared", PromptConfig(), wanted, tmp_path / "out")


def test_other_negatives_are_those_of_their_own_preparation(source: Path, folder: Path, tmp_path: Path) -> None:
    prepared = Prepared.load(folder)
    assert prepared.negatives == "uniform" and prepared.with_negatives("uniform") is prepared
    for sampler in ("popularity", "disliked"):
        own = prepare(config(source, negatives=sampler), tmp_path / sampler)
        other = prepared.with_negatives(sampler)
        assert other.negatives == own.negatives == sampler
        for split in ("test", "validation"):
            assert list(other.queries[split]) == list(own.queries[split]) != list(prepared.queries[split])
            assert [q.query_id for q in other.queries[split]] == [q.query_id for q in prepared.queries[split]]
            assert all(other.by_id[query.query_id] == query for query in own.queries[split])
        for split in ("sft", "rl"):
            assert other.queries[split] == prepared.queries[split]
        graph = prepared.graph
        assert prepared.with_negatives(sampler).graph is graph and other.chains is prepared.chains
        back = other.with_negatives("uniform")
        assert list(back.queries["test"]) == list(prepared.queries["test"])
        users = {query.user_idx for query in own.queries["test"]}
        stranger = next(user.user_id for i, user in enumerate(own.dataset.users) if i not in users)
        assert other.find_query(stranger) == own.find_query(stranger) != prepared.find_query(stranger)


def test_lists_do_not_depend_on_which_sampler_is_configured(source: Path, folder: Path, tmp_path: Path) -> None:
    first = Prepared.load(folder).manifest
    second = prepare(config(source, negatives="popularity"), tmp_path / "out").manifest
    assert first["queries"] == second["queries"]
    assert first["candidates"]["disliked"] == second["candidates"]["disliked"]
    lists = {}
    for manifest, place in ((first, folder), (second, tmp_path / "out")):
        rows = [json.loads(line) for line in (place / manifest["candidates"]["popularity"]).read_text().splitlines()]
        lists[len(rows)] = {row["query_id"]: row["candidates"] for row in rows}
    assert set(lists) == {12, 22}  # test and validation; configured, training queries as well
    assert lists[12].items() <= lists[22].items()
    line = json.loads((folder / first["queries"]).read_text().splitlines()[0])
    assert sorted(line) == ["place", "query_id", "split", "target", "user_id"]


def test_likes_alone_have_no_disliked_candidates(tmp_path: Path) -> None:
    source = write_ml100k(tmp_path / "likes")
    rows = [line.split("\t") for line in (source / "u.data").read_text().splitlines()]
    (source / "u.data").write_text("".join("\t".join([user, item, "5", time]) + "\n" for user, item, _, time in rows))
    made = prepare(config(source), tmp_path / "out")
    assert set(made.manifest["candidates"]) == {"uniform", "popularity"}
    for prepared in (made, Prepared.load(tmp_path / "out")):
        with pytest.raises(ValueError, match=r"must be one of uniform, popularity, .*'disliked': .* ml-100k has none"):
            prepared.with_negatives("disliked")
    with pytest.raises(ValueError, match="disliked needs events that are no likes"):
        prepare(config(source, negatives="disliked"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_global_time_is_prepared_and_read_back(source: Path, tmp_path: Path) -> None:
    changes = {"split": "global-time", "eval_users": 3, "validation_users": 3, "sft_queries": 4, "rl_queries": 4,
               "min_history": 3}
    made = prepare(config(source, **changes), tmp_path / "out")
    back = Prepared.load(tmp_path / "out")
    assert back.queries == made.queries and set(back.candidates) == set(SAMPLERS)
    events, cut = back.dataset.interactions, back.counts["validation_cut"]
    assert ((events.timestamp < cut) == back.training).all()
    for split in ("test", "validation"):
        for query in back.queries[split]:
            user_id = back.dataset.users[query.user_idx].user_id
            assert replace(back, queries={split: []}).find_query(user_id, split) == query
            assert events.timestamp[events.offsets[query.user_idx] + query.place] >= cut
    everybody = config(source, **changes | {"eval_users": back.counts["eligible_users"]})
    have = {query.user_idx for query in prepare(everybody, tmp_path / "all").queries["test"]}
    without = next(user.user_id for i, user in enumerate(back.dataset.users) if i not in have)
    with pytest.raises(ValueError, match=rf"like behind the cut .*; user '{without}' has none; name another user"):
        back.find_query(without)


def test_a_foreign_file_is_named(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    (copy / ".DS_Store").touch()
    Prepared.load(copy)
    (copy / "candidates-uniform-0123456789abcdef.jsonl").touch()
    (copy / "old").mkdir()
    with pytest.raises(ValueError, match=r"also has candidates-uniform-0123456789abcdef\.jsonl, old; move it away"):
        Prepared.load(copy)


@pytest.mark.parametrize("entry", ["counts", "candidates", "sources"])
def test_a_manifest_without_an_entry_names_it(folder: Path, tmp_path: Path, entry: str) -> None:
    edit(copy_of(folder, tmp_path), lambda manifest: manifest.pop(entry))
    with pytest.raises(ValueError, match=rf"manifest\.json must have the entries .* lacks {entry};"):
        Prepared.load(tmp_path / "copy")


def edit(folder: Path, change) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_manifest_cannot_name_files_without_hash_or_elsewhere(folder: Path, tmp_path: Path) -> None:
    copy = copy_of(folder, tmp_path)
    name = json.loads((copy / "manifest.json").read_text())["queries"]
    digest = json.loads((copy / "manifest.json").read_text())["files"][name]
    edit(copy, lambda manifest: manifest["files"].pop(name))
    with pytest.raises(ValueError, match=f"breaks this for {name};"):
        Prepared.load(copy)
    edit(copy, lambda manifest: manifest["files"].update({name: digest, "../other.jsonl": digest}))
    with pytest.raises(ValueError, match=r"breaks this for \.\./other\.jsonl;"):
        Prepared.load(copy)


def test_other_settings_are_named(source: Path, folder: Path) -> None:
    Prepared.load(folder, config=config(source))
    Prepared.load(folder, config=config(source.parent / "elsewhere"))  # where the data lie does not matter
    other = replace(config(source, split_seed=3, positive_above=2.5), train_seed=7)
    with pytest.raises(ValueError, match=r"with other settings: data\.positive_above \(3\.0 there, 2\.5 expected\); "
                                         r"data\.split_seed \(0 there, 3 expected\); train_seed \(0 there, 7 exp"):
        Prepared.load(folder, config=other)


def test_a_run_refuses_a_folder_that_it_did_not_prepare(source: Path, tmp_path: Path) -> None:
    """Same settings, other source files: the folder is whole, and not the run's."""
    run_config = replace(config(source), run_dir=str(tmp_path / "run"))
    with RunFolder.open(run_config, provenance={}) as run:
        result = prepare_stage(Workspace(run))
    assert set(result) == set(RECORDED)
    run.mark_done("prepare", 1.0, result)
    assert Workspace(run).prepared.manifest["sources"] == result["sources"]
    other = write_ml100k(tmp_path / "other", seed=1)
    prepare(replace(run_config, data=replace(run_config.data, path=str(other))), run.folder("prepare"))
    with pytest.raises(ValueError, match=r"is not the folder that this run prepared: sources\.u\.data"):
        _ = Workspace(run).prepared
    shutil.rmtree(run.folder("prepare"))
    prepare(replace(run_config, data=replace(run_config.data, candidates=21)), run.folder("prepare"))
    with pytest.raises(ValueError, match=r"other settings: data\.candidates \(21 there, 20 expected\)"):
        _ = Workspace(run).prepared
