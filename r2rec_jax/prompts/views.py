"""What a prompt shows, with every index resolved to its item or user.

Without ``prompts.facts`` its items carry title and year alone: whoever writes from a view, a teacher above all, cannot
speak of facts that the prompt does not show. With ``prompts.names: label`` the year is part of the title.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from r2rec_jax.config import PromptConfig
from r2rec_jax.data.interactions import Dataset, Item, User

if TYPE_CHECKING:
    from r2rec_jax.graph.chains import Chain


@dataclass(frozen=True)
class ChainView:
    """An interaction chain (Eq. 1): user -rating_u0- item0 -rating_n0- neighbour -rating_n1- item1 -rating_u1- user.

    ``rating_u1`` closes the chain; it is the answer of the rating question and is masked there.

    Raises:
        ValueError: a rating is not a whole number from 1 to 5.
    """

    user: User
    item0: Item
    neighbour: User
    item1: Item
    rating_u0: int
    rating_n0: int
    rating_n1: int
    rating_u1: int

    def __post_init__(self) -> None:
        for name in ("rating_u0", "rating_n0", "rating_n1", "rating_u1"):
            value = getattr(self, name)
            if value not in (1, 2, 3, 4, 5):
                raise ValueError(f"{name} of a chain must be a whole number from 1 to 5; got {value!r}; "
                                 "round the ratings when loading the data")
            object.__setattr__(self, name, int(value))


@dataclass(frozen=True)
class QueryView:
    """One recommendation query.

    Attributes:
        domain: the template's domain (``movies``).
        profile: the target user; None, or a user without attributes, shows no profile.
        liked: most recent liked items with their ratings, newest first.
        chains: interaction chains, oldest (first dropped) first.
        candidates: in prompt order; candidate number k is ``candidates[k - 1]``.
        thoughts: a teacher's thought for each chain, one line each; read only with ``thoughts: prompt``.
    """

    domain: str
    profile: User | None
    liked: tuple[tuple[Item, float], ...]
    chains: tuple[ChainView, ...]
    candidates: tuple[Item, ...]
    thoughts: tuple[str, ...] = field(default=())


def shown_item(item: Item, config: PromptConfig) -> Item:
    """The item as prompts show it: without ``facts`` its title and year alone, and with ``names: label`` both as one
    name."""
    if not config.facts:
        item = replace(item, genres=(), details=())
    if config.names == "title" or item.year is None:
        return item
    year = f"({item.year})"
    title = item.title.strip(" ")
    return replace(item, title=title if title.endswith(year) else f"{title} {year}", year=None)


def resolve_chain(dataset: Dataset, chain: Chain, config: PromptConfig) -> ChainView:
    """A chain of indices as a chain of records, its items as :func:`shown_item` leaves them."""
    return ChainView(
        user=dataset.users[chain.user_idx],
        item0=shown_item(dataset.items[chain.item0], config),
        neighbour=dataset.users[chain.neighbour],
        item1=shown_item(dataset.items[chain.item1], config),
        rating_u0=chain.rating_u0,  # type: ignore[arg-type]
        rating_n0=chain.rating_n0,  # type: ignore[arg-type]
        rating_n1=chain.rating_n1,  # type: ignore[arg-type]
        rating_u1=chain.rating_u1,  # type: ignore[arg-type]
    )
