"""What a backbone is pretrained on: the text of the training side of the data, and nothing of any held-out
event.

Kinds of text, with begin and end tokens, in the shares of ``pretrain.mix``. A kind is gone through again and again,
in a new order and with new draws each time, until it has its share of the tokens that the stage reads. One answer a
prompt is a thin signal for a model that starts from nothing: histories and choices say something with every item.
What is drawn at random or given (the lists of choices, the prompts of thoughts and examples) is read but not trained.
A choice longer than a row is left out: its answer, cut off from its list, would teach to name what is not shown.

To choose from a list takes copying out of it. The ``tiny`` backbone, which reads choices and histories from the start,
has not learned to copy after a million tokens; after some hundred updates on bare lists it soon does (ARCHITECTURE.md).
So its corpus is a curriculum: bare lists, lists as answers write them, everything else. A pretrained backbone can copy,
and goes through everything at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.config import PromptConfig
from r2rec_jax.prompts.answer import ANSWER, render_answer, render_completion
from r2rec_jax.prompts.ranking import liked_heading
from r2rec_jax.prompts.templates import wording
from r2rec_jax.prompts.thought import render_thought, render_thought_completion
from r2rec_jax.prompts.verbalize import candidate_texts, item_labels, item_name, item_text
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.rendering import render_queries
from r2rec_jax.stages.thinking import read_examples, shown_thoughts, write_thoughts
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.thoughts.target import conclusion
from r2rec_jax.training.pretrain import Text

LIKES_A_TEXT = 20
SHARE_WITH_FACTS, CHOICES_WITH_FACTS = 0.1, 0.4
"""Of histories and of choices: texts with every item's facts, as prompts list them. All else has names only."""
CHOICE_SIZES = (1, 20)
"""Fewest and most items of a choice, small ones being more frequent (log-uniform)."""
SHOWN_BEFORE_CHOICES = 10
CHOICES_A_TEXT = 2
BARE, LISTED = 0.15, 0.2
"""Shares of the tokens of choices that are lists: names alone, and lines inside an answer."""
ANSWERED = 3
"""Places of an answer to a choice: each is one more copy out of a list to learn from."""

Pass = Callable[[np.random.Generator], Iterator[Text]]
"""One pass over a kind of text."""

Part = tuple[str, bool]
"""A part of a text, and whether it is trained."""


@dataclass(frozen=True)
class Corpus:
    """What is read.

    Attributes:
        phases: every text, end token included, by phase of the curriculum.
        left_out: choices that are longer than a row.
        cut: kind -> texts of which only the end is read, since they are.
    """

    phases: list[list[Text]]
    left_out: int
    cut: dict[str, int]


def pretraining_texts(work: Workspace) -> Corpus:
    """As many tokens as pretraining reads, in the shares of its mix."""
    c = work.config.pretrain
    shares = {kind: share for kind, share in asdict(c.mix).items() if share}
    scale = c.steps * c.batch_size * c.max_tokens / sum(shares.values())
    plan = [[(kind, share * scale) for kind, share in shares.items()]]
    if work.is_tiny and "choices" in shares:
        choices = shares["choices"] * scale
        rest = [(kind, tokens * (1 - BARE - LISTED) if kind == "choices" else tokens) for kind, tokens in plan[0]]
        plan = [[("bare lists", choices * BARE)], [("bare lists", choices * LISTED / 4),
                                                   ("lists", choices * LISTED * 3 / 4)], rest]
    left_out, cut, phases = 0, Counter[str](), []
    for number, phase in enumerate(plan):
        phases.append([])
        for kind, tokens in phase:
            rng = np.random.default_rng([work.config.train_seed, number, *kind.encode()])
            texts, long = _until(_passes(work, kind), tokens, rng, kind, c.max_tokens)
            left_out += long
            cut[kind] += sum(len(text.ids) > c.max_tokens and not text.in_parts for text in texts)
            phases[-1] += texts
    return Corpus(phases, left_out, dict(+cut))


def _until(one_pass: Pass, tokens: float, rng: np.random.Generator, kind: str, length: int) -> tuple[list[Text], int]:
    """Texts of as many passes as it takes, and how many were left out."""
    texts: list[Text] = []
    left_out = 0
    while tokens > 0:
        before, left_before = len(texts), left_out
        for text in one_pass(rng):
            if kind == "choices" and len(text.ids) > length:
                left_out += 1
                continue
            texts.append(text)
            tokens -= len(text.ids) if text.in_parts else min(len(text.ids), length)
            if tokens <= 0:
                return texts, left_out
        if not texts and left_out:
            raise ValueError(f"pretrain.max_tokens must hold a choice of pretrain.mix.choices; got {length}, and all "
                             f"{left_out} are longer; raise it, or set that share to 0")
        if len(texts) == before and left_out == left_before:
            raise ValueError(f"pretrain.mix.{kind} must be 0 where the data holds no such text; got more")
    return texts, left_out


def _passes(work: Workspace, kind: str) -> Pass:
    tokenizer, prepared = work.tokenizer, work.prepared

    def ended(*parts: Part, before: Sequence[int] = tokenizer.document_start) -> Text:
        ids = [tokenizer.encode_completion(text) for text, _ in parts]
        trained = [wanted for (_, wanted), part in zip(parts, ids, strict=True) for _ in part]
        return Text((*before, *(token for part in ids for token in part), tokenizer.end_id),
                    (*(False for _ in before), *trained, True))

    def chat(prompt: str, completion: str) -> Text:
        return ended((completion, True), before=tokenizer.chat(prompt).ids)

    def shuffled(texts: Sequence[Text]) -> Pass:
        return lambda rng: (texts[i] for i in rng.permutation(len(texts)))

    if kind == "histories":
        return lambda rng: (ended((text, True)) for text in liked_histories(prepared, rng))
    if kind in ("bare lists", "lists"):
        return lambda rng: (ended(*parts) for parts in repeated_lists(prepared, rng, bare=kind == "bare lists"))
    if kind == "choices":
        whole = work.config.pretrain.choices_as == "completion"
        return lambda rng: (ended(*parts) for parts in liked_choices(prepared, rng, work.config.prompts, whole=whole))
    if kind == "thoughts":
        return shuffled([chat(*pair) for pair in _thoughts(work)])
    if kind == "prompts":
        queries = [*prepared.queries["sft"], *prepared.queries["rl"]]
        return shuffled([Text.whole(r.chat.ids) for r in render_queries(
            prepared, queries, work.config.prompts, tokenizer, shown_thoughts(work, queries))])
    return shuffled([chat(e.prompt, e.completion)
                     for e in read_examples(work.run.folder("thoughts") / "sft.jsonl")])


def training_likes(prepared: Prepared) -> list[NDArray[np.integer]]:
    """Every user's likes among the training edges, oldest first: no validation or test event, and nothing after it.

    The targets of SFT and RL queries are left out too. A model that has read them remembers them, and then SFT and GRPO
    train it to recall what it has read, which does not help with what nobody has. (Texts of SFT queries, thoughts and
    examples, speak of their own users' likes alone, and GRPO asks about other users.)
    """
    events = prepared.dataset.interactions
    wanted = prepared.training & (events.rating > prepared.data_config.positive_above)
    for split in ("sft", "rl"):
        for query in prepared.queries[split]:
            start, end = events.offsets[query.user_idx:query.user_idx + 2]
            wanted[start:end] &= events.item_idx[start:end] != query.target
    return [events.item_idx[start:end][wanted[start:end]]
            for start, end in zip(events.offsets[:-1], events.offsets[1:], strict=True)]


def liked_histories(prepared: Prepared, rng: np.random.Generator) -> Iterator[str]:
    """What each user liked, oldest first, one item a line, cut into texts of :data:`LIKES_A_TEXT` items from a drawn
    place on."""
    names = [item_text(item, facts=False) for item in prepared.dataset.items]
    facts = [item_text(item) for item in prepared.dataset.items]
    likes = training_likes(prepared)
    for user in rng.permutation(len(likes)):
        liked = likes[user]
        cuts = [0, *range(int(rng.integers(1, LIKES_A_TEXT + 1)), len(liked), LIKES_A_TEXT), len(liked)]
        for start, end in pairwise(cuts):
            if end > start:
                lines = facts if rng.random() < SHARE_WITH_FACTS else names
                yield "\n".join(lines[i] for i in liked[start:end])


def repeated_lists(prepared: Prepared, rng: np.random.Generator, *, bare: bool) -> Iterator[list[Part]]:
    """A few items, and the same again in another order; a pass shows every item once.

    Args:
        prepared: the data.
        rng: draws them.
        bare: up to two names (which are tokens where items are) with a tag between them; else up to four lines inside
            an answer.
    """
    items = prepared.dataset.items
    order = rng.permutation(len(items)).tolist()
    while order:
        count = int(rng.integers(1, 3 if bare else 5))
        listed, order = [items[i] for i in order[:count]], order[count:]
        again = [listed[i] for i in rng.permutation(len(listed))]
        if bare:
            first, second = (", ".join(item_name(item) for item in some) for some in (listed, again))
            yield [(f"{first}{ANSWER}", False), (second, True)]
        else:
            names = [item_text(item, facts=False) for item in again]
            answer = render_answer(range(len(names)), "titles", names, count)
            yield [("".join(f"{item_text(item, facts=False)}\n" for item in listed), False), (answer, True)]


def liked_choices(prepared: Prepared, rng: np.random.Generator, prompts: PromptConfig, *, whole: bool = False
                  ) -> Iterator[list[Part]]:
    """Likes as choices: a few likes of a user, then a numbered list and the best of it: first the item that the user
    liked next, then the most popular of the others, with which the user has no training edge.

    In the words and order of ranking prompts. Where those show every item's facts some choices do; the others have
    names only, which leaves room for a second choice.

    Args:
        prepared: the data.
        rng: draws lists.
        prompts: words, order and whether there are thoughts.
        whole: a choice is a whole completion, whose thought says which item fits best.
    """
    items = prepared.dataset.items
    heading = liked_heading(wording(prompts.template(prepared.dataset.domain)), prompts)
    with_facts = CHOICES_WITH_FACTS if prompts.facts else 0
    likes = training_likes(prepared)
    for user in rng.permutation(len(likes)):
        liked = likes[user]
        others = np.setdiff1d(np.arange(len(items)), prepared.graph.items_of(user))
        if not len(others):
            continue
        for start in range(int(rng.integers(1, CHOICES_A_TEXT + 1)), len(liked), CHOICES_A_TEXT):
            facts = bool(rng.random() < with_facts)
            shown = [items[i] for i in liked[max(0, start - int(rng.integers(1, SHOWN_BEFORE_CHOICES + 1))):start]]
            if prompts.order == "newest-first":
                shown = shown[::-1]
            lines = "".join(f"- {item_text(item, facts=facts)}\n" for item in shown)
            parts = [(f"{heading}\n{lines}", True)]
            for target in liked[start:start + (1 if facts else CHOICES_A_TEXT)]:
                parts += _choice(prepared, int(target), others, rng, facts=facts,
                                 thought=whole and prompts.thoughts != "none")
            yield parts


def _choice(prepared: Prepared, target: int, others: NDArray[np.integer], rng: np.random.Generator, *,
            facts: bool, thought: bool) -> list[Part]:
    """A numbered list, and the best of it."""
    least, most = CHOICE_SIZES
    count = min(int(np.exp(rng.uniform(np.log(least), np.log(most + 1)))), len(others) + 1)
    listed = rng.permutation([target, *rng.choice(others, count - 1, replace=False)]).tolist()
    of_list = [prepared.dataset.items[i] for i in listed]
    labels = item_labels(of_list)
    best = sorted(range(count), key=lambda i: (listed[i] != target, -prepared.item_scores[listed[i]]))
    texts = candidate_texts(of_list, facts=facts)
    lines = "".join(f"{number}. {text}\n" for number, text in enumerate(texts, start=1))
    answer = render_completion([conclusion(labels[best[0]])] if thought else [],
                               render_answer(best, "titles", labels, ANSWERED))
    return [(f"Candidates:\n{lines}", False), (f"{answer}\n", True)]


def _thoughts(work: Workspace) -> Iterator[tuple[str, str]]:
    """Rating questions on all chains of the SFT queries, with their answers."""
    written = write_thoughts(work, work.prepared.queries["sft"])
    opened = work.tokenizer.chat("").opened_think
    domain = work.config.prompts.template(work.prepared.dataset.domain)
    for chain, thought in written.items():
        if thought is not None:
            yield (render_thought(chain, domain),
                   render_thought_completion(thought.statements, thought.rating, opened_think=opened))
