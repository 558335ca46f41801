"""The ranking prompt: profile, recent likes, interaction chains and numbered candidates (section 4.1.2).

The closing rating of a chain is part of the target user's visible history, so it is shown. Instructions stand behind
the material, next to where the model starts to write. Kept short on purpose: an item's year and genres are given once,
and later chains name it by title; five chains and twenty candidates of MovieLens are about 850 tokens of SmolLM2.
"""

from __future__ import annotations

from dataclasses import dataclass

from r2rec_jax.config import PromptConfig
from r2rec_jax.prompts.templates import RATING_WORDS, Wording, wording
from r2rec_jax.prompts.verbalize import (
    TARGET,
    candidate_texts,
    chain_text,
    item_labels,
    item_text,
    profile_text,
)
from r2rec_jax.prompts.views import ChainView, QueryView

RATING_KEY = "Ratings: " + ", ".join(f"{r} {RATING_WORDS[r - 1]}" for r in (5, 4, 3, 2, 1)) + "."


@dataclass(frozen=True)
class RankingPrompt:
    """A rendered ranking prompt.

    Attributes:
        text: the whole user message.
        candidates: the candidates' labels, all different, in prompt order.
    """

    text: str
    candidates: tuple[str, ...]


def shown_chains(view: QueryView, config: PromptConfig, chains_kept: int | None = None) -> tuple[ChainView, ...]:
    """The chains that the prompt shows: the last ``chains_kept`` ones (the oldest are dropped first), all when None."""
    if not config.chains:
        return ()
    if chains_kept is None:
        return view.chains
    if chains_kept < 0:
        raise ValueError(f"chains_kept must be >= 0; got {chains_kept}")
    return view.chains[max(0, len(view.chains) - chains_kept):]


def shown_rating(rating: float) -> str:
    """``4`` or ``3.5``."""
    return f"{rating:g}"


def render_ranking(view: QueryView, config: PromptConfig, chains_kept: int | None = None) -> RankingPrompt:
    """Render the prompt of a query.

    Args:
        view: the query with its items and users, their facts included as far as they are to be shown.
        config: what to show.
        chains_kept: show at most this many chains (see :func:`shown_chains`).

    Returns:
        The prompt; its candidates are exactly ``len(view.candidates)`` numbered lines.

    Raises:
        ValueError: fewer than two candidates, or ``thoughts: prompt`` without a thought (blank where the teacher
            gave up) for each chain.
    """
    if len(view.candidates) < 2:
        raise ValueError(f"a ranking prompt needs at least 2 candidates; got {len(view.candidates)}")
    words = wording(config.template(view.domain))
    chains = shown_chains(view, config, chains_kept)
    count = len(view.candidates)
    texts = candidate_texts(view.candidates)
    blocks = [
        f"Rank {count} candidate {words.items} for the {TARGET}. Ratings go from 1 ({RATING_WORDS[0]}) to 5 "
        f"({RATING_WORDS[4]}).",
        _profile(view),
        *_liked(view, config, words),
    ]
    if config.chains:
        blocks += _chains(view, chains, config, words)
    blocks += ["Candidates:", *(f"{number}. {text}" for number, text in enumerate(texts, start=1))]
    blocks.append(_instructions(words, config, count, has_chains=bool(chains)))
    return RankingPrompt("\n".join(block for block in blocks if block), item_labels(view.candidates))


def _profile(view: QueryView) -> str:
    profile = profile_text(view.profile)
    return f"{TARGET.capitalize()}: {profile}" if profile else ""


def liked_heading(words: Wording, config: PromptConfig) -> str:
    """``Recently liked movies, newest first:``."""
    return f"Recently liked {words.items}, {config.order.replace('-', ' ')}:"


def _liked(view: QueryView, config: PromptConfig, words: Wording) -> list[str]:
    liked = view.liked[:config.liked]
    if not liked:
        return [f"Recently liked {words.items}: none."]
    if config.order == "oldest-first":
        liked = liked[::-1]
    return [liked_heading(words, config),
            *(f"- {item_text(item)}: {shown_rating(rating)}" for item, rating in liked)]


def _chains(view: QueryView, chains: tuple[ChainView, ...], config: PromptConfig, words: Wording) -> list[str]:
    if not chains:
        return ["Interaction chains: none."]
    thoughts: tuple[str, ...] = ("",) * len(chains)
    if config.thoughts == "prompt":
        if len(view.thoughts) != len(view.chains):
            raise ValueError(f"thoughts: prompt needs one thought for each of the {len(view.chains)} chains; "
                             f"got {len(view.thoughts)}")
        thoughts = view.thoughts[len(view.thoughts) - len(chains):]
    described = {item.item_id for item, _ in view.liked[:config.liked]}
    lines = [f"Interaction chains, ratings between users and {words.items}:"]
    for chain, thought in zip(chains, thoughts, strict=True):
        shown = chain_text(chain, described=described if config.facts else ())
        lines.append(f"- {shown}")
        described |= {chain.item0.item_id, chain.item1.item_id}
        if thought.strip():
            lines.append(f"  Thought: {' '.join(thought.split())}")
    return lines


def _instructions(words: Wording, config: PromptConfig, count: int, *, has_chains: bool) -> str:
    top = min(config.answer.top, count)
    if config.thoughts == "none":
        start = "Answer at once, without reasoning, with"
    else:
        also = ", what each chain suggests" if has_chains else ""
        start = f"Reason in <think> </think>, one statement a line: what the recent likes share{also}. Then answer with"
    if config.answer.form == "numbers":
        what, example = "the candidate numbers", "<answer>7, 3, 12, ...</answer>"
        one = "the number of the one best candidate: <answer>7</answer>"
    else:
        what, example = "the titles with years, one a line,", "<answer>...</answer>"
        one = f"the title with year of the one best {words.item}: <answer>...</answer>"
    if top == 1:
        return f"{start} {one}"
    return f"{start} {what} of {f'all {count}' if top == count else f'the {top} best'}, best first: {example}"
