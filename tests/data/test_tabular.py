"""Tables of one's own: columns by name, ratings of any scale, attributes, and the whole way to a prepared folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.config import DataConfig, GraphConfig, TableConfig, TrainConfig, as_plain
from r2rec_jax.data.fetch import changed_sources, locate
from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.load import load_dataset
from r2rec_jax.data.tabular import map_ratings
from r2rec_jax.prompts.templates import wording
from r2rec_jax.stages.cli import add_train_config, make_parser, parse_train_config
from r2rec_jax.stages.keys import WITHOUT_EFFECT, stage_key
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.stages.run import config_from_plain

PLAYS = """listener,song,score,when
ann,s2,9,2024-05-01T18:30:00+02:00
bob,s1,2,2024-05-03
ann,s1,7,2024-05-01T16:29:59Z
ann,s9,6,2024-05-02T08:00:00Z
bob,s1,10,2024-05-04
"""
SONGS = """id,name,year,tags,artist_name
s1,Blue Train,1957,jazz| hard bop |,A. Player
s2,"Hey, Hey",,,
s3,Never Played,1999,rock,The Band
"""
LISTENERS = "who,age,home_town\nbob,44,\nzoe,9,Rome\nann,30,Oslo\n"

TABLE = TableConfig(interactions="plays.csv", user="listener", item="song", rating="score", timestamp="when",
                    positive_above=6.0, rating_range=(1.0, 10.0), items="songs.csv", item_id="id", title="name",
                    year="year", categories="tags", details=("artist_name",), users="listeners.csv", user_id="who",
                    attributes=("age", "home_town"), noun="song")


CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def configuration(name: str, *arguments: str) -> TrainConfig:
    parser = make_parser("test", "")
    add_train_config(parser)
    return parse_train_config(parser, ["--config", str(CONFIGS / name), *arguments])[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("plays.csv", PLAYS), ("songs.csv", SONGS), ("listeners.csv", LISTENERS)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def load(path: Path, table: TableConfig = TABLE, **changes) -> Dataset:
    return load_dataset(DataConfig(name="table", threads=1, table=table, **changes), path)


def test_a_table_becomes_a_data_set(folder: Path) -> None:
    dataset = load(folder)
    assert [(u.user_id, u.attributes) for u in dataset.users] == [
        ("ann", (("age", "30"), ("home town", "Oslo"))), ("bob", (("age", "44"),))]
    assert [(i.item_id, i.title, i.year, i.genres, i.details) for i in dataset.items] == [
        ("s1", "Blue Train", 1957, ("jazz", "hard bop"), (("artist name", "A. Player"),)),
        ("s2", "Hey, Hey", None, (), ()), ("s9", "s9", None, (), ())]
    assert dataset.history(0) == [(0, 4.0), (1, 5.0), (2, 3.0)]  # 7, 9, 6 of 1..10 with likes above 6
    assert dataset.history(1) == [(0, 5.0)]  # the later of two
    assert dataset.interactions.timestamp.tolist()[:2] == [1714580999000, 1714581000000]  # offsets count
    assert dataset.domain == "generic:song:songs" and wording(dataset.domain).items == "songs"
    assert dataset.notes == {
        "rows": 5, "duplicates": 1, "users_without_interactions": 0, "items_without_interactions": 0,
        "ratings_mapped": 4, "items_without_attributes": 1, "items_without_title": 1, "users_without_attributes": 0}
    assert sorted(dataset.sources) == ["listeners.csv", "plays.csv", "songs.csv"]


def test_the_file_of_events_may_be_the_path(folder: Path) -> None:
    table = replace(TABLE, interactions=None)
    config = DataConfig(name="table", path=str(folder / "plays.csv"), table=table)
    assert locate(config) == folder / "plays.csv"
    assert load(folder / "plays.csv", table).items == load(folder).items
    with pytest.raises(ValueError, match=r"interactions must name the file .* listeners\.csv, plays\.csv, songs\.csv"):
        load(folder, table)
    with pytest.raises(ValueError, match=r"data\.path must be the folder with your files"):
        locate(replace(config, path=None))
    with pytest.raises(ValueError, match=r"data\.path must be a folder"):
        locate(replace(config, path=str(folder / "none.csv")))
    with pytest.raises(ValueError, match=r"data\.path must be a folder when data\.table\.interactions is given"):
        load(folder / "songs.csv")


def test_the_least_table_is_users_and_items(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("u,i\n1,x\n1,y\n2,x\n", encoding="utf-8")
    dataset = load(tmp_path / "a.csv", TableConfig(user="u", item="i", rating=None, timestamp=None))
    assert dataset.history(0) == [(0, 5.0), (1, 5.0)]  # in file order, all likes
    assert dataset.domain == "generic:item:items" and dataset.items[1].title == "y"


def test_json_lines_with_lists(tmp_path: Path) -> None:
    plays = [{"user_id": "u", "item_id": n, "rating": 4, "timestamp": n} for n in range(3)]
    items = [{"item_id": 0, "title": "Zero", "tags": ["a", "b|c", " "]}, {"item_id": 1, "title": "One", "tags": []},
             {"item_id": 2, "title": None, "tags": "x|y"}]
    for name, rows in (("plays.jsonl", plays), ("items.jsonl", items)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = load(tmp_path, TableConfig(interactions="plays.jsonl", items="items.jsonl", categories="tags"))
    assert [(i.title, i.genres) for i in dataset.items] == [("Zero", ("a", "b|c")), ("One", ()), ("2", ("x", "y"))]


@pytest.mark.parametrize(("tags", "genres"), [
    ("""['hard bop', 'jazz']""", ("hard bop", "jazz")), ("""["jazz", "a, b"]""", ("jazz", "a, b")),
    ("""["rock 'n' roll", 'pop']""", ("rock 'n' roll", "pop")), ("[]", ()), ("[Live] jazz|pop", ("[Live] jazz", "pop")),
    ("['jazz'|pop", ("['jazz'", "pop"))])
def test_lists_that_were_written_as_text(folder: Path, tags: str, genres: tuple[str, ...]) -> None:
    quoted = '"' + tags.replace('"', '""') + '"'
    (folder / "songs.csv").write_text(f"id,name,year,tags,artist_name\ns1,Blue Train,1957,{quoted},{quoted}\n",
                                      encoding="utf-8")
    item = next(item for item in load(folder).items if item.item_id == "s1")
    assert item.genres == genres
    assert dict(item.details).get("artist name", "") == (tags if "|" in tags else ", ".join(genres))


def test_json_lines_may_leave_out_what_is_null(tmp_path: Path) -> None:
    plays = [{"user_id": "u", "item_id": n, "rating": 4, "timestamp": n} for n in range(3)]
    items = [{"item_id": 0, "title": "Zero"}, {"item_id": 1, "title": "One", "year": 1999}, {"item_id": 2}]
    for name, rows in (("plays.jsonl", plays), ("items.jsonl", items)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = load(tmp_path, TableConfig(interactions="plays.jsonl", items="items.jsonl", year="year"))
    assert [(i.title, i.year) for i in dataset.items] == [("Zero", None), ("One", 1999), ("2", None)]
    with pytest.raises(ValueError, match="missing price among 'item_id', 'title', 'year'"):
        load(tmp_path, TableConfig(interactions="plays.jsonl", items="items.jsonl", details=("price",)))


@pytest.mark.parametrize("text", ["1957.0", "1957.", " 1957 ", "+1957"])
def test_whole_years_are_read(text: str, folder: Path) -> None:
    change("songs.csv", "1957", text)(folder)
    assert [item.year for item in load(folder).items] == [1957, None, None]


def test_no_year_is_written_as_0_too(folder: Path) -> None:
    (folder / "songs.csv").write_text(SONGS.replace(",1957,", ",0,").replace(",1999,", ",-1,"), encoding="utf-8")
    assert [item.year for item in load(folder).items] == [None, None, None]


def test_a_run_is_prepared_from_the_files_at_hand(folder: Path, tmp_path: Path) -> None:
    dataset = load(folder)
    config = DataConfig(name="table", table=TABLE, path=str(folder))
    assert changed_sources(config, dataset.sources) == []
    assert changed_sources(replace(config, path=str(folder / "plays.csv")), dataset.sources) == []
    (folder / "plays.csv").write_text(PLAYS + "zoe,s1,3,2024-05-09\n", encoding="utf-8")
    (folder / "songs.csv").unlink()
    assert changed_sources(config, dataset.sources) == ["plays.csv", "songs.csv"]
    for gone in (None, str(folder / "nowhere")):
        assert changed_sources(replace(config, path=gone), dataset.sources) == [], "what is prepared needs it no longer"


def test_files_may_lie_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also under one base name; the names in a run's record are paths from ``data.path``."""
    other = tmp_path_factory.mktemp("other")
    places = {"plays.csv": folder / "ev" / "a.csv", "songs.csv": folder / "it" / "a.csv",
              "listeners.csv": other / "a.csv"}
    for name, place in places.items():
        place.parent.mkdir(exist_ok=True)
        (folder / name).rename(place)
    table = replace(TABLE, interactions="./ev/a.csv", items="it/a.csv", users=str(other / "a.csv"))
    names = {"ev/a.csv", "it/a.csv", str(other / "a.csv")}
    dataset = load(folder, table)
    config = DataConfig(name="table", table=table, path=str(folder))
    assert set(dataset.sources) == names and changed_sources(config, dataset.sources) == []
    for place in places.values():
        place.write_text(place.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert set(changed_sources(config, dataset.sources)) == names
    table = replace(table, interactions=None, items="../it/a.csv")
    config = DataConfig(name="table", table=table, path=str(folder / "ev" / "a.csv"))
    dataset = load(folder / "ev" / "a.csv", table)
    assert set(dataset.sources) == {"a.csv", "../it/a.csv", str(other / "a.csv")}
    assert changed_sources(config, dataset.sources) == []


@given(raw=st.lists(st.floats(-100, 100), min_size=1), above=st.floats(-100, 100), width=st.floats(0, 50))
def test_the_threshold_lies_between_three_and_four(raw: list[float], above: float, width: float) -> None:
    values = np.array(raw)
    low, high = min(values.min(), above - width), max(values.max(), above + 1)
    mapped = map_ratings(values, above, low, high)
    assert ((values > above) == (mapped > 3)).all()
    assert set(mapped.tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}
    order = np.argsort(values)
    assert (np.diff(mapped[order]) >= 0).all()


def test_scales_in_use() -> None:
    def mapped(values: list[float], above: float) -> list[int]:
        return map_ratings(np.array(values), above, values[0], values[-1]).astype(int).tolist()

    assert mapped([1, 2, 3, 4, 5], 3) == [1, 2, 3, 4, 5]
    assert mapped([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 6) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert mapped([0, 1], 0) == [1, 5] and mapped([-1, 0, 1], 0) == [1, 3, 5]


@pytest.mark.parametrize("stars", [[1, 2, 5], [2, 3, 4], [3, 4]])
def test_whole_stars_stay_as_they_are(stars: list[int], tmp_path: Path) -> None:
    """Also when the ends of the scale do not occur."""
    rows = "".join(f"u,{n},{star},{n}\n" for n, star in enumerate(stars))
    (tmp_path / "a.csv").write_text("user_id,item_id,rating,timestamp\n" + rows, encoding="utf-8")
    dataset = load(tmp_path / "a.csv", TableConfig())
    assert dataset.interactions.rating.tolist() == stars and dataset.notes["ratings_mapped"] == 0


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    return apply


@pytest.mark.parametrize(("spoil", "expected"), [
    (change("plays.csv", ",9,", ",11,"), r"plays\.csv row 1 .*score: a rating must be a number in 1\.\.10; got '11'"),
    (change("plays.csv", "2024-05-03", "May"), r"plays\.csv row 2 .*when: a time must be an ISO date; got 'May'"),
    (change("plays.csv", "score", "points"), r"plays\.csv must have .*missing score among .*'points'"),
    (change("songs.csv", "1957", "old"), r"songs\.csv row 1 .*year: a year must be a whole number of .*; got 'old'"),
    (change("songs.csv", "1957", "1957.6"), r"songs\.csv row 1 .*year: a year must be a whole .*; got '1957\.6'"),
    (change("songs.csv", "1957", "19570915"), r"songs\.csv row 1 .*year: .* at most four digits; got '19570915'; corr"),
    (change("songs.csv", "s2", "s1"), r"songs\.csv row 1 .*id: ids must be unique; 's1' comes again"),
    (change("songs.csv", "tags", "genre"), r"songs\.csv must have .*missing tags"),
    (change("listeners.csv", "who", "name"), r"listeners\.csv must have .*missing who"),
    (change("listeners.csv", "bob,44,\nzoe,9,Rome\nann", "Bob,44,\nzoe,9,Rome\nAnn"),
     r"2 of the 2 users of the events are not in column who of listeners\.csv, which has 'Ann' where .* 'ann'; write"),
    (lambda folder: (folder / "songs.csv").unlink(), r"songs\.csv must be in .*missing"),
])
def test_bad_tables_are_refused(folder: Path, spoil: Callable[[Path], None], expected: str) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=expected) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_most_items_without_attributes_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(folder)
    assert "warning" not in capsys.readouterr().err, "one of three"
    change("songs.csv", "s1,", "01,")(folder)
    assert load(folder).notes["items_without_attributes"] == 2
    told = "warning: 2 of the 3 items of the events are not in column id of songs.csv, which has '01' where the events"
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_threshold_that_nothing_passes(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"some ratings must be above .*positive_above; got 6 to 9 .* 50; lower it"):
        change("plays.csv", ",10,", ",8,")(folder)
        load(folder, replace(TABLE, rating_range=None, positive_above=50.0))


@pytest.mark.parametrize(("changes", "expected"), [
    ({"positive_above": 10.0}, r"data\.table\.positive_above must be in"),
    ({"noun": "song</think>"}, r"data\.table\.noun must be one to four words"),
    ({"delimiter": "::"}, r"data\.table\.delimiter must be one character"),
    ({"item": "listener"}, r"data\.table\.item must be another column"),
])
def test_settings_of_a_table(changes: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        replace(TABLE, **changes)


@pytest.mark.parametrize(("changes", "expected"), [
    ({"users": None}, r"data\.table\.users must name the file with the columns of data\.table\.attributes; got null; "),
    ({"items": None}, r"data\.table\.items must name .* of data\.table\.title, data\.table\.year, data\.table\."
                      r"categories, data\.table\.details; got null; name a file with one row an item, or remove"),
    ({"items": None, "title": "title", "year": None, "categories": None}, r"the columns of data\.table\.details; got"),
    ({"items": "plays.csv"}, r"items must be another .*; got plays\.csv for both; write one row an item to a file"),
    ({"users": "./plays.csv"}, r"users must be another .* of the events; got \./plays\.csv for both; .* row a user to"),
])
def test_columns_of_items_and_users_need_a_file_of_their_own(changes: dict, expected: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        load(folder, replace(TABLE, **changes))
    least = replace(TABLE, items=None, title=None, year=None, categories=None, details=(), users=None, attributes=())
    assert [item.title for item in load(folder, least).items] == ["s1", "s2", "s9"]


@pytest.mark.parametrize(("changes", "expected"), [
    ({"details": ("tags", "artist_name", "artist name")}, r"data\.table\.details .*; got 'artist_name', 'artist name'"),
    ({"attributes": ("age", "age")}, r"data\.table\.attributes .*; got 'age', 'age', which .*; rename a"),
])
def test_columns_of_one_name_in_prompts(changes: dict, expected: str, folder: Path) -> None:
    change("songs.csv", "artist_name\n", "artist_name,artist name\n")(folder)
    with pytest.raises(ValueError, match=expected):
        load(folder, replace(TABLE, **changes))


def test_settings_that_do_not_fit_a_table() -> None:
    with pytest.raises(ValueError, match=r"data\.positive_above must be 3 for a table .*data\.table\.positive_above"):
        DataConfig(name="table", positive_above=4.0)
    with pytest.raises(ValueError, match=r"data\.split must be last-positive for a table without"):
        DataConfig(name="table", split="global-time", table=TableConfig(timestamp=None))
    with pytest.raises(ValueError, match=r"data\.k_core must be 0 for MovieLens"):
        DataConfig(k_core=5)


def test_without_times_no_edge_is_older_than_another_users_target() -> None:
    timeless = DataConfig(name="table", table=TableConfig(timestamp=None))
    with pytest.raises(ValueError, match=r"graph\.before_target must be false for a table without data\.table\.time.*"
                                         r"; got True$"):
        TrainConfig(data=timeless, graph=GraphConfig(before_target=True))
    assert not TrainConfig(data=timeless).graph.before_target
    for data in (DataConfig(name="table"), replace(DataConfig(), table=timeless.table)):
        assert TrainConfig(data=data, graph=GraphConfig(before_target=True)).data.has_times


def test_settings_survive_the_manifest_and_places_enter_no_key(folder: Path) -> None:
    config = TrainConfig(data=DataConfig(name="table", path=str(folder), table=TABLE))
    assert config_from_plain(as_plain(config)).data == config.data
    assert DataConfig(**as_plain(config)["data"]) == config.data
    moved = replace(config.data, path="x", cache_dir="y", memory_gb=9.0, threads=1, temp_dir="z")
    assert stage_key(replace(config, data=moved), "prepare") == stage_key(config, "prepare")
    assert set(WITHOUT_EFFECT["data"]) == {"path", "cache_dir", "memory_gb", "threads", "temp_dir"}
    other = replace(config.data, table=replace(TABLE, positive_above=7.0))
    assert stage_key(replace(config, data=other), "prepare") != stage_key(config, "prepare")


def test_from_a_csv_to_a_prepared_folder(tmp_path: Path) -> None:
    """The layout and the columns are those of configs/table.yaml."""
    rng = np.random.default_rng(0)
    plays = [f"l{u},s{i},{rng.integers(1, 11)},{1_700_000_000_000 + n}" for u in range(40)
             for n, i in enumerate(rng.permutation(80)[:30])]
    songs = [f"s{i},Song {i},{1950 + i % 70},jazz|hard bop,Artist {i % 7}" for i in range(90)]
    (tmp_path / "plays.csv").write_text("\n".join(["listener,song,score,when", *plays, ""]), encoding="utf-8")
    (tmp_path / "songs.csv").write_text("\n".join(["id,name,year,tags,artist", *songs, ""]), encoding="utf-8")
    config = configuration("table.yaml", "--data.path", str(tmp_path), "--data.eval_users=15", "--data.threads=1",
                           "--data.validation_users=5", "--data.sft_queries=10", "--data.rl_queries=5")
    first, again = prepare(config, tmp_path / "a"), prepare(config, tmp_path / "b")
    assert first.manifest["files"] == again.manifest["files"] and first.manifest["domain"] == "generic:song:songs"
    assert first.counts["rows"] == 1200 and len(first.queries["test"]) == 15
    assert first.counts["items_without_title"] == 0 and set(first.manifest["sources"]) == {"plays.csv", "songs.csv"}
    assert all(first.dataset.interactions.rating[first.dataset.interactions.offsets[q.user_idx] + q.place] > 3
               for q in first.queries["test"])


@pytest.mark.parametrize(("name", "expected"), [
    ("amazon_books_8b.yaml", "amazon-books"), ("amazon_electronics_8b.yaml", "amazon-electronics"),
    ("table.yaml", "table")])
def test_the_example_configurations_are_valid(name: str, expected: str) -> None:
    config = configuration(name)
    assert config.data.name == expected
    if expected != "table":  # the paper's counts
        assert (config.data.eval_users, config.data.sft_queries, config.data.rl_queries) == (1000, 500, 500)
