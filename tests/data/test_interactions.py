"""Building a data set, against plain Python, and writing it to disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.data.interactions import Dataset, Item, User, build_dataset
from r2rec_jax.data.randomness import digest, fold, root_key
from r2rec_jax.data.storage import read_dataset, write_dataset

EVENT = st.tuples(st.integers(0, 5), st.integers(0, 6), st.integers(1, 5), st.integers(0, 4))


def make(events: list[tuple[int, int, int, int]], users: list[str], items: list[str], seed: int = 3) -> Dataset:
    rows = np.array(events, dtype=np.int64).reshape(-1, 4)
    return build_dataset(
        name="toy", domain="books", users=[User(u, (("age", u),) if u > "2" else ()) for u in users],
        items=[Item(i, f"Title\n{i}", 1990 if i > "2" else None, (i,), (("author", "É"),) if i < "3" else ())
               for i in items],
        user_rows=rows[:, 0], item_rows=rows[:, 1], rating=rows[:, 2], timestamp=rows[:, 3], split_seed=seed,
        notes={"rows": len(events)}, sources={"file": "00"})


def plainly(events: list[tuple[int, int, int, int]], users: list[str], items: list[str], seed: int = 3) -> list[tuple]:
    """(user id, item id, rating, time, place), users in id order, events by time and seeded hash."""
    last = {(u, i): (rating, time) for u, i, rating, time in events}

    def tie(u: int, i: int) -> int:
        return int(fold(fold(root_key(seed, "ties"), np.uint64(digest(users[u]))), np.uint64(digest(items[i]))))

    ordered = []
    for u in sorted({u for u, _ in last}, key=lambda u: int(users[u])):
        mine = sorted(((i, *last[u, i]) for w, i in last if w == u), key=lambda e: (e[2], tie(u, e[0])))
        ordered += [(users[u], items[i], rating, time, place) for place, (i, rating, time) in enumerate(mine)]
    return ordered


def listed(dataset: Dataset) -> list[tuple]:
    events = dataset.interactions
    users, items = list(dataset.users), list(dataset.items)
    return [(users[u].user_id, items[i].item_id, int(r), int(t), int(p)) for u, i, r, t, p in zip(
        events.user_idx, events.item_idx, events.rating, events.timestamp, events.place, strict=True)]


@settings(max_examples=80, deadline=None)
@given(events=st.lists(EVENT, max_size=40), order=st.permutations(range(7)))
def test_equals_plain_python(events: list[tuple[int, int, int, int]], order: list[int]) -> None:
    users, items = [str(9 + u) for u in order[:6]], [f"{i}" for i in order]
    dataset = make(events, users, items)
    assert listed(dataset) == plainly(events, users, items)
    kept = {u for u, *_ in events}, {i for _, i, *_ in events}
    assert (len(dataset.users), len(dataset.items)) == tuple(map(len, kept))
    assert dataset.notes == {"rows": len(events), "duplicates": len(events) - len({e[:2] for e in events}),
                             "users_without_interactions": 6 - len(kept[0]),
                             "items_without_interactions": 7 - len(kept[1])}
    offsets = dataset.interactions.offsets
    assert offsets[-1] == len(dataset.interactions) and (np.diff(offsets) > 0).all()


def test_tables_in_order_are_not_copied() -> None:
    from r2rec_jax.data.tables import ItemTable, UserTable

    users, items = UserTable(["a", "b"]), ItemTable(["x", "y"], ["X", "Y"])
    rows = np.array([0, 1, 1], np.int32), np.array([1, 0, 1], np.int32)
    dataset = build_dataset(name="toy", domain="books", users=users, items=items, user_rows=rows[0],
                            item_rows=rows[1], rating=np.ones(3), timestamp=np.arange(3), split_seed=0)
    assert dataset.users is users and dataset.items is items


def test_rows_beyond_the_tables_are_refused() -> None:
    with pytest.raises(ValueError, match=r"item_rows must be positions in 0\.\.1; got 0 to 5"):
        make([(0, 0, 3, 1), (0, 5, 3, 1)], ["1"], ["1", "2"])


def test_unknown_ids_are_named() -> None:
    dataset = make([(0, 0, 3, 1), (1, 1, 4, 1)], ["1", "2"], ["5", "6"])
    assert (dataset.user_index("2"), dataset.item_index("5")) == (1, 0)
    assert dataset.item_indices(["6", "5", "6"]).tolist() == [1, 0, 1]
    for call in (lambda: dataset.item_index("7"), lambda: dataset.item_indices(["5", "7"])):
        with pytest.raises(ValueError, match="item must be one of the 2 items of toy that have interactions; got '7'"):
            call()
    with pytest.raises(ValueError, match="user must be one of the 2 users of toy who have interactions; got '9'"):
        dataset.user_indices(["1", "9"])


@settings(max_examples=20, deadline=None)
@given(events=st.lists(EVENT, min_size=1, max_size=30))
def test_disk_gives_back_what_was_written(events: list[tuple[int, int, int, int]],
                                          tmp_path_factory: pytest.TempPathFactory) -> None:
    dataset = make(events, list("012345"), list("0123456"))
    training = np.arange(len(dataset.interactions)) % 3 > 0
    folders: list[Path] = []
    for _ in range(2):
        folders.append(tmp_path_factory.mktemp("stored"))
        write_dataset(folders[-1], dataset, training)
    assert [file.read_bytes() for file in sorted(folders[0].iterdir())] == [
        file.read_bytes() for file in sorted(folders[1].iterdir())]
    back, edges = read_dataset(folders[0], {"dataset": "toy", "domain": "books", "rating_scale": [1, 5],
                                            "notes": dataset.notes, "sources": dataset.sources})
    assert back.users == dataset.users and back.items == dataset.items
    assert back.user_keys.tolist() == dataset.user_keys.tolist()
    assert back.user_keys.flags.c_contiguous and listed(back) == listed(dataset)
    np.testing.assert_array_equal(edges, training)
    for name in ("user_idx", "item_idx", "rating", "timestamp", "place", "offsets"):
        assert getattr(back.interactions, name).dtype == getattr(dataset.interactions, name).dtype
