"""Data too small for what is asked: the refusal says which number would do, and it does."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from r2rec_jax.config import DataConfig
from r2rec_jax.data.candidates import SAMPLERS, Negatives, draw_candidates
from r2rec_jax.data.interactions import Dataset, Item, User, build_dataset
from r2rec_jax.data.splits import draw_queries, item_weights


def dataset_of(ratings: np.ndarray) -> Dataset:
    """A user a row, an item a column; 0 is no event. Items come one after the other in time."""
    users, items = ratings.nonzero()
    return build_dataset(name="toy", domain="movies", users=[User(f"u{n}", ()) for n in range(len(ratings))],
                         items=[Item(f"i{n}", "T", None, ()) for n in range(ratings.shape[1])], user_rows=users,
                         item_rows=items, rating=ratings[users, items], timestamp=items, split_seed=0)


def likes(counts: list[int], n_items: int = 40) -> Dataset:
    rows = np.array([[5] * count + [0] * (n_items - count) for count in counts])
    rows = np.vstack([rows, np.full(n_items, 1)])  # every item has an event
    return dataset_of(rows)


def config(**changes) -> DataConfig:
    least = DataConfig(eval_users=1, validation_users=0, sft_queries=1, rl_queries=1, candidates=5)
    return replace(least, **changes)


@pytest.mark.parametrize(("counts", "found"), [([6, 6, 6], 0), ([7, 7, 7], 0), ([8, 7, 6], 1)])
def test_nothing_to_train_on_is_said_as_such(counts: list[int], found: int) -> None:
    expected = (rf"toy must have two likes to train on, .* at least 5 likes before them and two after; got {found}; "
                r"lower data\.min_history, or bring users with at least 8 likes")
    with pytest.raises(ValueError, match=expected):
        draw_queries(likes(counts), config())
    assert len(draw_queries(likes(counts), config(min_history=3)).by_split["rl"]) == 1
    assert len(draw_queries(likes([8, 8, *counts]), config()).by_split["rl"]) == 1


def test_the_advice_can_be_followed_at_the_least_history() -> None:
    with pytest.raises(ValueError, match=r"got 0; bring users with at least 4 likes"):
        draw_queries(likes([3, 3]), config(min_positives=3, min_history=1))
    assert draw_queries(likes([4, 4]), config(min_positives=3, min_history=1)).counts["rl_queries"] == 1


def test_too_few_training_likes_before_the_first_cut() -> None:
    cut = config(split="global-time", min_history=4, validation_from=0.2, test_from=0.6)
    with pytest.raises(ValueError, match=r"got 0; lower data\.min_history, or bring users with at least 5 likes bef"):
        draw_queries(dataset_of(np.full((2, 20), 5)), cut)


@pytest.mark.parametrize("negatives", SAMPLERS)
def test_the_largest_number_of_candidates_is_named(negatives: Negatives) -> None:
    ratings = np.random.default_rng(1).choice([0, 1, 5], size=(12, 40), p=[0.3, 0.2, 0.5])
    ratings[3, :38] = np.where(ratings[3, :38] == 0, 1, ratings[3, :38])  # who knows nearly everything
    dataset = dataset_of(ratings)
    wanted = config(negatives=negatives, eval_users=12, sft_queries=5, rl_queries=5)
    with pytest.raises(ValueError, match=r"candidates must leave room for 39 items .*; got 40; lower") as caught:
        draw_queries(dataset, replace(wanted, candidates=40))
    found = re.search(r"lower data\.candidates to (\d+), which serves every drawn user", str(caught.value))
    assert found
    most = int(found[1])
    assert {len(query.candidates) for query in draw_queries(dataset, replace(wanted, candidates=most)).all()} == {most}
    with pytest.raises(ValueError, match=f"to {most}, which serves"):
        draw_queries(dataset, replace(wanted, candidates=most + 1))


def test_one_user_alone_and_a_user_who_knows_everything() -> None:
    ratings = np.array([[5, 5, 1, 0, 0], [5, 5, 5, 5, 5]])
    dataset = dataset_of(ratings)
    weights = item_weights(dataset, np.ones(len(dataset.interactions), bool))

    def draw(user: int, size: int, negatives: Negatives) -> tuple[int, ...]:
        return draw_candidates(dataset, user, 0, size=size, negatives=negatives, positive_above=3, weights=weights,
                               split_seed=0)

    for negatives, most in zip(SAMPLERS, (3, 3, 4), strict=True):  # what one dislikes can be asked about
        assert len(draw(0, most, negatives)) == most
        with pytest.raises(ValueError, match=rf"got 5; lower data\.candidates to {most} or less"):
            draw(0, 5, negatives)
    with pytest.raises(ValueError, match=r"user 'u1' has no event with only 0 of the 5 items; got 2; give the events"):
        draw(1, 2, "uniform")
