"""Readers: both formats of MovieLens-100K, MovieLens-1M, and what must be refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from r2rec_jax.data.movielens import load_movielens, parse_title

GENRES = ["unknown", "Action", "Comedy", "Sci-Fi"]


def write_100k(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "u.genre").write_text("".join(f"{g}|{n}\n" for n, g in enumerate(GENRES)) + "\n")
    items = ["10|Matrix, The (1999)|01-Jan-1999||http://x|0|1|0|1", "2|unknown||||1|0|0|0",
             "3|Cérémonie, La (1995)|||u|0|0|1|0", "4|Never Rated (1990)|||u|0|0|0|0"]
    (folder / "u.item").write_text("\n".join(items) + "\n", encoding="latin-1")
    (folder / "u.user").write_text("7|24|M|technician|85711\n1|53|F|other|94043\n")
    (folder / "u.data").write_text("7\t10\t5\t100\n1\t2\t3\t50\n7\t3\t4\t90\n1\t10\t1\t50\n7\t10\t2\t80\n")
    return folder


def write_recbole(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "2\tunkonwn\tunkonwn\tunknown\n3\tCérémonie, La\t1995\tComedy\n10\tMatrix, The\t1999\tAction Sci-Fi\n"
        "4\tNever Rated\t1990\t\n", encoding="utf-8")
    (folder / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "1\t53\tF\tother\t94043\n7\t24\tM\ttechnician\t85711\n")
    (folder / "ml-100k.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "7\t10\t5\t100\n1\t2\t3.0\t50\n7\t3\t4\t90\n1\t10\t1\t50\n7\t10\t2\t80\n")
    return folder


def write_1m(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "movies.dat").write_text("1::Toy: Story (1995)::Animation|Children's\n9::Léon (1994)::Drama\n",
                                       encoding="latin-1")
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::0::70072\n")
    (folder / "ratings.dat").write_text("1::1::5::978300760\n2::9::3::978302109\n1::9::1::978300000\n")
    return folder


@pytest.mark.parametrize(("text", "expected"), [
    ("Matrix, The (1999)", ("Matrix, The", 1999)),
    ("Land Before Time III (1995) (V)", ("Land Before Time III", 1995)),
    ("Associate, The (L'Associe)(1982)", ("Associate, The (L'Associe)", 1982)),
    ("2001: A Space Odyssey (1968)", ("2001: A Space Odyssey", 1968)),
    ("unknown", ("unknown", None)), ("(1999)", ("(1999)", None)), ("1984", ("1984", None)),
])
def test_parse_title(text: str, expected: tuple[str, int | None]) -> None:
    assert parse_title(text) == expected


def test_100k_is_read_ordered_and_merged(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    dataset = load_movielens("ml-100k", write_100k(tmp_path), 0)
    assert [u.user_id for u in dataset.users] == ["1", "7"]
    assert dataset.users[1].attributes == (("age", "24"), ("gender", "M"), ("occupation", "technician"))
    assert [(i.item_id, i.title, i.year, i.genres) for i in dataset.items] == [
        ("2", "unknown", None, ()), ("3", "Cérémonie, La", 1995, ("Comedy",)),
        ("10", "Matrix, The", 1999, ("Action", "Sci-Fi"))]
    assert dataset.notes == {"rows": 5, "duplicates": 1, "users_without_interactions": 0,
                             "items_without_interactions": 1}
    assert dataset.history(dataset.user_index("7")) == [(2, 2.0), (1, 4.0)]  # the later row won: rating 2 at time 80
    assert dataset.history(dataset.user_index("7"), 1) == [(2, 2.0)]
    assert "u.data" in capsys.readouterr().err  # not the published file: said, not refused
    with pytest.raises(ValueError, match="'99'"):
        dataset.user_index("99")


def test_both_sources_of_100k_agree(tmp_path: Path) -> None:
    ours = load_movielens("ml-100k", write_100k(tmp_path / "a"), 3)
    theirs = load_movielens("ml-100k", write_recbole(tmp_path / "b"), 3)
    assert ours.items == theirs.items and ours.users == theirs.users
    for name in ("user_idx", "item_idx", "rating", "timestamp", "place", "offsets"):
        np.testing.assert_array_equal(getattr(ours.interactions, name), getattr(theirs.interactions, name))


def test_1m_spells_codes_out(tmp_path: Path) -> None:
    dataset = load_movielens("ml-1m", write_1m(tmp_path), 0)
    assert [u.attributes for u in dataset.users] == [
        (("age", "under 18"), ("gender", "F"), ("occupation", "K-12 student")),
        (("age", "56 or over"), ("gender", "M"), ("occupation", "other or not specified"))]
    assert dataset.items[0].title == "Toy: Story" and dataset.items[1].title == "Léon"
    assert dataset.items[0].genres == ("Animation", "Children's")


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    folder = write_100k(tmp_path)
    path = folder / "u.data"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(load_movielens("ml-100k", folder, 0).interactions) == 4


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        text = path.read_text("latin-1")
        assert old in text
        path.write_text(text.replace(old, new, 1), "latin-1")
    return apply


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


BAD_100K = {
    "missing": (lambda folder: (folder / "u.item").unlink(), r"^u\.item must be in .*missing"),
    "empty": (cut("u.data", 0), r"^u\.data must hold at least one row; got an empty file"),
    "cut in a row": (cut("u.data", 14), r"^u\.data line 2: .*truncated"),
    "cut in a timestamp": (cut("u.data", -2), r"^u\.data line 5: .*truncated"),
    "few fields": (change("u.data", "1\t2\t3\t50", "1\t2\t3"), r"^u\.data line 2: .*4 fields.*got 3"),
    "many fields": (change("u.data", "1\t2\t3\t50", "1\t2\t3\t50\t1"), r"^u\.data line 2: .*got 5"),
    "blank line": (change("u.data", "\n7\t3", "\n\n7\t3"), r"^u\.data line 3: .*got 1"),
    "rating 6": (change("u.data", "1\t2\t3", "1\t2\t6"), r"^u\.data line 2: a rating must be in 1\.\.5; got 6"),
    "rating 0": (change("u.data", "1\t2\t3", "1\t2\t0"), r"line 2: a rating must be in 1\.\.5; got 0"),
    "rating half": (change("u.data", "1\t2\t3", "1\t2\t3.5"), r"line 2: a rating must be a whole number; got '3.5'"),
    "rating nan": (change("u.data", "1\t2\t3", "1\t2\tnan"), r"line 2: a rating must be a whole number; got 'nan'"),
    "rating text": (change("u.data", "1\t2\t3", "1\t2\tgood"), r"line 2: a rating must be a whole number"),
    "time text": (change("u.data", "3\t50", "3\tnoon"), r"line 2: a timestamp must be a whole number; got 'noon'"),
    "time negative": (change("u.data", "3\t50", "3\t-50"), r"line 2: a timestamp must be >= 0"),
    "time huge": (change("u.data", "3\t50", "3\t1" + "0" * 30), r"line 2: a timestamp must be a whole number"),
    "unknown user": (change("u.data", "1\t2\t3", "8\t2\t3"), r"line 2: every user must be in the users file; '8'"),
    "unknown item": (change("u.data", "1\t2\t3", "1\t99\t3"), r"line 2: every item must be in the items file; '99'"),
    "item fields": (change("u.item", "|0|1|0|1", "|0|1|0"), r"^u\.item line 1: .*9 fields.*got 8"),
    "item flag": (change("u.item", "|0|1|0|1", "|0|1|0|2"), r"^u\.item line 1: genre flags must be 0 or 1"),
    "item twice": (change("u.item", "2|unknown", "10|unknown"), r"^u\.item line 2: item ids must be unique; '10'"),
    "age": (change("u.user", "|53|", "|old|"), r"^u\.user line 2: an age must be a whole number; got 'old'"),
    "announced": (lambda folder: (folder / "u.info").write_text("2 users\n9 items\n9 ratings\n") and None,
                  r"^u\.data must have the 9 rows that u\.info announces; got 5: it looks truncated"),
}


@pytest.mark.parametrize("case", sorted(BAD_100K))
def test_bad_100k_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    spoil, expected = BAD_100K[case]
    spoil(write_100k(tmp_path))
    with pytest.raises(ValueError, match=expected) as caught:
        load_movielens("ml-100k", tmp_path, 0)
    assert "\n" not in str(caught.value)


BAD_RECBOLE = {
    "header": (change("ml-100k.inter", "timestamp:float", "when:float"),
               r"^ml-100k\.inter line 1: .*missing timestamp"),
    "rating": (change("ml-100k.inter", "3.0", "9.0"), r"^ml-100k\.inter line 3: a rating must be in 1\.\.5; got 9"),
    "fields": (change("ml-100k.item", "3\tC", "3\t1\tC"), r"^ml-100k\.item line 3: .*4 fields.*got 5"),
    "encoding": (lambda folder: (folder / "ml-100k.user").write_bytes(b"user_id\n\xff\n") and None,
                 r"^ml-100k\.user line 2: the text must be utf-8; got byte 0xff"),
    "missing": (lambda folder: (folder / "ml-100k.user").unlink(), r"^ml-100k\.user must be in"),
}


@pytest.mark.parametrize("case", sorted(BAD_RECBOLE))
def test_bad_recbole_is_refused(tmp_path: Path, case: str) -> None:
    spoil, expected = BAD_RECBOLE[case]
    spoil(write_recbole(tmp_path))
    with pytest.raises(ValueError, match=expected):
        load_movielens("ml-100k", tmp_path, 0)


BAD_1M = {
    "separator": (change("ratings.dat", "2::9::3", "2:9::3"), r"^ratings\.dat line 2: .*4 fields.*got 3"),
    "code": (change("users.dat", "F::1::10", "F::2::10"), r"^users\.dat line 1: age and occupation must be codes"),
    "truncated": (cut("ratings.dat", -4), r"^ratings\.dat line 3: .*truncated"),
    "missing": (lambda folder: (folder / "users.dat").unlink(), r"^users\.dat must be in"),
}


@pytest.mark.parametrize("case", sorted(BAD_1M))
def test_bad_1m_is_refused(tmp_path: Path, case: str) -> None:
    spoil, expected = BAD_1M[case]
    spoil(write_1m(tmp_path))
    with pytest.raises(ValueError, match=expected):
        load_movielens("ml-1m", tmp_path, 0)


def test_real_100k(ml100k_dir: Path, capsys: pytest.CaptureFixture) -> None:
    dataset = load_movielens("ml-100k", ml100k_dir, 0)
    assert capsys.readouterr().err == ""  # the published files
    assert (len(dataset.users), len(dataset.items), len(dataset.interactions)) == (943, 1682, 100_000)
    counts = np.bincount(dataset.interactions.rating.astype(int))
    assert counts.tolist() == [0, 6110, 11370, 27145, 34174, 21201]
    titles = {item.item_id: item for item in dataset.items}
    assert titles["543"].title == "Misérables, Les" and titles["543"].year == 1995
    assert [i for i, item in titles.items() if item.year is None] == ["267"]
    events = dataset.interactions
    same_user = events.user_idx[1:] == events.user_idx[:-1]
    assert (np.diff(events.timestamp)[same_user] >= 0).all() and (np.diff(events.place)[same_user] == 1).all()


@pytest.mark.slow
def test_real_1m_in_a_few_seconds(ml1m_dir: Path) -> None:
    started = time.process_time()
    dataset = load_movielens("ml-1m", ml1m_dir, 0)
    assert time.process_time() - started < 8
    assert (len(dataset.users), len(dataset.items), len(dataset.interactions)) == (6040, 3706, 1_000_209)
    assert all(item.year is not None for item in dataset.items)


def test_ties_follow_the_seed_and_not_the_ids(tmp_path: Path) -> None:
    folder = write_100k(tmp_path)
    items = "".join(f"{i}|Film {i} (1990)|||u|0|0|0|0\n" for i in range(1, 41))
    (folder / "u.item").write_text(items)
    (folder / "u.data").write_text("".join(f"7\t{i}\t4\t100\n" for i in range(1, 41)))
    orders = [load_movielens("ml-100k", folder, seed).interactions.item_idx.tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(40)) != orders[0]
    assert abs(np.corrcoef(orders[0], range(40))[0, 1]) < 0.5
