"""MovieLens-100K and -1M, from GroupLens's files or (100K) from RecBole's atomic files.

Titles keep the field's form ("Matrix, The"); the year at a title's end becomes a field of its own, and RecBole's
separate year is joined and split again, so both sources of 100K give equal items. MovieLens-1M's age and occupation
codes are spelled out as its README does. Zip codes are not read.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from r2rec_jax import progress
from r2rec_jax.data.interactions import Dataset, Item, User, build_dataset
from r2rec_jax.data.rows import parse_whole, read_lines, row_error, shown, split_rows
from r2rec_jax.data.sources import known_sha256

RATING_SCALE = (1.0, 5.0)

AGES_1M = {
    "1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56 or over",
}
OCCUPATIONS_1M = {
    "0": "other or not specified", "1": "academic/educator", "2": "artist", "3": "clerical/admin",
    "4": "college/grad student", "5": "customer service", "6": "doctor/health care", "7": "executive/managerial",
    "8": "farmer", "9": "homemaker", "10": "K-12 student", "11": "lawyer", "12": "programmer", "13": "retired",
    "14": "sales/marketing", "15": "scientist", "16": "self-employed", "17": "technician/engineer",
    "18": "tradesman/craftsman", "19": "unemployed", "20": "writer",
}

_YEAR_AT_END = re.compile(r"^(?P<title>.*?)\s*\((?P<year>\d{4})\)\s*(?:\((?:V|TV|VG)\)\s*)?$")
_NO_GENRE = ("unknown", "(no genres listed)")
_RECBOLE_UNKNOWN = "unkonwn"  # RecBole's own spelling, title and year of the one item without a title


@dataclass(frozen=True)
class _Ratings:
    user_rows: np.ndarray
    item_rows: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray


@dataclass(frozen=True)
class _Tables:
    users: dict[str, User]
    items: dict[str, Item]
    ratings: _Ratings
    sources: dict[str, str]


def parse_title(text: str) -> tuple[str, int | None]:
    """Split the year off a title's end.

    Example:
        >>> parse_title("Matrix, The (1999)")
        ('Matrix, The', 1999)
        >>> parse_title("Land Before Time III: The Time of the Great Giving (1995) (V)")
        ('Land Before Time III: The Time of the Great Giving', 1995)
        >>> parse_title("unknown")
        ('unknown', None)
    """
    match = _YEAR_AT_END.match(text.strip())
    if match is None or not match["title"]:
        return text.strip(), None
    return match["title"], int(match["year"])


def _check_id(path: Path, line: int, what: str, raw_id: str, seen: Container[str]) -> None:
    if not raw_id:
        raise row_error(path, line, f"{what} ids must not be empty")
    if raw_id in seen:
        raise row_error(path, line, f"{what} ids must be unique; {shown(raw_id)} came before in this file")


def _item(path: Path, line: int, item_id: str, title_text: str, genres: Sequence[str]) -> Item:
    title, year = parse_title(title_text)
    if not title:
        raise row_error(path, line, "a title must not be empty")
    return Item(item_id, title, year, tuple(genre for genre in genres if genre and genre not in _NO_GENRE))


def _user_100k(path: Path, line: int, user_id: str, age: str, gender: str, occupation: str) -> User:
    years = parse_whole(path, line, "an age", age)
    return User(user_id, (("age", str(years)), ("gender", gender), ("occupation", occupation)))


def _check_rating(path: Path, line: int, text: str) -> float:
    value = parse_whole(path, line, "a rating", text)
    if not RATING_SCALE[0] <= value <= RATING_SCALE[1]:
        raise row_error(path, line, f"a rating must be in {RATING_SCALE[0]:.0f}..{RATING_SCALE[1]:.0f}; got {value}")
    return float(value)


def _check_timestamp(path: Path, line: int, text: str) -> int:
    value = parse_whole(path, line, "a timestamp", text)
    if value < 0:
        raise row_error(path, line, f"a timestamp must be >= 0 seconds; got {value}")
    return value


def _read_ratings(path: Path, lines: Sequence[str], users: Iterable[str], items: Iterable[str], *, separator: str,
                  width: int = 4, columns: Sequence[int] = (0, 1, 2, 3), first: int = 1) -> _Ratings:
    """Parse ratings. ``columns``: where user, item, rating and timestamp are among the ``width`` fields of a row."""
    user_index = {user_id: index for index, user_id in enumerate(users)}
    item_index = {item_id: index for index, item_id in enumerate(items)}
    usual = {str(star): float(star) for star in range(int(RATING_SCALE[0]), int(RATING_SCALE[1]) + 1)}
    at_user, at_item, at_rating, at_time = columns
    user_rows, item_rows, ratings, timestamps = [], [], [], []
    for number, row in split_rows(path, lines, separator, width, first):
        user, item, stars, seconds = row[at_user], row[at_item], row[at_rating], row[at_time]
        if user not in user_index:
            raise row_error(path, number, f"every user must be in the users file; {shown(user)} is not")
        if item not in item_index:
            raise row_error(path, number, f"every item must be in the items file; {shown(item)} is not")
        user_rows.append(user_index[user])
        item_rows.append(item_index[item])
        ratings.append(usual[stars] if stars in usual else _check_rating(path, number, stars))
        plain = seconds.isdecimal() and len(seconds) < 16
        timestamps.append(int(seconds) if plain else _check_timestamp(path, number, seconds))
    return _Ratings(np.array(user_rows, np.int32), np.array(item_rows, np.int32), np.array(ratings, np.float32),
                    np.array(timestamps, np.int64))


def _read_all(folder: Path, names: Sequence[str], encoding: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    lines, sources = {}, {}
    for name in names:
        lines[name], sources[name] = read_lines(folder / name, encoding)
    return lines, sources


def _check_announced(folder: Path, rows: int) -> None:
    """``u.info`` says how many ratings there are: fewer means that ``u.data`` was cut at a line break."""
    info = folder / "u.info"
    if not info.is_file():
        return
    match = re.search(r"^(\d+) ratings", info.read_text("latin-1"), re.MULTILINE)
    if match and rows < int(match[1]):
        raise ValueError(f"u.data must have the {match[1]} rows that u.info announces; got {rows}: it looks truncated; "
                         f"get the file again, or correct u.info ({folder})")


def _read_grouplens_100k(folder: Path) -> _Tables:
    lines, sources = _read_all(folder, ("u.data", "u.item", "u.user", "u.genre"), "latin-1")
    genres = [row[0] for _, row in split_rows(folder / "u.genre", lines["u.genre"], "|", 2)]
    items: dict[str, Item] = {}
    path = folder / "u.item"
    for number, row in split_rows(path, lines["u.item"], "|", 5 + len(genres)):
        flags = row[5:]
        if not set(flags) <= {"0", "1"}:
            raise row_error(path, number, f"genre flags must be 0 or 1; got {shown('|'.join(flags))}")
        _check_id(path, number, "item", row[0], items)
        chosen = [genre for genre, flag in zip(genres, flags, strict=True) if flag == "1"]
        items[row[0]] = _item(path, number, row[0], row[1], chosen)
    users: dict[str, User] = {}
    path = folder / "u.user"
    for number, row in split_rows(path, lines["u.user"], "|", 5):
        _check_id(path, number, "user", row[0], users)
        users[row[0]] = _user_100k(path, number, row[0], row[1], row[2], row[3])
    _check_announced(folder, len(lines["u.data"]))
    ratings = _read_ratings(folder / "u.data", lines["u.data"], users, items, separator="\t")
    return _Tables(users, items, ratings, sources)


def _columns(path: Path, header: str, names: Sequence[str]) -> tuple[int, list[int]]:
    """Width of an atomic file and the positions of ``names`` in its typed header (``user_id:token``...)."""
    present = [field.partition(":")[0] for field in header.split("\t")]
    missing = [name for name in names if name not in present]
    if missing:
        raise row_error(path, 1, f"the header must name the columns {', '.join(names)}; missing {', '.join(missing)}")
    return len(present), [present.index(name) for name in names]


def _read_recbole_100k(folder: Path) -> _Tables:
    inter, item_file, user_file = (f"ml-100k.{kind}" for kind in ("inter", "item", "user"))
    lines, sources = _read_all(folder, (inter, item_file, user_file), "utf-8")
    path = folder / item_file
    width, columns = _columns(path, lines[item_file][0], ("item_id", "movie_title", "release_year", "class"))
    items: dict[str, Item] = {}
    for number, row in split_rows(path, lines[item_file][1:], "\t", width, first=2):
        item_id, title, year, genres = (row[column] for column in columns)
        _check_id(path, number, "item", item_id, items)
        text = "unknown" if title == _RECBOLE_UNKNOWN else f"{title} ({year})" if year else title
        items[item_id] = _item(path, number, item_id, text, genres.split(" "))
    path = folder / user_file
    width, columns = _columns(path, lines[user_file][0], ("user_id", "age", "gender", "occupation"))
    users: dict[str, User] = {}
    for number, row in split_rows(path, lines[user_file][1:], "\t", width, first=2):
        user_id, age, gender, occupation = (row[column] for column in columns)
        _check_id(path, number, "user", user_id, users)
        users[user_id] = _user_100k(path, number, user_id, age, gender, occupation)
    path = folder / inter
    width, columns = _columns(path, lines[inter][0], ("user_id", "item_id", "rating", "timestamp"))
    ratings = _read_ratings(path, lines[inter][1:], users, items, separator="\t", width=width, columns=columns,
                            first=2)
    return _Tables(users, items, ratings, sources)


def _read_100k(folder: Path) -> _Tables:
    if (folder / "ml-100k.inter").is_file() and not (folder / "u.data").is_file():
        return _read_recbole_100k(folder)
    return _read_grouplens_100k(folder)


def _read_1m(folder: Path) -> _Tables:
    lines, sources = _read_all(folder, ("ratings.dat", "movies.dat", "users.dat"), "latin-1")
    items: dict[str, Item] = {}
    path = folder / "movies.dat"
    for number, (item_id, title, genres) in split_rows(path, lines["movies.dat"], "::", 3):
        _check_id(path, number, "item", item_id, items)
        items[item_id] = _item(path, number, item_id, title, genres.split("|"))
    users: dict[str, User] = {}
    path = folder / "users.dat"
    for number, (user_id, gender, age, occupation, _) in split_rows(path, lines["users.dat"], "::", 5):
        _check_id(path, number, "user", user_id, users)
        if age not in AGES_1M or occupation not in OCCUPATIONS_1M:
            raise row_error(path, number, "age and occupation must be codes of MovieLens-1M's README; got "
                                          f"{shown(age)} and {shown(occupation)}")
        attributes = (("age", AGES_1M[age]), ("gender", gender), ("occupation", OCCUPATIONS_1M[occupation]))
        users[user_id] = User(user_id, attributes)
    ratings = _read_ratings(folder / "ratings.dat", lines["ratings.dat"], users, items, separator="::")
    return _Tables(users, items, ratings, sources)


_READERS = {"ml-100k": _read_100k, "ml-1m": _read_1m}


def load_movielens(name: str, folder: Path | str, split_seed: int) -> Dataset:
    """Read one MovieLens data set.

    A file whose sha256 is not the published one is read all the same, and said so in one line.

    Args:
        name: ``ml-100k`` or ``ml-1m``.
        folder: where the files are: GroupLens's, or for 100K also RecBole's atomic files.
        split_seed: breaks ties in time (see :mod:`r2rec_jax.data.interactions`).

    Raises:
        ValueError: a file is missing, truncated or malformed; the message names the file and the line.
    """
    if name not in _READERS:
        raise ValueError(f"data.name must be one of {', '.join(_READERS)}; got {name!r}")
    tables = _READERS[name](Path(folder))
    known = known_sha256(name)
    other = [file for file, sha256 in tables.sources.items() if known.get(file) != sha256]
    if other:
        progress.say(f"warning: in {folder}, sha256 of {', '.join(other)} is not that of {name} as published; "
                     "the rows are used as they are")
    ratings = tables.ratings
    return build_dataset(name=name, domain="movies", users=list(tables.users.values()),
                         items=list(tables.items.values()), user_rows=ratings.user_rows, item_rows=ratings.item_rows,
                         rating=ratings.rating, timestamp=ratings.timestamp, split_seed=split_seed,
                         rating_scale=RATING_SCALE, notes={"rows": len(ratings.rating)}, sources=tables.sources)
