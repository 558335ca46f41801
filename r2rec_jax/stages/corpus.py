"""What the ``tiny`` backbone is pretrained on: the text of the training side of the data, and nothing of any held-out
event.

Kinds of text, each ended by the end token, in the shares of ``pretrain.mix``. A kind is gone through again and again,
in a new order and with new draws each time, until it has its share of the tokens that the stage reads. One answer a
prompt is a thin signal for a model that starts from nothing: histories and choices say something with every item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.data.interactions import Item
from r2rec_jax.prompts.answer import render_answer, render_completion
from r2rec_jax.prompts.templates import wording
from r2rec_jax.prompts.thought import render_thought, render_thought_completion
from r2rec_jax.prompts.verbalize import item_labels, item_text
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.rendering import distinct_chains, render_queries
from r2rec_jax.stages.thinking import read_examples, shown_thoughts, write_thoughts
from r2rec_jax.stages.workspace import Workspace

LIKES_A_TEXT = 20
SHARE_WITH_FACTS = 0.25
CHOICE_SIZES = (4, 12)
"""Fewest and most items of a choice."""
SHOWN_BEFORE_CHOICES = 5

Pass = Callable[[np.random.Generator], Iterator[list[int]]]
"""One pass over a kind of text: token ids, end token included."""


def pretraining_texts(work: Workspace) -> list[list[int]]:
    """Token ids of every text, end token included: as many tokens as pretraining reads, in the shares of its mix."""
    c = work.config.pretrain
    shares = {kind: share for kind, share in asdict(c.mix).items() if share}
    budget = c.steps * c.batch_size * c.max_tokens
    texts = []
    for kind, share in shares.items():
        rng = np.random.default_rng([work.config.train_seed, *kind.encode()])
        texts += _until(_passes(work, kind), budget * share / sum(shares.values()), rng, kind)
    return texts


def _until(one_pass: Pass, tokens: float, rng: np.random.Generator, kind: str) -> list[list[int]]:
    """Texts of as many passes as it takes."""
    texts: list[list[int]] = []
    while tokens > 0:
        before = len(texts)
        for text in one_pass(rng):
            texts.append(text)
            tokens -= len(text)
            if tokens <= 0:
                return texts
        if len(texts) == before:
            raise ValueError(f"pretrain.mix.{kind} must be 0 where the data holds no such text; got more")
    return texts


def _passes(work: Workspace, kind: str) -> Pass:
    tokenizer, prepared = work.tokenizer, work.prepared

    def ended(text: str) -> list[int]:
        return [*tokenizer.encode_completion(text), tokenizer.end_id]

    def chat(prompt: str, completion: str) -> list[int]:
        return [*tokenizer.chat(prompt).ids, *ended(completion)]

    def shuffled(texts: list[list[int]]) -> Pass:
        return lambda rng: (texts[i] for i in rng.permutation(len(texts)))

    if kind == "histories":
        return lambda rng: map(ended, liked_histories(prepared, rng))
    if kind == "choices":
        return lambda rng: map(ended, liked_choices(prepared, rng))
    if kind == "thoughts":
        return shuffled([chat(*pair) for pair in _thoughts(work)])
    if kind == "prompts":
        queries = [*prepared.queries["sft"], *prepared.queries["rl"]]
        return shuffled([list(r.chat.ids) for r in render_queries(
            prepared, queries, work.config.prompts, tokenizer, shown_thoughts(work, queries))])
    return shuffled([chat(e.prompt, e.completion)
                     for e in read_examples(work.run.folder("thoughts") / "sft.jsonl")])


def training_likes(prepared: Prepared) -> list[NDArray[np.integer]]:
    """Every user's likes among the training edges, oldest first: no validation or test event, and nothing after it."""
    events = prepared.dataset.interactions
    wanted = prepared.training & (events.rating > prepared.data_config.positive_above)
    return [events.item_idx[start:end][wanted[start:end]]
            for start, end in zip(events.offsets[:-1], events.offsets[1:], strict=True)]


def liked_histories(prepared: Prepared, rng: np.random.Generator) -> Iterator[str]:
    """What each user liked, oldest first, one item a line, cut into texts of :data:`LIKES_A_TEXT` items from a drawn
    place on; one text in four has the items' facts."""
    names = [item_labels([item])[0] for item in prepared.dataset.items]
    facts = [item_text(item) for item in prepared.dataset.items]
    likes = training_likes(prepared)
    for user in rng.permutation(len(likes)):
        liked = likes[user]
        cuts = [0, *range(int(rng.integers(1, LIKES_A_TEXT + 1)), len(liked), LIKES_A_TEXT), len(liked)]
        for start, end in pairwise(cuts):
            if end > start:
                lines = facts if rng.random() < SHARE_WITH_FACTS else names
                yield "\n".join(lines[i] for i in liked[start:end])


def liked_choices(prepared: Prepared, rng: np.random.Generator) -> Iterator[str]:
    """Likes as choices: a few likes of a user, then again and again a numbered list and the one item of it that the
    user liked next. The others are items that the user has no training edge with."""
    items = prepared.dataset.items
    words = wording(prepared.dataset.domain)
    likes = training_likes(prepared)
    for user in rng.permutation(len(likes)):
        liked = likes[user]
        others = np.setdiff1d(np.arange(len(items)), prepared.graph.items_of(user))
        if not len(others):
            continue
        for start in range(int(rng.integers(1, SHOWN_BEFORE_CHOICES + 1)), len(liked), LIKES_A_TEXT):
            shown = liked[max(0, start - SHOWN_BEFORE_CHOICES):start]
            head = [f"Liked {words.items}:", *(f"- {item_labels([items[i]])[0]}" for i in shown)]
            yield "\n".join([*head, *(_choice(items, int(target), others, rng)
                                      for target in liked[start:start + LIKES_A_TEXT])])


def _choice(items: Sequence[Item], target: int, others: NDArray[np.integer], rng: np.random.Generator) -> str:
    """A numbered list and the one item of it that was liked."""
    count = min(int(rng.integers(CHOICE_SIZES[0], CHOICE_SIZES[1] + 1)), len(others) + 1)
    listed = rng.permutation([target, *rng.choice(others, count - 1, replace=False)]).tolist()
    labels, position = item_labels([items[i] for i in listed]), listed.index(target)
    lines = [f"{number}. {label}" for number, label in enumerate(labels, start=1)]
    answer = render_completion((), render_answer((position,), "titles", labels, 1))
    return "\n".join(["Candidates:", *lines, answer])


def _thoughts(work: Workspace) -> Iterator[tuple[str, str]]:
    """Rating questions on all chains of the SFT queries, with their answers."""
    queries = work.prepared.queries["sft"]
    written = write_thoughts(work, queries)
    opened = work.tokenizer.chat("").opened_think
    domain = work.config.prompts.domain
    domain = work.prepared.dataset.domain if domain == "auto" else domain
    for chain in dict.fromkeys(c for query in queries for c in distinct_chains(work.prepared, query)):
        thought = written[chain]
        if thought is not None:
            yield (render_thought(chain, domain).text,
                   render_thought_completion(thought.statements, thought.rating, opened_think=opened))
