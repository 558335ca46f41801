"""The prepared folder: freezing, loading, refusing, and the command line."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r2rec_jax.config import DataConfig, GraphConfig, PromptConfig, TableConfig, TrainConfig
from r2rec_jax.prepare import main, print_counts
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.rendering import distinct_chains

SMALL = {"eval_users": 6, "validation_users": 3, "sft_queries": 8, "rl_queries": 8}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up data set in MovieLens-100K's format, one duplicate row."""
    folder = tmp_path_factory.mktemp("ml-100k")
    rng = np.random.default_rng(0)
    (folder / "u.genre").write_text("unknown|0\nDrama|1\n")
    (folder / "u.item").write_text("".join(f"{i}|Film {i} ({1950 + i})|||u|0|1\n" for i in range(1, 61)))
    (folder / "u.user").write_text("".join(f"{u}|30|F|artist|1\n" for u in range(1, 25)))
    rows = [f"{u}\t{i}\t{rng.integers(2, 6)}\t{rng.integers(1000)}\n" for u in range(1, 25) for i in range(1, 61)
            if rng.random() < 0.4]
    (folder / "u.data").write_text("".join([*rows, rows[0]]))
    return folder


def config(source: Path, **changes) -> TrainConfig:
    return TrainConfig(data=DataConfig(path=str(source), **SMALL), **changes)


def test_load_gives_what_prepare_wrote(source: Path, tmp_path: Path) -> None:
    made = prepare(config(source), tmp_path / "out")
    back = Prepared.load(tmp_path / "out")
    assert back.queries == made.queries and back.chains == made.chains and back.counts == made.counts
    assert back.dataset.items == made.dataset.items and back.dataset.users == made.dataset.users
    assert back.dataset.rating_scale == (1.0, 5.0) and back.dataset.domain == "movies"
    np.testing.assert_array_equal(back.training, made.training)
    np.testing.assert_array_equal(back.dataset.interactions.place, made.dataset.interactions.place)
    assert back.counts["duplicates"] == 1 and back.counts["test_queries"] == 6
    assert sum(back.counts["chain_coverage"]["sft"].values()) == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("negatives", ["uniform", "disliked"])
def test_coverage_is_that_of_prompts(negatives: str, source: Path, tmp_path: Path,
                                     capsys: pytest.CaptureFixture) -> None:
    """A chain that holds a disliked candidate is not shown, and counted among those that are left out."""
    changes = {"data": DataConfig(path=str(source), negatives=negatives, **SMALL)}
    made = prepare(replace(config(source), **changes), tmp_path / "out")
    left_out = 0
    for split, queries in made.queries.items():
        shown = [len(distinct_chains(made, query, PromptConfig())) for query in queries]
        assert made.counts["chain_coverage"][split] == {str(n): shown.count(n) for n in range(6)}
        left_out += sum(len(set(made.chains_of(query))) for query in queries) - sum(shown)
    assert made.counts["left_out_chains"] == left_out and (left_out > 0) == (negatives == "disliked")
    print_counts(made.manifest, tmp_path / "out")
    assert ("chains with a candidate, not shown" in capsys.readouterr().out) == (negatives == "disliked")


def test_views_of_a_query_show_nothing_after_the_target(source: Path, tmp_path: Path) -> None:
    made = prepare(config(source), tmp_path / "out")
    for query in made.by_id.values():
        history, liked = made.history(query), made.liked(query, 3)
        assert len(history) == query.place and query.target not in dict(history)
        assert liked == [event for event in reversed(history) if event[1] > 3][:3]
        assert made.chains_of(query) is made.chains[query.query_id]
        assert all(query.target not in (chain.item0, chain.item1) for chain in made.chains[query.query_id])
    events = made.dataset.interactions
    expected = np.bincount(events.item_idx[made.training & (events.rating > 3)], minlength=60)
    np.testing.assert_array_equal(made.item_scores, expected)


def test_any_eligible_user_has_a_query(source: Path, tmp_path: Path) -> None:
    few = prepare(config(source), tmp_path / "few")
    all_users = {**SMALL, "eval_users": 20, "sft_queries": 4, "rl_queries": 4}
    more = prepare(TrainConfig(data=DataConfig(path=str(source), **all_users)), tmp_path / "more")
    for query in more.queries["test"]:
        user_id = few.dataset.users[query.user_idx].user_id
        found = few.find_query(user_id)  # frozen for six of them, drawn now for the others: the same
        assert found == query and few.chains_of(found) == more.chains[query.query_id]
    with pytest.raises(ValueError, match="got '999'"):
        few.find_query("999")


def test_likes_are_named_on_any_scale(source: Path, tmp_path: Path) -> None:
    """Ratings of a table are mapped, so that no message can name the threshold."""
    events = [line.split("\t") for line in (source / "u.data").read_text().splitlines()] + [["few", "1", "5", "1"]]
    (tmp_path / "events.csv").write_text("user_id,item_id,rating,timestamp\n" + "".join(
        f"{user},{item},{20 * int(rating)},{time}\n" for user, item, rating, time in events))
    data = DataConfig(name="table", path=str(tmp_path / "events.csv"), table=TableConfig(positive_above=60), **SMALL)
    made = prepare(TrainConfig(data=data), tmp_path / "table")
    with pytest.raises(ValueError, match=r"^a user needs at least 6 likes; user 'few' has 1; name another user$"):
        made.find_query("few")


def test_same_settings_same_bytes_and_seeds_part(source: Path, tmp_path: Path) -> None:
    first = prepare(config(source), tmp_path / "a").manifest
    assert prepare(config(source), tmp_path / "b").manifest == first
    other = prepare(config(source, train_seed=1), tmp_path / "c").manifest
    assert other["queries"] == first["queries"] and other["chains"] != first["chains"]
    fewer = prepare(config(source, graph=GraphConfig(chains=2)), tmp_path / "d")
    before = Prepared.load(tmp_path / "a").chains
    assert all(drawn == before[query_id][:2] for query_id, drawn in fewer.chains.items())


def test_a_changed_or_missing_file_is_named(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    manifest = prepare(config(source), folder).manifest
    for name in manifest["files"]:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[:-1] + b" ")
        with pytest.raises(ValueError, match=f"sha256 of {name} must be"):
            Prepared.load(folder)
        (folder / name).unlink()
        with pytest.raises(ValueError, match=f"{name} must be in"):
            Prepared.load(folder)
        (folder / name).write_bytes(raw)
    (folder / "manifest.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match=r"format of .* must be 2; got 0"):
        Prepared.load(folder)
    with pytest.raises(ValueError, match=r"must hold a manifest\.json"):
        Prepared.load(tmp_path)


def test_a_prepared_folder_is_replaced_and_another_refused(source: Path, tmp_path: Path) -> None:
    prepare(config(source, train_seed=1), tmp_path / "out")
    prepare(config(source), tmp_path / "out")
    assert Prepared.load(tmp_path / "out").manifest["config"]["train_seed"] == 0
    assert sum(path.name.startswith("chains-") for path in (tmp_path / "out").iterdir()) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other files"):
        prepare(config(source), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_the_current_folder_is_refused_before_the_data_are_read(tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="the output must not be the current folder"):
        prepare(config(tmp_path / "nowhere"), ".")


@pytest.mark.parametrize(("manifest", "expected"), [
    ('{"name": "webapp"}', "must have an object 'files'; got none"),
    ('{"files": {"app.js": "0"}}', "must have the format of a prepared folder"),
    ('["app.js"]', "must be a JSON object"),
    ('{"format": 2, "files": {', "must be JSON"),
])
def test_another_programs_manifest_is_no_prepared_folder(source: Path, tmp_path: Path, manifest: str,
                                                          expected: str) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "manifest.json").write_text(manifest)
    (web / "app.js").write_text("precious")
    with pytest.raises(ValueError, match=f"{expected}.*; choose another output, or delete the folder"):
        prepare(config(source), web)
    assert (web / "manifest.json").read_text() == manifest and (web / "app.js").read_text() == "precious"


@pytest.mark.parametrize("version", [0, 2])
def test_a_prepared_folder_with_other_files_is_not_replaced(source: Path, tmp_path: Path, version: int) -> None:
    out = tmp_path / "out"
    manifest = prepare(config(source, train_seed=1), out).manifest
    (out / "manifest.json").write_text(json.dumps({**manifest, "format": version}))
    (out / "notes").mkdir()
    (out / "notes" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"also has notes; move it away, or choose another output"):
        prepare(config(source), out)
    assert (out / "notes" / "thesis.tex").exists()
    (out / "notes").rename(tmp_path / "notes")
    (out / ".DS_Store").touch()
    prepare(config(source), out)
    assert Prepared.load(out).manifest["config"]["train_seed"] == 0


def test_a_failure_while_writing_leaves_the_old_folder(source: Path, tmp_path: Path,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    old = prepare(config(source), tmp_path / "out").manifest

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("r2rec_jax.stages.prepare.save_queries", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(config(source, train_seed=5), tmp_path / "out")
    assert Prepared.load(tmp_path / "out").manifest == old
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def arguments(source: Path, out: Path, *more: str) -> list[str]:
    return [*(f"--data.{key}={value}" for key, value in SMALL.items()), "--data.path", str(source), "--out", str(out),
            *more]


def test_command_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(source, tmp_path / "out", "--json", str(tmp_path / "counts.json"))) == 0
    shown = capsys.readouterr().out
    assert "eligible users" in shown and "validation" in shown
    written = json.loads((tmp_path / "counts.json").read_text())
    assert written["counts"] == Prepared.load(tmp_path / "out").counts and written["folder"] == str(tmp_path / "out")


def test_what_was_left_out_is_shown_where_it_is_counted(source: Path, tmp_path: Path,
                                                        capsys: pytest.CaptureFixture) -> None:
    """A table is read for its events' items alone, so that nobody knows how many others its file of items has."""
    events = [row.split("\t")[:3] for row in (source / "u.data").read_text().splitlines()]
    (tmp_path / "events.csv").write_text("".join(f"{','.join(row)}\n" for row in [["user_id", "item_id", "rating"],
                                                                                   *events, ["99", "98", "5"]]))
    table = TableConfig(timestamp=None)
    data = DataConfig(name="table", path=str(tmp_path / "events.csv"), k_core=5, table=table, **SMALL)
    counts = prepare(TrainConfig(data=data), tmp_path / "table").counts
    print_counts(Prepared.load(tmp_path / "table").manifest, tmp_path / "table")
    shown = capsys.readouterr().out
    for what, dropped in (("interactions", counts["k_core_events"]), ("users", 1), ("items", counts["k_core_items"])):
        assert re.search(rf"{what} outside the k-core, left out +\S +{dropped} ", shown), shown
    assert "nobody rated" not in shown
    (tmp_path / "ml").mkdir()
    for file in source.iterdir():
        (tmp_path / "ml" / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "ml" / "u.item").open("a") as file:
        file.write("61|Nobody's Film (1990)|||u|0|1\n")
    print_counts(prepare(config(tmp_path / "ml"), tmp_path / "movies").manifest, tmp_path)
    shown = capsys.readouterr().out
    assert re.search(r"items nobody rated, left out +\S +1 ", shown) and "k-core" not in shown


@pytest.mark.parametrize(("more", "expected"), [
    (("--data.eval_users", "500"), "data.eval_users must be <= 23"),
    (("--data.path", "/nowhere"), "data.path must be a folder"),
    (("--data.eval_usrs", "5"), "data.eval_usrs"),
    (("--data.min_positives", "1"), "data.min_positives must be >= 3"),
])
def test_command_line_refuses_in_one_line(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
                                          more: tuple[str, ...], expected: str) -> None:
    assert main(arguments(source, tmp_path / "out", *more)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and expected in lines[0]
    assert not (tmp_path / "out").exists()
