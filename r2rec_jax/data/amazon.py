"""Amazon Reviews 2023 (Hou et al., "Bridging Language and Items for Retrieval and Recommendation", 2024), any category.

The release's own files are read, plain or compressed: raw reviews as JSON Lines or Parquet, or the ratings-only CSV
(``user_id,parent_asin,rating,timestamp``), and the metadata as JSON Lines or Parquet. Items are products by
``parent_asin`` (colours and sizes of one product share it). Times are milliseconds and stay so: a user's events of one
second keep their order.

What prompts show of an item: title; year (of publication, or of its first listing); up to three categories below the
top one, or the main category where there is none; author (books) or brand (the store); a band of prices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import duckdb
import pyarrow as pa

from r2rec_jax import progress
from r2rec_jax.config import DataConfig
from r2rec_jax.data.attributes import read_attributes
from r2rec_jax.data.duck import connect, index_rows, load_rows
from r2rec_jax.data.interactions import Dataset, build_dataset
from r2rec_jax.data.readers import TableFile, kind_of, open_table, stem_of
from r2rec_jax.data.sources import AMAZON_CATEGORIES
from r2rec_jax.data.tables import ItemTable, UserTable
from r2rec_jax.files import sha256_of

RATING_SCALE = (1.0, 5.0)

DOMAINS = {"Books": "books", "Electronics": "electronics"}

PRICE_BANDS = (10, 25, 50, 100, 250, 500, 1000)
"""Edges in dollars; a price on an edge belongs to the band above it."""

_EVENTS = ("user_id", "parent_asin", "rating", "timestamp")
_METADATA = ("store", "author", "main_category", "categories", "price", "details")
_DATES = ("Publication date", "Release Date", "Date First Available")
_MOST_CATEGORIES = 3


@dataclass(frozen=True)
class AmazonFiles:
    """The files of one category; ``metadata`` is None where there is none."""

    events: Path
    metadata: Path | None


def category_of(config: DataConfig) -> str:
    """The category as the release spells it: ``Books``."""
    return config.category or AMAZON_CATEGORIES[config.name]


def find_files(path: Path, category: str, *, reviews_first: bool = False) -> AmazonFiles:
    """The files of a category in a folder (or beside a file of events).

    They have the release's names (``Books.csv.gz``, ``meta_Books.jsonl.gz``, ``raw_review_Books.parquet``); a folder
    with one file of events and one whose name says "meta" may call them anything.

    Args:
        path: a folder, or the file of events.
        category: as the release spells it.
        reviews_first: of a CSV and raw reviews, take the reviews.

    Raises:
        ValueError: there is no file of events, or it is not clear which one it is.
    """
    folder = path if path.is_dir() else path.parent
    tables = sorted((file for file in folder.iterdir() if file.is_file() and kind_of(file)),
                    key=lambda file: (len(file.name), file.name))
    meta = [file for file in tables if "meta" in file.name.lower()]
    named = [file for file in meta if stem_of(file) in (f"meta_{category}", f"raw_meta_{category}")]
    metadata = named[0] if named else meta[0] if len(meta) == 1 else None
    if not path.is_dir():
        return AmazonFiles(path, metadata)
    order = ("jsonl", "parquet", "csv") if reviews_first else ("csv", "parquet", "jsonl")
    others = [file for file in tables if file not in meta]
    named = [file for file in others if stem_of(file) in (category, f"raw_review_{category}", f"reviews_{category}")]
    named.sort(key=lambda file: order.index(kind_of(file) or "jsonl"))
    events = named[0] if named else others[0] if len(others) == 1 else None
    if events is None:
        listed = ", ".join(file.name for file in others[:10]) or "none"
        raise ValueError(f"{folder} must hold the events of {category} ({category}.csv.gz or {category}.jsonl.gz); got "
                         f"{listed}; name the file itself as data.path")
    return AmazonFiles(events, metadata)


def load_amazon(config: DataConfig, path: Path) -> Dataset:
    """Read one category.

    Args:
        config: ``data``.
        path: a folder with its files, or the file of events.

    Returns:
        The data set. ``notes`` counts rows, duplicates, what a k-core dropped, items without metadata or title (their
        id is the title then), and repeated metadata rows.

    Raises:
        ValueError: a file is missing or broken; the message names the file and the row.
    """
    category = category_of(config)
    files = find_files(path, category, reviews_first=config.ratings == "reviews")
    sources = {file.name: sha256_of(file) for file in (files.events, files.metadata) if file is not None}
    with connect(config) as connection:
        progress.say(f"{config.name}: reading events from {files.events}")
        table = open_table(connection, files.events, _EVENTS)
        load_rows(connection, table, user="user_id", item="parent_asin", rating="rating", timestamp="timestamp",
                  time_unit="milliseconds", rating_range=RATING_SCALE)
        events = index_rows(connection, k_core=config.k_core, unit="milliseconds")
        if files.metadata is None:
            progress.say(f"warning: {config.name}: no metadata beside {files.events}; titles are the items' ids")
            items = ItemTable(events.item_ids, events.item_ids)
            notes = {"items_without_metadata": len(items), "items_without_title": len(items)}
        else:
            progress.say(f"{config.name}: reading metadata of {len(events.item_ids)} items from {files.metadata}")
            items, notes = _read_items(connection, files.metadata, events.item_ids, category)
    dataset = build_dataset(
        name=config.name, domain=DOMAINS.get(category, "generic:product:products"), users=UserTable(events.user_ids),
        items=items, user_rows=events.user_idx, item_rows=events.item_idx, rating=events.rating,
        timestamp=events.timestamp, split_seed=config.split_seed, rating_scale=RATING_SCALE, sources=sources)
    return replace(dataset, notes={**dataset.notes, **events.notes, **notes})


def _read_items(connection: duckdb.DuckDBPyConnection, path: Path, ids: pa.Array, category: str,
                ) -> tuple[ItemTable, dict[str, int]]:
    file = open_table(connection, path, ("parent_asin", "title"), _METADATA)
    maker = "author" if category == "Books" else "brand"
    columns = {"title": f"nullif(trim({file.text('title')}), '')", "year": _year(file), "genres": _genres(file),
               "maker": _maker(file, maker), "price": _price_band(file)}
    found = read_attributes(connection, file, "parent_asin", ids, columns, repeated="last")
    notes = {"items_without_metadata": found.missing, "items_without_title": found.column("title").null_count,
             "repeated_metadata": found.passed}
    items = ItemTable(ids, found.filled("title", ids), found.column("year"), found.column("genres"),
                      [(maker, found.column("maker")), ("price", found.column("price"))])
    return items, notes


def _has(file: TableFile, column: str) -> bool:
    return column in file.types


def _year(file: TableFile) -> str:
    """SQL: the year of a book's publisher line ("Knopf (May 1, 2001)"), or of the first date there is."""
    if not _has(file, "details"):
        return "NULL::INTEGER"
    details = file.json("details")
    dates = [f"regexp_extract({details} ->> '$.\"{name}\"', '(?:^|[^0-9])((?:1[5-9]|20)[0-9][0-9])(?:[^0-9]|$)', 1)"
             for name in _DATES]
    printed = f"regexp_extract({details} ->> '$.\"Publisher\"', '((?:1[5-9]|20)[0-9][0-9])\\)\\s*$', 1)"
    found = ", ".join(f"nullif({text}, '')" for text in (dates[0], printed, *dates[1:]))
    return f"TRY_CAST(coalesce({found}) AS INTEGER)"


def _genres(file: TableFile) -> str:
    main = f"CASE WHEN {file.text('main_category')} <> '' THEN [{file.text('main_category')}] END" \
        if _has(file, "main_category") else "NULL::VARCHAR[]"
    if not _has(file, "categories"):
        return main
    listed = file.texts("categories", "|")
    return (f"CASE WHEN coalesce(len({listed}), 0) > 1 THEN ({listed})[2:{1 + _MOST_CATEGORIES}] "
            f"WHEN len({listed}) = 1 THEN {listed} ELSE {main} END")


def _maker(file: TableFile, maker: str) -> str:
    """SQL: author or brand; a book's store reads "A. Writer (Author), B. Drawer (Illustrator)"."""
    store = f"nullif(trim({file.text('store')}), '')" if _has(file, "store") else "NULL::VARCHAR"
    if maker != "author":
        return store
    store = f"regexp_replace({store}, '\\s*\\((?:[A-Z][a-z]+ ?)+\\)', '', 'g')"
    if not _has(file, "author"):
        return store
    return f"coalesce(nullif(trim({file.json('author')} ->> '$.name'), ''), {store})"


def _price_band(file: TableFile) -> str:
    """SQL: "10 to 25 dollars"; a text counts by its first number ("from $12.99")."""
    if not _has(file, "price"):
        return "NULL::VARCHAR"
    if file.types["price"] == "VARCHAR":
        price = f"TRY_CAST(regexp_extract(replace({file.text('price')}, ',', ''), '[0-9]+(?:\\.[0-9]+)?') AS DOUBLE)"
    else:
        price = file.number("price")
    first, last = PRICE_BANDS[0], PRICE_BANDS[-1]
    bands = "".join(f" WHEN {price} < {high} THEN '{low} to {high} dollars'"
                    for low, high in pairwise(PRICE_BANDS))
    return (f"CASE WHEN {price} IS NULL OR {price} <= 0 OR NOT isfinite({price}) THEN NULL "
            f"WHEN {price} < {first} THEN 'under {first} dollars'{bands} ELSE '{last} dollars or more' END")
