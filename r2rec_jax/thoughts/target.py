"""The SFT target of a ranking prompt: statements that are true of the prompt, then the order (section 3.3.1).

Reasoning goes from the recent likes over the chains that the prompt shows to the taste they add up to. Only the last
statement names the true item. The order begins with it; the others follow by a score from training edges, which carries
no label, ties by a keyed hash. Facts and counts are taken from what the prompt displays, never from behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2rec_jax.config import PromptConfig
from r2rec_jax.data.interactions import Item
from r2rec_jax.prompts.answer import render_answer, render_completion
from r2rec_jax.prompts.ranking import shown_chains
from r2rec_jax.prompts.templates import Wording, wording
from r2rec_jax.prompts.verbalize import genre_texts, item_labels, rating_words, title_text
from r2rec_jax.prompts.views import QueryView
from r2rec_jax.thoughts.teacher import (
    Phrase,
    Thought,
    end_once,
    join_words,
    keyed_number,
    phrasing,
)

CONCLUSIONS = (_FITS, _CLOSEST) = ("Among the candidates,", "Of all candidates,")
"""How the statement begins that names the answer."""


def conclusion(answer: str, reason: str = "") -> str:
    """The statement that names the answer."""
    return f"{_FITS} {answer} fits best{reason}."


@dataclass(frozen=True)
class RankingTarget:
    """What the model should answer to a ranking prompt.

    Attributes:
        statements: the reasoning; only the last one names the true item.
        order: 0-based candidate positions, best first, the true item in front; already cut to ``answer.top``.
    """

    statements: tuple[str, ...]
    order: tuple[int, ...]

    def completion(self, view: QueryView, config: PromptConfig, *, opened_think: bool) -> str:
        """The completion that SFT trains on."""
        answer = render_answer(self.order, config.answer.form, item_labels(view.candidates), config.answer.top)
        return render_completion(self.statements, answer, opened_think=opened_think)


def write_ranking_target(
    view: QueryView,
    thoughts: Sequence[Thought | None],
    target_position: int,
    scores: Sequence[float],
    config: PromptConfig,
    key: str,
    chains_kept: int | None = None,
) -> RankingTarget:
    """Write the target of one query.

    Args:
        view: what the prompt shows.
        thoughts: one for each of ``view.chains``; None where the teacher gave up.
        target_position: 0-based position of the true item among the candidates.
        scores: of the candidates, from training edges only; higher comes first.
        config: the prompt's switches.
        key: chooses among phrasings and breaks ties.
        chains_kept: as in the prompt: thoughts are given for the chains that it shows.

    Raises:
        ValueError: the lengths do not fit, or the position is outside the candidates.
    """
    count = len(view.candidates)
    if not 0 <= target_position < count:
        raise ValueError(f"target_position must be in 0..{count - 1}; got {target_position}")
    if len(scores) != count or len(thoughts) != len(view.chains):
        raise ValueError(f"a ranking target needs a score for each of {count} candidates and a thought for each of "
                         f"{len(view.chains)} chains; got {len(scores)} and {len(thoughts)}")
    ties = [keyed_number(key, "order", item.item_id) for item in view.candidates]
    others = sorted((p for p in range(count) if p != target_position), key=lambda p: (-float(scores[p]), ties[p]))
    order = (target_position, *others)[:config.answer.top]
    if config.thoughts == "none":
        return RankingTarget((), order)
    phrase = phrasing(key, varied=config.wording == "varied")
    return RankingTarget(_statements(view, thoughts, target_position, config, phrase, chains_kept), order)


def _statements(
    view: QueryView, thoughts: Sequence[Thought | None], target_position: int, config: PromptConfig,
    phrase: Phrase, chains_kept: int | None,
) -> tuple[str, ...]:
    name = title_text(view.candidates[target_position]).casefold()
    statements, tastes, taste = before_the_answer(view, thoughts, name, config, phrase, chains_kept)
    statements.append(_conclusion(view, target_position, tastes, taste, config, phrase))
    return tuple(dict.fromkeys(map(end_once, statements)))


def before_the_answer(
    view: QueryView, thoughts: Sequence[Thought | None], answer: str | None, config: PromptConfig, phrase: Phrase,
    chains_kept: int | None,
) -> tuple[list[str], list[Item], list[str]]:
    """The statements that lead up to the conclusion, the items liked, and the genres of their taste.

    Args:
        view, thoughts, config, chains_kept: as :func:`write_ranking_target` has them.
        answer: case-folded name that must not be mentioned yet; None leaves nothing out.
        phrase: chooses the words.
    """
    words = wording(config.template(view.domain))
    liked = view.liked[:config.liked]
    chains = shown_chains(view, config, chains_kept)
    statements = _likes(liked, answer, words, phrase)
    tastes = [item for item, _ in liked]
    for chain, thought in zip(chains, thoughts[len(thoughts) - len(chains):], strict=True):
        if answer in (title_text(chain.item0).casefold(), title_text(chain.item1).casefold()):
            continue  # another item of the answer's name: its thought would seem to name the answer too early
        if config.thoughts == "completion" and thought is not None:
            statements += [thought.one_line] if config.detail == "brief" else list(thought.statements)
        tastes += [item for item, rating in ((chain.item0, chain.rating_u0), (chain.item1, chain.rating_u1))
                   if rating >= 4]
    tastes = list({item.item_id: item for item in tastes}.values())
    taste = _taste_genres(tastes)
    if taste:
        statements.append(phrase([f"Taken together, they like {join_words(taste)} most.",
                                  f"All in all the taste is {join_words(taste)}.",
                                  f"So the {words.genres} to look for: {join_words(taste)}."], "taste"))
    return statements, tastes, taste


def _likes(liked: Sequence[tuple[Item, float]], answer: str | None, words: Wording, phrase: Phrase) -> list[str]:
    """What the recent likes have in common: genres, years, and which were liked most."""
    if not liked:
        return []
    counts = Counter(genre for item, _ in liked for genre in genre_texts(item))
    recurring = [(genre, n) for genre, n in counts.most_common(3) if n >= 2]
    statements = []
    if recurring:
        listed = join_words([f"{n} are {genre}" for genre, n in recurring])
        statements.append(phrase([f"Of {len(liked)} recent likes, {listed}.",
                                  f"Among the {len(liked)} recent likes {listed}.",
                                  f"In the {len(liked)} {words.items} they liked last, {listed}."], "genres"))
    elif counts:
        listed = join_words(list(counts)[:4])
        statements.append(phrase([f"No {words.genre} recurs in the recent likes; they include {listed}.",
                                  f"The recent likes vary: {listed}."], "genres"))
    years = sorted(item.year for item, _ in liked if item.year is not None)
    if len(years) == len(liked) > 1:
        statements.append(_years(years, words, phrase))
    best = max(rating for _, rating in liked)
    favourites = [title_text(item) for item, rating in liked if rating == best]
    if len(favourites) < len(liked) and answer not in [title.casefold() for title in favourites]:
        verdict = f"{best:g} ({rating_words(best)})"
        listed = join_words(favourites) if len(favourites) <= 2 else f"{favourites[0]} and {len(favourites) - 1} more"
        statements.append(phrase([f"Their highest rating of these, {verdict}, went to {listed}.",
                                  f"Of these, {listed} got their best rating, {verdict}."], "best"))
    return statements


def _years(years: Sequence[int], words: Wording, phrase: Phrase) -> str:
    decades = {year // 10 * 10 for year in years}
    if len(decades) == 1:
        return phrase([f"All of these are from the {decades.pop()}s.", f"Their years lie between {years[0]} and "
                     f"{years[-1]}." if years[0] < years[-1] else f"All of these are from {years[0]}."], "years")
    middle = Counter(year // 10 * 10 for year in years).most_common(1)[0]
    mostly = f", mostly the {middle[0]}s" if 2 * middle[1] > len(years) else ""
    return phrase([f"They range from {years[0]} to {years[-1]}{mostly}.",
                   f"Their years run from {years[0]} to {years[-1]}{mostly}."], "years")


def _taste_genres(items: Sequence[Item]) -> list[str]:
    """The most frequent genres of what the prompt shows as liked: up to three, those seen once only if none recurs."""
    counts = Counter(genre for item in items for genre in genre_texts(item))
    ranked = counts.most_common(3)
    return [genre for genre, n in ranked if n >= 2] or [genre for genre, _ in ranked[:2]]


def _conclusion(
    view: QueryView, target_position: int, tastes: Sequence[Item], taste: Sequence[str], config: PromptConfig,
    phrase: Phrase,
) -> str:
    """The only statement that names the answer, with a reason that is true of the prompt where there is one."""
    answer = view.candidates[target_position]
    label = item_labels(view.candidates)[target_position]
    number = f" (candidate {target_position + 1})" if config.answer.form == "numbers" else ""
    genres = genre_texts(answer)
    shared = [genre for genre in genres if genre in taste]
    overlap = [len(set(genres) & set(genre_texts(item))) for item in tastes]
    nearest = tastes[int(np.argmax(overlap))] if overlap and max(overlap) > 0 else None
    years = [item.year for item in tastes if item.year is not None]
    reason = ""
    if shared:
        reason = phrase([f", as it is {join_words(shared)}", f": it has the {join_words(shared)} they like"],
                        "reason")
    elif nearest is not None:
        common = join_words([genre for genre in genres if genre in genre_texts(nearest)])
        reason = f", sharing {common} with {title_text(nearest)}"
    elif answer.year is not None and any(abs(answer.year - year) <= 5 for year in years):
        reason = f"; like others they liked, it is from around {answer.year}"
    return phrase([conclusion(label + number, reason), f"{_CLOSEST} {label}{number} comes closest{reason}."],
                  "conclusion")
