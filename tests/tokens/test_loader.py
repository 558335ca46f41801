"""Order from the seed alone, and a place that can be saved."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2rec_jax.tokens.loader import Loader


def _names(count: int) -> list[str]:
    return [f"example-{i}" for i in range(count)]


@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 9), batch_size=st.integers(1, 6), epochs=st.integers(1, 3), seed=st.integers(0, 2**32 - 1))
def test_every_example_once_an_epoch_and_only_the_last_batch_short(
    count: int, batch_size: int, epochs: int, seed: int
) -> None:
    loader = Loader(_names(count), batch_size, epochs, seed)
    batches = list(loader)
    assert len(batches) == len(loader) == math.ceil(count * epochs / batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])
    flat = [name for batch in batches for name in batch]
    for epoch in range(epochs):
        assert Counter(flat[epoch * count : (epoch + 1) * count]) == Counter(_names(count))


def test_the_seed_gives_the_order() -> None:
    def order(seed: int) -> list[list[str]]:
        return list(Loader(_names(40), 8, 2, seed))

    assert order(3) == order(3) != order(4)
    first = [name for batch in order(3) for name in batch]
    assert first[:40] != first[40:]  # each epoch anew
    assert list(Loader(_names(5), 2, 1, 0, shuffle=False)) == [_names(5)[:2], _names(5)[2:4], _names(5)[4:]]


@settings(max_examples=6, deadline=None)
@given(done=st.integers(0, 9), seed=st.integers(0, 99))
def test_a_restored_loader_goes_on_where_the_first_stopped(done: int, seed: int) -> None:
    first = Loader(_names(7), 3, 4, seed)
    for _ in range(done):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    second = Loader(_names(7), 3, 4, seed)
    next(second)
    second.set_state(state)
    assert list(second) == list(first)


def test_endless() -> None:
    loader = Loader(_names(3), 2, None, 0)
    assert [len(next(loader)) for _ in range(20)] == [2] * 20
    with pytest.raises(ValueError, match="endless"):
        len(loader)


def test_a_state_of_other_settings_is_refused() -> None:
    state = Loader(_names(7), 3, 4, 0).get_state()
    for other in (Loader(_names(8), 3, 4, 0), Loader(_names(7), 2, 4, 0), Loader(_names(7), 3, 4, 1)):
        with pytest.raises(ValueError, match="same settings"):
            other.set_state(state)


def test_bad_arguments() -> None:
    for arguments, message in (
        (([], 1, 1, 0), "at least one example"), ((["a"], 0, 1, 0), "batch_size"), ((["a"], 1, 0, 0), "epochs"),
        ((["a"], 1, 1, -1), "seed"), ((["a"], 1, 1, 2**32), "seed"),
    ):
        with pytest.raises(ValueError, match=message):
            Loader(*arguments)
