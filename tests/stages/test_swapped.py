"""Chains of other users: every query gets some, never its own user's, never with a candidate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.config import DataConfig, EvaluateConfig, GraphConfig, PromptConfig, TrainConfig
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.rendering import count_dropped, make_view, render_queries
from r2rec_jax.stages.swapped import donors, with_swapped_chains
from r2rec_jax.tokens.bpe import train_tokenizer
from tests.synthetic import write_ml100k


@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(0, 5))
def test_donors_are_a_permutation_without_the_own_user(users: list[int], seed: int) -> None:
    keys = np.random.default_rng(seed).integers(0, 4, 7).astype(np.uint64)[users]  # equal keys of different users too
    if 2 * max(map(users.count, users)) > len(users):
        with pytest.raises(ValueError, match="no user has more than half"):
            donors(users, keys)
        return
    found = donors(users, keys).tolist()
    assert sorted(found) == list(range(len(users)))
    assert all(users[query] != users[donor] for query, donor in enumerate(found))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("swapped")
    data = DataConfig(path=str(write_ml100k(folder / "ml")), eval_users=30, validation_users=4, sft_queries=4,
                      rl_queries=4)
    return prepare(TrainConfig(data=data, graph=GraphConfig(chains=5)), folder / "prepared")


def hidden_chains(data: Prepared) -> int:
    """How many distinct chains of the test queries hold a candidate."""
    return sum(bool({chain.item0, chain.item1} & set(query.candidates))
               for query in data.queries["test"] for chain in set(data.chains_of(query)))


def test_chains_come_from_others(prepared: Prepared) -> None:
    swapped = with_swapped_chains(prepared, "test", seed=0)
    assert hidden_chains(swapped) > 0, "the data must be small enough for a donor to have rated a candidate"
    for query in prepared.queries["test"]:
        assert swapped.by_id[query.query_id] == query
        assert all(chain.user_idx != query.user_idx for chain in swapped.chains_of(query))
        for chain in prepared.chains_of(query):
            assert not {chain.item0, chain.item1} & set(query.candidates), "a query's own do not"
    for split in ("validation", "sft", "rl"):
        assert all(swapped.chains_of(q) == prepared.chains_of(q) for q in prepared.queries[split])
    assert with_swapped_chains(prepared, "test", 0).chains == swapped.chains
    assert with_swapped_chains(prepared, "test", 1).chains != swapped.chains


@pytest.mark.parametrize("negatives", ["uniform", "popularity", "disliked"])
def test_no_prompt_shows_a_chain_with_a_candidate_of_the_lists_that_are_asked(prepared: Prepared, negatives) -> None:
    """A chain holds no target, so what stands in one would be known not to be it."""
    lists = prepared.with_negatives(negatives)
    for data in (lists, with_swapped_chains(lists, "test", seed=0)):
        shown = 0
        for query in data.queries["test"]:
            for chain in make_view(data, query, PromptConfig()).chains:
                shown += 1
                assert not {chain.item0.item_id, chain.item1.item_id} & {
                    data.dataset.items[i].item_id for i in query.candidates}
        assert shown > 0
    assert (hidden_chains(lists) > 0) == (negatives == "disliked")


@pytest.mark.parametrize("swapped", [False, True])
def test_chains_that_are_not_shown_are_counted(prepared: Prepared, tmp_path: Path, swapped: bool) -> None:
    tokenizer = train_tokenizer(["Rank 20 candidate movies for the target user."], 400, tmp_path / "tokenizer")
    data = prepared.with_negatives("disliked")
    data = with_swapped_chains(data, "test", seed=0) if swapped else data
    for config in (PromptConfig(max_tokens=10**5), PromptConfig(max_tokens=10**5, chains=False)):
        rendered = render_queries(data, data.queries["test"], config, tokenizer)
        counts = count_dropped(rendered)
        assert counts["left_out_chains"] == (hidden_chains(data) if config.chains else 0)
        assert sum(len(r.chains) + r.left_out for r in rendered) == (
            sum(len(set(data.chains_of(query))) for query in data.queries["test"]) if config.chains else 0)


def test_the_likelihood_has_no_chains_to_swap() -> None:
    with pytest.raises(ValueError, match=r"evaluate\.chains must be own with evaluate\.method likelihood"):
        EvaluateConfig(method="likelihood", chains="swapped")
