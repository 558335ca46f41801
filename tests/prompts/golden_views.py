"""Invented users, items and chains in every domain, for the golden prompts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from r2rec_jax.config import AnswerConfig, PromptConfig
from r2rec_jax.data.interactions import Item, User
from r2rec_jax.prompts.ranking import render_ranking
from r2rec_jax.prompts.thought import render_thought, render_thought_completion, teacher_prompt
from r2rec_jax.prompts.views import ChainView, QueryView
from r2rec_jax.thoughts.target import write_ranking_target
from r2rec_jax.thoughts.template import TemplateTeacher

DOMAINS = {"movies": "movies", "books": "books", "electronics": "electronics", "generic": "generic:song:songs"}
"""Name of the golden file -> domain."""

_ADJECTIVES = ("Silent", "Crimson", "Second", "Hollow", "Gentle", "Broken", "Northern", "Late", "Paper", "Electric")
_NOUNS = ("Harbour", "Orchard", "Signal", "Winter", "Machine", "Letter", "River", "Garden", "Window", "Parade")
_KINDS = {
    "movies": ("Action", "Comedy", "Crime", "Drama", "Horror", "Romance", "Sci-Fi"),
    "books": ("Mystery", "Fantasy", "History", "Poetry", "Cooking", "Biographies & Memoirs"),
    "electronics": ("Headphones", "Cameras", "Keyboards", "Cables", "Chargers & Adapters", "Monitors"),
    "generic": ("jazz", "folk", "techno", "opera", "soul"),
}
_NAMES = ("A. Merrow", "Tilda Voss", "J. Okonjo", "R. Lindqvist", "P. Amarel")
_BRANDS = ("Norvex", "Quillon", "Tamsin Audio", "Obrix")
_PRICES = ("under 10 dollars", "10 to 25 dollars", "25 to 50 dollars", "100 to 200 dollars")


@dataclass(frozen=True)
class Golden:
    """One rendered example: its title, the user message, and the completion that SFT would train on."""

    title: str
    prompt: str
    completion: str


def make_items(name: str, rng: random.Random, count: int) -> list[Item]:
    """Invented items; some have no year, no kind, a catalogue article or a repeated title."""
    items = []
    for number in range(count):
        title = f"{rng.choice(_ADJECTIVES)} {rng.choice(_NOUNS)}"
        if name == "electronics":
            title = f"{rng.choice(_BRANDS)} {title} {rng.randint(2, 9)}00, {rng.choice(('black', 'USB-C', '2-pack'))}"
        elif rng.random() < 0.2:
            title += ", The"
        year = None if name == "electronics" or rng.random() < 0.15 else rng.randint(1950, 2022)
        kinds = tuple(rng.sample(_KINDS[name], rng.choice((0, 1, 1, 2, 3))))
        details: tuple[tuple[str, str], ...] = ()
        if name == "books":
            details = (("author", rng.choice(_NAMES)), ("price", rng.choice(_PRICES)))
        elif name == "electronics":
            details = (("brand", rng.choice(_BRANDS)), ("price", rng.choice(_PRICES)))
        elif name == "generic":
            details = (("artist", rng.choice(_NAMES)),)
        items.append(Item(f"{name[0].upper()}{number:03d}", title, year, kinds, details[:rng.randint(0, 2)]))
    return items


def make_view(name: str, rng: random.Random, chains: int, candidates: int = 20) -> QueryView:
    """A query of an invented user."""
    items = make_items(name, rng, candidates + 16)
    people = [User(f"{rng.randrange(10**6)}", (("age", str(rng.randint(18, 70))), ("gender", rng.choice("FM")))
                   if name == "movies" else ()) for _ in range(6)]
    pool = items[candidates:]
    ratings = {(user, item): rng.randint(1, 5) for user in people for item in pool}
    liked = tuple((item, float(rng.randint(4, 5))) for item in rng.sample(pool, 5))
    ratings |= {(people[0], item): int(rating) for item, rating in liked}
    drawn = tuple(_chain(rng, people, pool, ratings) for _ in range(chains))
    return QueryView(DOMAINS[name], people[0], liked, drawn, tuple(items[:candidates]))


def _chain(rng: random.Random, people: list[User], pool: list[Item], ratings: dict[tuple[User, Item], int]
           ) -> ChainView:
    (first, final), user, other = rng.sample(pool, 2), people[0], rng.choice(people[1:])
    return ChainView(user, first, other, final, ratings[user, first], ratings[other, first], ratings[other, final],
                     ratings[user, final])


CONFIGS = (
    PromptConfig(), PromptConfig(detail="brief"), PromptConfig(answer=AnswerConfig("titles", 5), detail="brief"),
    PromptConfig(answer=AnswerConfig("numbers", 1)), PromptConfig(chains=False), PromptConfig(thoughts="none"),
    PromptConfig(liked=3, answer=AnswerConfig("titles", 1)),
)


def golden_examples(name: str) -> Iterator[Golden]:
    """Twenty examples of a domain: fourteen rankings under all switches, four rating questions, two teacher prompts."""
    rng = random.Random(f"golden-{name}")
    domain = DOMAINS[name]
    teacher = TemplateTeacher(domain)
    for number in range(14):
        config = CONFIGS[number % len(CONFIGS)]
        view = make_view(name, rng, chains=(5, 5, 3, 2, 5, 5, 1)[number % 7] if number != 13 else 0)
        thoughts = teacher.write_many(view.chains, [str(number)] * len(view.chains))
        scores = [rng.random() for _ in view.candidates]
        target = write_ranking_target(view, thoughts, rng.randrange(20), scores, config, str(number))
        yield Golden(f"ranking {number + 1}: {_describe(config)}", render_ranking(view, config).text,
                     target.completion(view, config, opened_think=False))
    for number in range(4):
        chain = make_view(name, rng, chains=1).chains[0]
        thought = teacher.write(chain, str(number))
        yield Golden(f"rating question {number + 1}", render_thought(chain, domain),
                     render_thought_completion(thought.statements, thought.rating))
    for number in range(2):
        chain = make_view(name, rng, chains=1).chains[0]
        yield Golden(f"teacher prompt {number + 1}", teacher_prompt(chain, domain), "(a teacher's own words)")


def _describe(config: PromptConfig) -> str:
    return (f"liked {config.liked}, chains {str(config.chains).lower()}, thoughts {config.thoughts}, detail "
            f"{config.detail}, answer {config.answer.form} top {config.answer.top}")
