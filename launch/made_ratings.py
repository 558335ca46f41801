"""Made-up ratings of the size and skew of Amazon Books, in the formats of the Amazon Reviews 2023 release.

Users and items are Zipf-like: each has one rating at least, and the others fall to the k-th user and item in proportion
to ``(k + 20) ** -0.7`` and ``(k + 2) ** -0.9``. At full size the busiest user has some 5,900 ratings, the most rated
item 383,000, and one user in eighteen has six likes. Who rates what is drawn independently, so a few pairs come twice,
as in the release; times run over ten years. Metadata are written for every item and for
one in twenty more that nobody rated. Everything follows from the seed.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import csv

Format = Literal["csv", "csv.gz", "parquet"]
FULL = {"ratings": 30_000_000, "users": 10_000_000, "items": 4_400_000}

_USER_SKEW, _ITEM_SKEW = (20, 0.7), (2, 0.9)
_STARS = (0.04, 0.04, 0.08, 0.18, 0.66)
_FIRST_MS, _SPAN_S = 1_300_000_000_000, 315_000_000
_ROWS = 1 << 20
_ID_STEP = 10**12 + 1  # odd and no multiple of 3, so its multiples run through all of 36 ** 9
_BASE32 = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", np.uint8)
_BASE36 = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", np.uint8)
_SYLLABLES = ("ba", "cor", "del", "fin", "gra", "hol", "in", "jar", "kel", "lum", "mor", "nev", "or", "pal", "quin",
              "ros", "sel", "tam", "un", "ver", "wyn", "xan", "yor", "zel")
_CATEGORIES = ("Literature & Fiction", "Mystery, Thriller & Suspense", "History", "Children's Books", "Cookbooks",
               "Science & Math", "Religion & Spirituality", "Travel", "Comics & Graphic Novels", "Self-Help")


def write_ratings(folder: Path, ratings: int, *, form: Format = "csv.gz", seed: int = 0, category: str = "Books",
                  ) -> dict[str, int]:
    """Write ``<category>.<form>`` and ``meta_<category>.jsonl.gz`` into ``folder``; users and items scale with rows.

    Returns:
        ratings, users, items, and the ratings of the busiest user and of the most rated item.
    """
    users, items = (max(1, round(ratings * FULL[what] / FULL["ratings"])) for what in ("users", "items"))
    rng = np.random.default_rng([seed, ratings])
    folder.mkdir(parents=True, exist_ok=True)
    user_counts, item_counts = _skewed(rng, ratings, users, _USER_SKEW), _skewed(rng, ratings, items, _ITEM_SKEW)
    user = rng.permutation(np.repeat(np.arange(users, dtype=np.int32), user_counts))
    item = rng.permutation(np.repeat(np.arange(items, dtype=np.int32), item_counts))
    user_ids, item_ids = _user_ids(rng, users), _item_ids(rng, items + items // 20)
    path = folder / f"{category}.{form}"
    with _table_writer(path, form) as write:
        for start in range(0, ratings, _ROWS):
            part = slice(start, start + _ROWS)
            size = len(user[part])
            seconds = rng.integers(_SPAN_S, size=size) // 60 * 60
            write.write_table(pa.table({
                "user_id": user_ids.take(pa.array(user[part])),
                "parent_asin": item_ids.take(pa.array(item[part])),
                "rating": rng.choice(5, size=size, p=_STARS) + 1.0,
                "timestamp": _FIRST_MS + seconds * 1000 + rng.integers(1000, size=size),
            }))
    _write_metadata(folder / f"meta_{category}.jsonl.gz", rng, item_ids)
    return {"ratings": ratings, "users": users, "items": items, "busiest_user": int(user_counts.max()),
            "most_rated_item": int(item_counts.max())}


def _skewed(rng: np.random.Generator, ratings: int, size: int, skew: tuple[float, float]) -> NDArray[np.int64]:
    """How many of ``ratings`` each of ``size`` has: one, and a Zipf-Mandelbrot share of the others."""
    shift, exponent = skew
    weights = (np.arange(size) + shift) ** -exponent
    return 1 + rng.permutation(rng.multinomial(ratings - size, weights / weights.sum()))


def _user_ids(rng: np.random.Generator, size: int) -> pa.Array:
    """``A`` and 27 of 32 characters, as the release has them."""
    letters = np.full((size, 28), ord("A"), np.uint8)
    letters[:, 1:] = _BASE32[rng.integers(32, size=(size, 27), dtype=np.uint8)]
    return _texts(letters)


def _item_ids(rng: np.random.Generator, size: int) -> pa.Array:
    """``B`` and 9 of 36 characters, distinct by construction."""
    period = 36**9
    number = (np.arange(size, dtype=np.int64) * _ID_STEP + int(rng.integers(period))) % period
    letters = np.full((size, 10), ord("B"), np.uint8)
    for place in range(9, 0, -1):
        number, digit = np.divmod(number, 36)
        letters[:, place] = _BASE36[digit]
    return _texts(letters)


def _texts(letters: NDArray[np.uint8]) -> pa.Array:
    size, width = letters.shape
    offsets = pa.py_buffer(np.arange(size + 1, dtype=np.int64) * width)
    return pa.LargeStringArray.from_buffers(size, offsets, pa.py_buffer(letters))


@contextmanager
def _table_writer(path: Path, form: Format) -> Iterator[csv.CSVWriter | pq.ParquetWriter]:
    schema = pa.schema({"user_id": pa.large_string(), "parent_asin": pa.large_string(), "rating": pa.float64(),
                        "timestamp": pa.int64()})
    if form == "parquet":
        with pq.ParquetWriter(path, schema) as writer:
            yield writer
        return
    options = csv.WriteOptions(quoting_header="none", quoting_style="none")
    with _opened(path) as file, csv.CSVWriter(file, schema, write_options=options) as writer:
        yield writer


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, gzipped where its name says so (without a time in the header, for equal bytes)."""
    with path.open("wb") as raw:
        if path.suffix != ".gz":
            yield raw
            return
        with gzip.GzipFile(path.name, "wb", compresslevel=1, fileobj=raw, mtime=0) as file:
            yield cast(IO[bytes], file)


def _write_metadata(path: Path, rng: np.random.Generator, item_ids: pa.Array) -> None:
    """One JSON object a line, in the fields of the release; long fields are short here."""
    words = np.array(["".join(rng.choice(_SYLLABLES, 2 + k % 2)).capitalize() for k in range(5000)])
    with _opened(path) as file:
        for start in range(0, len(item_ids), _ROWS // 4):
            ids = item_ids.slice(start, _ROWS // 4).to_pylist()
            titles = words[rng.integers(len(words), size=(len(ids), 6))].tolist()
            lengths = rng.integers(2, 7, len(ids)).tolist()
            kinds = rng.integers(len(_CATEGORIES), size=len(ids)).tolist()
            prices = np.round(rng.gamma(2, 8, len(ids)), 2).tolist()
            file.write("".join(
                _metadata_line(item_id, title[:length], _CATEGORIES[kind], price)
                for item_id, title, length, kind, price in zip(ids, titles, lengths, kinds, prices, strict=True)
            ).encode())


def _metadata_line(item_id: str, words: list[str], category: str, price: float) -> str:
    row = {
        "main_category": "Books", "title": " ".join(words), "average_rating": 4.4, "rating_number": 7, "features": [],
        "description": [f"{words[0]} {words[-1].lower()} " * 8], "price": price if price > 2 else None, "images": [],
        "videos": [], "store": f"{words[-1]} {words[0]} (Author)", "categories": ["Books", category],
        "details": {"Publisher": f"{words[0]} Press", "Language": "English"}, "parent_asin": item_id,
        "bought_together": None,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"
