"""The thought store: nothing twice, nothing lost, torn lines survived, damage reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from r2rec_jax.data.interactions import Item, User
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.thoughts.store import ThoughtStore, collect, thought_key
from r2rec_jax.thoughts.teacher import Thought
from r2rec_jax.thoughts.template import TemplateTeacher

CHAINS = [ChainView(User("7", ()), Item("1", "Heat\ud800", 1995, ()), User("12", ()),
                    Item(str(k), f"Big {k}", 1988, ()), 5, 4, 2, 3) for k in range(5)]
KEYS = ["k"] * 5


class Counting(TemplateTeacher):
    """A template teacher that counts what it writes, and gives up on one item."""

    def __init__(self) -> None:
        super().__init__("movies")
        self.written, self.block = 0, 2

    def write_many(self, chains: Sequence[ChainView], keys: Sequence[str]) -> list[Thought | None]:
        self.written += len(chains)
        return [None if chain.item1.item_id == "4" else self.write(chain, key)
                for chain, key in zip(chains, keys, strict=True)]


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    teacher, path = Counting(), tmp_path / "thoughts.jsonl"
    done: list[int] = []
    first = collect(teacher, ThoughtStore(path), [*CHAINS, CHAINS[0]], [*KEYS, "k"], on_progress=done.append)
    assert teacher.written == 5 and sum(done) == 6 and first[4] is None and first[0] == first[5]
    data = path.read_bytes()
    again = collect(teacher, ThoughtStore(path), CHAINS, KEYS)
    assert teacher.written == 5 and again == first[:5] and path.read_bytes() == data
    collect(teacher, ThoughtStore(path), CHAINS[:1], ["other key"])
    assert teacher.written == 6 and path.read_bytes().startswith(data)


def test_what_no_completion_can_be_made_of_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "thoughts.jsonl"
    whole = collect(Counting(), ThoughtStore(path), CHAINS, KEYS)
    lines = path.read_text().splitlines(keepends=True)
    spoiled = json.loads(lines[1])
    spoiled["thought"]["statements"][-1] += "</think>"  # as a version without that check accepted it
    path.write_text("".join([lines[0], json.dumps(spoiled) + "\n", *lines[2:]]))
    teacher = Counting()
    assert collect(teacher, ThoughtStore(path), CHAINS, KEYS) == whole and teacher.written == 1
    assert collect(teacher, ThoughtStore(path), CHAINS, KEYS) == whole and teacher.written == 1


def test_a_torn_last_line_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "thoughts.jsonl"
    whole = collect(Counting(), ThoughtStore(path), CHAINS, KEYS)
    data = path.read_bytes()
    last = data.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last, last + 1, last + 40, len(data) - 2, len(data) - 1):
        path.write_bytes(data[:cut])
        store, teacher = ThoughtStore(path), Counting()
        assert len(store) == 4
        assert collect(teacher, store, CHAINS, KEYS) == whole
        assert teacher.written == 1 and path.read_bytes() == data
    path.write_bytes(data[:last] + b'{"key": "to\n')
    assert len(ThoughtStore(path)) == 4
    path.write_bytes(b"")
    assert len(ThoughtStore(path)) == 0


def test_damage_elsewhere_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "thoughts.jsonl"
    collect(Counting(), ThoughtStore(path), CHAINS, KEYS)
    lines = path.read_bytes().split(b"\n")
    for broken in (b"{}", b"nonsense", b'{"key": "x", "thought": {"statements": [1], "rating": 3}}', b"\xff"):
        path.write_bytes(b"\n".join([lines[0], broken, *lines[2:]]))
        with pytest.raises(ValueError, match="line 2 is not"):
            ThoughtStore(path)


def test_the_key_is_the_content() -> None:
    teacher, chain = TemplateTeacher("movies"), CHAINS[0]
    base = thought_key(chain, teacher, "k")
    assert thought_key(replace(chain), TemplateTeacher("movies"), "k") == base and len(base) == 64
    changed = [
        thought_key(replace(chain, rating_u1=4), teacher, "k"), thought_key(chain, teacher, "l"),
        thought_key(chain, TemplateTeacher("books"), "k"),
        thought_key(replace(chain, item0=replace(chain.item0, genres=("Drama",))), teacher, "k"),
        thought_key(replace(chain, neighbour=User("12", (("age", "3"),))), teacher, "k"),
    ]
    assert len({base, *changed}) == 6


def test_every_fact_of_an_item_enters_the_key() -> None:
    chain, teacher = CHAINS[0], TemplateTeacher("movies")
    named = replace(chain, item0=replace(chain.item0, details=(("author", "A. Writer"),)))
    other = replace(chain, item0=replace(chain.item0, details=(("author", "B. Writer"),)))
    assert len({thought_key(c, teacher, "k") for c in (chain, named, other)}) == 3
