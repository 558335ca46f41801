"""Amazon Reviews 2023: every form of the release's files gives the same data set, and broken ones are refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from r2rec_jax.config import DataConfig
from r2rec_jax.data.amazon import find_files, load_amazon
from r2rec_jax.data.fetch import locate
from r2rec_jax.data.interactions import Dataset

REVIEW = {"title": "Fine", "text": "It is", "images": [], "helpful_vote": 0, "verified_purchase": True}
RATINGS = [("AE2", "B01", 5.0, 1658185117948), ("AE1", "B02", 3.0, 1658185117949), ("AE1", "B01", 4.0, 1658185117001),
           ("AE1", "B02", 1.0, 1290278495000), ("AE1", "B03", 2.0, 1290278495001), ("AE3", "B03", 5.0, 1)]
META = [
    {"main_category": "Books", "title": "Emma", "average_rating": 4.5, "rating_number": 9, "features": [],
     "description": ["d"], "price": 9.99, "images": [], "videos": [],
     "store": "Jane Austen (Author), A. Ink (Illustrator)",
     "categories": ["Books", "Literature & Fiction", "Classics", "Love", "Deep"],
     "details": {"Publisher": "1984 Press; Reprint edition (May 1, 2003)", "Best Sellers Rank": {"Books": 3}},
     "parent_asin": "B01", "bought_together": None, "subtitle": None, "author": None},
    {"main_category": "Books", "title": " ", "price": "from $1,250.50", "store": "x", "categories": [],
     "details": {"Publication date": "2011-02-03"}, "parent_asin": "B02",
     "author": {"avatar": "a", "name": "Ann Other", "about": []}},
    {"main_category": "Books", "title": "Nobody rated this", "price": None, "store": None, "categories": ["Books"],
     "details": {}, "parent_asin": "B09", "author": None},
]


def write_reviews(folder: Path, name: str) -> None:
    rows = [{**REVIEW, "asin": f"x{item}", "parent_asin": item, "user_id": user, "rating": rating, "timestamp": time}
            for user, item, rating, time in RATINGS]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    elif ".csv" in name:
        text = "user_id,parent_asin,rating,timestamp\n" + "".join(",".join(map(str, row)) + "\n" for row in RATINGS)
        put(folder / name, text)
    else:
        put(folder / name, "".join(json.dumps(row) + "\n" for row in rows))


def write_metadata(folder: Path, name: str) -> None:
    if name.endswith(".parquet"):
        rows = [{**row, "price": str(row["price"]), "details": json.dumps(row["details"])} for row in META]
        pq.write_table(pa.Table.from_pylist(rows), folder / name)
    else:
        put(folder / name, "".join(json.dumps(row) + "\n" for row in META))


def put(path: Path, text: str) -> None:
    raw = text.encode()
    if path.suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(raw)
    else:
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def load(folder: Path, **changes) -> Dataset:
    return load_amazon(DataConfig(**{"name": "amazon-books", "threads": 1, **changes}), folder)


@pytest.mark.parametrize("events", ["Books.csv", "Books.csv.gz", "Books.jsonl", "Books.jsonl.gz", "Books.jsonl.zst",
                                    "Books.parquet", "raw_review_Books.parquet"])
@pytest.mark.parametrize("metadata", ["meta_Books.jsonl.gz", "raw_meta_Books.parquet"])
def test_every_form_of_the_release(events: str, metadata: str, tmp_path: Path) -> None:
    write_reviews(tmp_path, events)
    write_metadata(tmp_path, metadata)
    dataset = load(tmp_path)
    assert dataset.users.ids.to_pylist() == ["AE1", "AE2", "AE3"] and dataset.domain == "books"
    assert [(i.item_id, i.title, i.year, i.genres, i.details) for i in dataset.items] == [
        ("B01", "Emma", 2003, ("Literature & Fiction", "Classics", "Love"),
         (("author", "Jane Austen, A. Ink"), ("price", "under 10 dollars"))),
        ("B02", "B02", 2011, ("Books",), (("author", "Ann Other"), ("price", "1000 dollars or more"))),
        ("B03", "B03", None, (), ())]
    assert dataset.history(0) == [(2, 2.0), (0, 4.0), (1, 3.0)]  # by the millisecond, the later of two reviews
    assert dataset.interactions.timestamp.tolist()[0] == 1290278495001
    assert dataset.notes == {"rows": 6, "duplicates": 1, "users_without_interactions": 0,
                             "items_without_interactions": 0, "items_without_metadata": 1, "items_without_title": 2,
                             "repeated_metadata": 0}
    assert set(dataset.sources) == {events, metadata}


def test_the_k_core_is_taken_before_metadata_are_read(tmp_path: Path) -> None:
    write_reviews(tmp_path, "Books.csv")
    with (tmp_path / "Books.csv").open("a") as file:
        file.write("AE2,B03,4.0,1658185117999\n")
    write_metadata(tmp_path, "meta_Books.jsonl")
    dataset = load(tmp_path, k_core=2)
    assert dataset.users.ids.to_pylist() == ["AE1", "AE2"] and [i.title for i in dataset.items] == ["Emma", "B03"]
    counts = {name: count for name, count in dataset.notes.items() if name.startswith("k_core")}
    assert counts == {"k_core_events": 2, "k_core_users": 1, "k_core_items": 1}
    assert dataset.notes["items_without_metadata"] == 1


def test_other_categories_have_brands(tmp_path: Path) -> None:
    write_reviews(tmp_path, "Video_Games.csv.gz")
    write_metadata(tmp_path, "meta_Video_Games.jsonl.gz")
    write_reviews(tmp_path, "Books.csv.gz")
    dataset = load(tmp_path, name="amazon", category="Video_Games")
    assert dataset.domain == "generic:product:products" and "Video_Games.csv.gz" in dataset.sources
    assert dataset.items[1].details == (("brand", "x"), ("price", "1000 dollars or more"))


def test_the_real_schema(amazon_sample_dir: Path) -> None:
    """Reviews and metadata of the sample do not join, so the metadata are read for their own ids."""
    dataset = load(amazon_sample_dir, name="amazon-electronics")
    assert (dataset.notes["rows"], dataset.notes["duplicates"]) == (500, 3)
    assert (len(dataset.users), len(dataset.items), len(dataset.interactions)) == (102, 487, 497)
    assert dataset.interactions.timestamp.min() > 1e12 and dataset.domain == "electronics"
    assert set(dataset.interactions.rating.tolist()) <= {1.0, 2.0, 3.0, 4.0, 5.0}


@pytest.mark.parametrize("form", ["parquet", "jsonl.gz"])
def test_the_real_metadata(amazon_sample_dir: Path, tmp_path: Path, form: str) -> None:
    """Also as JSON Lines, in which the release ships them; details are a map in one and an object in the other."""
    metadata = pq.read_table(amazon_sample_dir / "meta_raw_subset.parquet")
    if form == "parquet":
        pq.write_table(metadata, tmp_path / "meta_Electronics.parquet")
    else:
        rows = metadata.to_pylist(maps_as_pydicts="strict")
        for row in rows:
            row["details"] = {name: json.loads(value) for name, value in row["details"].items()}
        put(tmp_path / f"meta_Electronics.{form}", "".join(json.dumps(row) + "\n" for row in rows))
    put(tmp_path / "Electronics.csv", "user_id,parent_asin,rating,timestamp\n" + "".join(
        f"AE1,{asin.as_py()},5.0,{n}\n" for n, asin in enumerate(metadata["parent_asin"])))
    dataset = load(tmp_path, name="amazon-electronics")
    assert dataset.notes["items_without_metadata"] == dataset.notes["items_without_title"] == 0
    item = dataset.items[dataset.item_index("B00MCW7G9M")]
    assert (item.title, item.year) == ("FS-1051 FATSHARK TELEPORTER V3 HEADSET", 2014)
    assert item.genres == ("Television & Video", "Video Glasses") and item.details == (("brand", "Fat Shark"),)
    items = list(dataset.items)
    assert sum(item.year is not None for item in items) == 487
    assert sum("price" in dict(item.details) for item in items) == 227
    assert all(item.genres for item in items) and all(1990 < item.year < 2024 for item in items if item.year)


def test_which_files_are_taken(tmp_path: Path) -> None:
    for name in ("Books.csv.gz", "Books.jsonl.gz", "meta_Books.jsonl.gz", "Electronics.csv.gz",
                 "meta_Electronics.jsonl", "notes.md"):
        (tmp_path / name).touch()
    found = find_files(tmp_path, "Books")
    assert (found.events.name, found.metadata and found.metadata.name) == ("Books.csv.gz", "meta_Books.jsonl.gz")
    assert find_files(tmp_path, "Books", reviews_first=True).events.name == "Books.jsonl.gz"
    other = find_files(tmp_path / "Electronics.csv.gz", "Books")
    assert (other.events.name, other.metadata and other.metadata.name) == ("Electronics.csv.gz", "meta_Books.jsonl.gz")
    with pytest.raises(ValueError, match=r"must hold the events of Toys.*got Books\.csv\.gz, Books\.jsonl\.gz, Elec"):
        find_files(tmp_path, "Toys")


def test_without_metadata_it_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_reviews(tmp_path, "Books.csv")
    dataset = load(locate(DataConfig(name="amazon-books", path=str(tmp_path / "Books.csv"))))
    assert [item.title for item in dataset.items] == ["B01", "B02", "B03"]
    assert "no metadata beside" in capsys.readouterr().err


def change(name: str, old: str, new: str, times: int = 1) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, times))
    return apply


@pytest.mark.parametrize(("spoil", "expected"), [
    (change("Books.csv", "5.0", "6.0"), r"Books\.csv row 1 .*rating: a rating must be a number in 1\.\.5; got '6\.0'"),
    (change("Books.csv", "1658185117949", "2022-07-18"), r"Books\.csv row 2 .*timestamp: .*number; got '2022-07-18'"),
    (change("Books.csv", "parent_asin", "asin"), r"Books\.csv must have .*missing parent_asin"),
    (change("meta_Books.jsonl", '"parent_asin": "B09"', '"asin": "B09"'),
     r"meta_Books\.jsonl row 3 .*parent_asin: an id must not be empty"),
    (change("meta_Books.jsonl", '{"main_category"', '{main_category'),
     r"meta_Books\.jsonl line 1: a row must be a JSON"),
    (change("meta_Books.jsonl", '"title": ', '"name": ', -1), r"meta_Books\.jsonl must have .*missing title"),
    (lambda folder: (folder / "meta_Books.jsonl").write_text(""), r"meta_Books\.jsonl must hold at least one row"),
])
def test_broken_files_are_refused(tmp_path: Path, spoil: Callable[[Path], None], expected: str) -> None:
    write_reviews(tmp_path, "Books.csv")
    write_metadata(tmp_path, "meta_Books.jsonl")
    spoil(tmp_path)
    with pytest.raises(ValueError, match=expected) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_repeated_metadata_keep_the_last(tmp_path: Path) -> None:
    write_reviews(tmp_path, "Books.csv")
    rows = [{"parent_asin": "B01", "title": "first"}, {"parent_asin": "B01", "title": "second"}]
    put(tmp_path / "meta_Books.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    dataset = load(tmp_path)
    assert dataset.items[0].title == "second" and dataset.notes["repeated_metadata"] == 1
