"""What the tiny backbone is pretrained on."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from r2rec_jax.config import (
    BackboneConfig,
    DataConfig,
    GraphConfig,
    MixConfig,
    PretrainConfig,
    PromptConfig,
    TinyConfig,
    TrainConfig,
)
from r2rec_jax.prompts.answer import split_completion
from r2rec_jax.prompts.verbalize import item_labels, item_name, item_text
from r2rec_jax.stages.corpus import (
    BARE,
    CHOICE_SIZES,
    LISTED,
    Corpus,
    liked_choices,
    liked_histories,
    pretraining_texts,
    repeated_lists,
    training_likes,
)
from r2rec_jax.stages.prepare import prepare_stage
from r2rec_jax.stages.run import RunFolder
from r2rec_jax.stages.thinking import thoughts_stage
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.thoughts.target import conclusion
from r2rec_jax.training.pretrain import pack_texts
from tests.synthetic import write_ml100k

ALL = MixConfig(histories=2, choices=2, thoughts=1, prompts=1, examples=1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("corpus")
    data = write_ml100k(folder / "data")
    config = TrainConfig(
        run_dir=str(folder / "run"), data=DataConfig(path=str(data), eval_users=12, validation_users=4, sft_queries=6,
                                                     rl_queries=4),
        graph=GraphConfig(chains=1), prompts=PromptConfig(max_tokens=2000),
        backbone=BackboneConfig(source="tiny", tiny=TinyConfig(vocab_size=500, item_tokens=True)),
        pretrain=PretrainConfig(steps=10, batch_size=4, max_tokens=512, mix=ALL))
    with RunFolder.open(config, provenance={}) as run:
        work = Workspace(run)
        for stage, function in (("prepare", prepare_stage), ("thoughts", thoughts_stage)):
            run.claim(stage)
            run.mark_done(stage, 0.0, function(work))
        return work


def labels(work: Workspace) -> dict[str, int]:
    return {item_labels([item])[0]: index for index, item in enumerate(work.prepared.dataset.items)}


def test_likes_are_training_edges_above_the_threshold_in_order(work: Workspace) -> None:
    prepared = work.prepared
    events = prepared.dataset.interactions
    held_out = {(q.user_idx, q.target) for queries in prepared.queries.values() for q in queries}
    for user, liked in enumerate(training_likes(prepared)):
        assert not held_out & {(user, int(item)) for item in liked}
        rows = np.arange(events.offsets[user], events.offsets[user + 1])
        kept = [row for row in rows if prepared.training[row] and events.rating[row] > 3
                and (user, int(events.item_idx[row])) not in held_out]
        assert liked.tolist() == events.item_idx[kept].tolist()


def test_a_pass_over_histories_tells_every_like_once(work: Workspace) -> None:
    by_line = labels(work) | {item_text(item): i for i, item in enumerate(work.prepared.dataset.items)}
    texts = list(liked_histories(work.prepared, np.random.default_rng(0)))
    told = Counter(by_line[line] for text in texts for line in text.split("\n"))
    assert told == Counter(int(i) for liked in training_likes(work.prepared) for i in liked)


@pytest.mark.parametrize("order", ["newest-first", "oldest-first"])
def test_the_answer_of_a_choice_is_the_next_like_and_the_others_are_unknown_to_the_user(
    work: Workspace, order: Literal["newest-first", "oldest-first"]
) -> None:
    index = labels(work) | {item_text(item): i for i, item in enumerate(work.prepared.dataset.items)}
    likes = [liked.tolist() for liked in training_likes(work.prepared)]
    graph, sizes, choices, forms = work.prepared.graph, set(), 0, set()
    prompts = PromptConfig(order=order)
    for parts in liked_choices(work.prepared, np.random.default_rng(1), prompts):
        assert [wanted for _, wanted in parts] == [True] + [False, True] * (len(parts) // 2), "lists are not trained"
        text = "".join(part for part, _ in parts)
        head, *lists = text.split("Candidates:\n")
        sequence = [index[line.removeprefix("- ")] for line in head.strip().split("\n")[1:]]
        if order == "newest-first":
            sequence = sequence[::-1]
        assert head.startswith(f"Recently liked movies, {order.replace('-', ' ')}:\n")
        first = len(sequence)
        forms.add(("; " in text, len(lists)))
        for block in lists:
            listed = [index[label] for label in re.findall(r"^\d+\. (.*)$", block, re.MULTILINE)]
            answer = split_completion(block, opened_think=False)[1]
            best = [index[line] for line in answer.strip().split("\n")]
            popularity = [work.prepared.item_scores[i] for i in best[1:]]
            assert popularity == sorted(popularity, reverse=True) and set(best) <= set(listed)
            sequence.append(best[0])
            sizes.add(len(listed))
            assert sequence[-1] in listed and len(set(listed)) == len(listed)
            owners = [u for u, liked in enumerate(likes) if _follows(sequence, liked)]
            assert owners, "some user liked these in this order"
            assert any(not set(listed) - {sequence[-1]} & set(graph.items_of(u).tolist()) for u in owners)
            choices += 1
        assert first <= 10
    assert forms == {(True, 1), (False, 1), (False, 2)}, "those with facts hold one list"
    assert choices > 100 and sizes <= set(range(CHOICE_SIZES[0], CHOICE_SIZES[1] + 1))


def test_a_whole_choice_says_in_a_thought_what_it_then_puts_first(work: Workspace) -> None:
    bare, whole = (list(liked_choices(work.prepared, np.random.default_rng(2), PromptConfig(), whole=whole))
                   for whole in (False, True))
    assert len(bare) == len(whole) > 100
    for short, long in zip(bare, whole, strict=True):
        assert [part for part in long if not part[1]] == [part for part in short if not part[1]], "lists are the same"
        for (answer, _), (completion, trained) in zip(short[2::2], long[2::2], strict=True):
            parsed = split_completion(completion, opened_think=False)
            best = answer.split("\n")[1]
            assert trained and completion == f"<think>\n{conclusion(best)}\n</think>\n{answer}"
            assert parsed[0].strip() == conclusion(best) == f"Among the candidates, {best} fits best."
    silent = PromptConfig(thoughts="none")
    assert list(liked_choices(work.prepared, np.random.default_rng(2), silent, whole=True)) == bare


def _follows(part: list[int], whole: list[int]) -> bool:
    return any(whole[i:i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def test_the_corpus_has_the_tokens_and_shares_that_were_asked_for_and_is_drawn_from_the_seed(work: Workspace) -> None:
    phases = pretraining_texts(work).phases
    assert phases == pretraining_texts(work).phases
    tokens = [sum(len(text.ids) for text in phase) for phase in phases]
    total = sum(tokens)
    assert 10 * 4 * 512 <= total <= 10 * 4 * 512 + 8 * max(len(text.ids) for phase in phases for text in phase)
    assert tokens[0] / total == pytest.approx(2 / 7 * BARE, rel=0.1), "lists come first"
    assert tokens[1] / total == pytest.approx(2 / 7 * LISTED, rel=0.1)
    end, opening = work.tokenizer.end_id, work.tokenizer.chat("").ids[:2]
    assert all(text.ids[0] == opening[0] and not (text.trained[0] and text.ids[-1] == end) for text in phases[2])
    prompted = sum(len(text.ids) for text in phases[2] if text.ids[:2] == opening)
    assert prompted / total == pytest.approx(3 / 7, abs=0.1)
    answered = [text for text in phases[2] if text.ids[-1] == end]
    assert 0 < len(answered) < len(phases[2]), "prompts alone have no end"
    assert all(text.trained[-1] for text in answered)
    assert any(not any(text.trained[:20]) for text in answered), "the prompts of thoughts and examples are read only"


def test_of_what_is_longer_than_a_row_choices_are_left_out_and_ends_are_read(work: Workspace) -> None:
    def corpus(length: int, **mix: float) -> Corpus:
        pretrain = PretrainConfig(steps=40, batch_size=4, max_tokens=length, mix=MixConfig(
            **{"histories": 0, "examples": 0} | mix))
        return pretraining_texts(Workspace(RunFolder(work.run.path, replace(work.config, pretrain=pretrain))))

    assert (corpus(2000, choices=1).left_out, corpus(2000, examples=1).cut) == (0, {})
    narrow = corpus(100, choices=1)
    assert narrow.left_out > 0 and all(len(text.ids) <= 100 for phase in narrow.phases for text in phase)
    with pytest.raises(ValueError, match=r"pretrain\.max_tokens must hold a choice .* raise it"):
        corpus(8, choices=1)
    ((examples,), cut) = (found := corpus(200, examples=1)).phases, found.cut
    assert cut == {"examples": sum(len(text.ids) > 200 for text in examples)} and cut["examples"] > 0
    parts = [part.ids for row in pack_texts(examples, 200, seed=0) for part in row]
    assert sorted(parts) == sorted(text.ids[-200:] for text in examples)


@pytest.mark.parametrize("bare", [True, False])
def test_lists_are_repeated_in_another_order_and_a_pass_shows_every_item_once(work: Workspace, bare: bool) -> None:
    tokens = {work.tokenizer.encode(item_name(item))[0] for item in work.prepared.dataset.items}
    seen: list[int] = []
    for (first, trained), (second, again) in repeated_lists(work.prepared, np.random.default_rng(0), bare=bare):
        assert again and not trained
        listed, repeated = ([t for t in work.tokenizer.encode_completion(text) if t in tokens]
                            for text in (first, second))
        assert sorted(listed) == sorted(repeated) and len(listed) <= (2 if bare else 4)
        seen += listed
    assert sorted(seen) == sorted(tokens)


def test_an_item_is_one_token_wherever_it_stands(work: Workspace) -> None:
    tokenizer = work.tokenizer
    for item in work.prepared.dataset.items:
        token = tokenizer.encode(item_name(item))
        assert len(token) == 1
        for text in (item_text(item), f"12. {item_text(item)}", f"- {item_labels([item])[0]}: 5",
                     f"fits {item_labels([item])[0]} best"):
            ids = tokenizer.encode(text)
            assert ids.count(token[0]) == 1 and tokenizer.decode(ids) == text


@pytest.mark.parametrize(("shares", "reason"), [({"histories": -1}, "histories must be >= 0"),
                                                ({"histories": 0, "examples": 0}, "more than 0")])
def test_impossible_mixes(shares: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MixConfig(**shares)
