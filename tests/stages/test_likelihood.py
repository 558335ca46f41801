"""Ranking by likelihood: the same whatever a candidate's place, ties against the model, on histories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.config import DataConfig, GraphConfig, TrainConfig
from r2rec_jax.evaluation.protocol import EvaluationQuery, judge
from r2rec_jax.evaluation.ranking import rank_from_scores
from r2rec_jax.prompts.verbalize import item_text, title_text
from r2rec_jax.stages.corpus import LIKES_A_TEXT
from r2rec_jax.stages.likelihood import (
    LikelihoodQuery,
    Tokens,
    begin,
    best_first,
    count_likes,
    item_line,
    likelihood_generate,
    likelihood_query,
    score_lines,
)
from r2rec_jax.stages.prepare import prepare
from r2rec_jax.tokens.batches import Batch
from r2rec_jax.tokens.bpe import train_tokenizer
from tests.synthetic import write_ml100k


def made_up(batch: Batch) -> np.ndarray:
    """A model: the log-probability of a target depends on everything it may see, and on nothing else."""
    rows, index = np.arange(len(batch.tokens))[:, None], np.asarray(batch.target_index)
    before = np.cumsum(np.asarray(batch.tokens) * (np.asarray(batch.segments) == 1), axis=1)[:, -1:]
    seen = np.asarray(batch.tokens)[rows, index] + 3 * np.asarray(batch.target_tokens) + 7 * before
    return -(1 + (seen * 2654435761 % 1009) / 1009)


def query(lines: Sequence[Tokens], target: int = 0, prompt: Tokens = (5, 6, 7)) -> LikelihoodQuery:
    names = tuple(f"i{k}" for k in range(len(lines)))
    asked = EvaluationQuery("q", "u", names, tuple(f"Title {k}" for k in range(len(lines))), target, "text", prompt)
    return LikelihoodQuery(asked, tuple(lines), 0)


def ranked(asked: LikelihoodQuery, rule="sum", bare: Tokens = (1,)) -> tuple[tuple[str, ...], float]:
    answer = likelihood_generate([asked], made_up, rule, bare, rows=2, pad_id=0)(
        [0], [asked.asked.prompt_ids], lambda count: None)
    assert answer.truncated == (False,) and answer.tokens == (sum(map(len, asked.lines)),)
    prediction = judge("s", "x", asked.asked, answer.texts[0], answer.tokens[0], False, 0.0, "titles")
    assert prediction.valid and len(prediction.ranking) == len(asked.lines) and prediction.outside == 0
    return prediction.ranking, prediction.rank


lines = st.lists(st.lists(st.integers(2, 40), min_size=1, max_size=5).map(tuple), min_size=2, max_size=12)


@given(lines, st.randoms(use_true_random=False), st.sampled_from(["sum", "mean", "prior"]))
def test_the_place_in_the_list_does_not_matter(own: list[Tokens], rng, rule) -> None:
    order = list(range(len(own)))
    rng.shuffle(order)
    _, first = ranked(query(own, target=0), rule)
    _, shuffled = ranked(query([own[i] for i in order], target=order.index(0)), rule)
    assert first == shuffled


@given(st.lists(st.integers(-3, 0), min_size=2, max_size=20), st.data())
def test_ranks_are_those_of_score_based_systems(scores: list[int], data) -> None:
    target = data.draw(st.integers(0, len(scores) - 1))
    values = np.array(scores, np.float64)
    order = best_first(values, target)
    assert sorted(order) == list(range(len(scores)))
    assert order.index(target) + 1 == rank_from_scores(values, target)


def test_equal_lines_tie_and_the_target_is_behind() -> None:
    other = [(9, 9)] * 4
    assert ranked(query([*other, (9, 9)], target=2))[1] == 5
    names, rank = ranked(query([(9, 9), (8,), (9, 9)], target=0))
    assert names.index("i0") == names.index("i2") + 1 and rank == names.index("i0") + 1


def test_the_three_scores() -> None:
    own = [(2, 3), (4,), (5, 6, 7)]
    (sums,) = score_lines([(5, 6, 7)], [own], made_up, 1)
    (bare,) = score_lines([(1,)], [own], made_up, 1)
    for rule, values in (("sum", sums), ("mean", sums / [2, 1, 3]), ("prior", sums - bare)):
        assert list(ranked(query(own), rule)[0]) == [f"i{i}" for i in best_first(values, 0)]
    with pytest.raises(RuntimeError, match="diverged"):
        best_first(np.array([0.0, np.nan]), 0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("likelihood")
    counts = {"eval_users": 8, "validation_users": 2, "sft_queries": 4, "rl_queries": 2}
    data = DataConfig(path=str(write_ml100k(folder / "ml", items=90, events=60)), **counts)
    return prepare(TrainConfig(data=data, graph=GraphConfig(chains=1)), folder / "prepared")


@pytest.mark.parametrize("lines", ["facts", "names"])
def test_texts_are_the_latest_likes(prepared, tmp_path: Path, lines) -> None:
    items = prepared.dataset.items
    tokenizer = train_tokenizer((item_line(item, "facts") for item in items), 400, tmp_path / "tokenizer")
    for frozen in prepared.queries["test"]:
        made = likelihood_query(prepared, frozen, tokenizer, 4096, lines)
        liked = [i for i, rating in prepared.history(frozen) if rating > 3][-LIKES_A_TEXT:]
        assert made.asked.prompt == "".join(item_line(items[i], lines) for i in liked)
        assert item_line(items[frozen.target], lines) not in made.asked.prompt
        assert made.asked.prompt_ids == (tokenizer.bos_id, *tokenizer.encode(made.asked.prompt))
        for item, line in zip(frozen.candidates, made.lines, strict=True):
            whole = tokenizer.encode(made.asked.prompt + item_line(items[item], lines))
            assert [*made.asked.prompt_ids[1:], *line] == whole, "a line's tokens are those it has within the text"
    assert begin(tokenizer, "") == (tokenizer.bos_id,)


def test_the_oldest_likes_are_dropped_where_the_backbone_has_no_positions_for_them(prepared, tmp_path: Path) -> None:
    items = prepared.dataset.items
    tokenizer = train_tokenizer((item_line(item, "facts") for item in items), 400, tmp_path / "tokenizer")
    whole = [likelihood_query(prepared, frozen, tokenizer, 4096) for frozen in prepared.queries["test"]]
    positions = max(len(made.asked.prompt_ids) + max(map(len, made.lines)) for made in whole) // 2
    short = [likelihood_query(prepared, frozen, tokenizer, positions) for frozen in prepared.queries["test"]]
    for made, cut in zip(whole, short, strict=True):
        likes = made.asked.prompt.splitlines(keepends=True)
        assert cut.lines == made.lines and cut.asked.prompt == "".join(likes[cut.dropped:])
        longest = max(map(len, cut.lines))
        assert len(cut.asked.prompt_ids) + longest <= positions
        assert not cut.dropped or len(begin(tokenizer, "".join(likes[cut.dropped - 1:]))) + longest > positions
    counts = count_likes(short)
    assert counts["shortened_prompts"] == sum(made.asked.prompt != cut.asked.prompt
                                              for made, cut in zip(whole, short, strict=True)) > 0
    assert counts["dropped_likes"] == sum(cut.dropped for cut in short) > counts["shortened_prompts"]
    assert counts["longest_prompt_tokens"] < positions and count_likes(whole)["dropped_likes"] == 0
    with pytest.raises(ValueError, match=r"line must fit the backbone's 5 positions; got \d+ tokens in query .*names"):
        likelihood_query(prepared, prepared.queries["test"][0], tokenizer, 5)


def test_lines_are_those_of_prompts(prepared) -> None:
    item = prepared.dataset.items[0]
    assert item_line(item, "facts") == f"{item_text(item)}\n"
    assert item_line(item, "names") == f"{title_text(item)} ({item.year})\n"
