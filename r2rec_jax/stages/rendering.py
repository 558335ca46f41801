"""From frozen queries to prompts: resolves indices to items and users, renders, fits the token limit.

The one place that knows both the data's records and the prompts' views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from r2rec_jax.config import PromptConfig
from r2rec_jax.data.interactions import Item
from r2rec_jax.data.queries import Query
from r2rec_jax.evaluation.protocol import EvaluationQuery
from r2rec_jax.prompts.ranking import render_ranking, shown_chains
from r2rec_jax.prompts.views import ChainView, QueryView, resolve_chain, shown_item
from r2rec_jax.stages.prepared import Prepared, without_candidates
from r2rec_jax.tokens.examples import fit_prompt
from r2rec_jax.tokens.tokenizer import ChatPrompt, Tokenizer

ChainThoughts = Mapping[ChainView, str]
"""A teacher's thought on a chain, in one line."""


@dataclass(frozen=True)
class RenderedQuery:
    """A query as the model gets it.

    Attributes:
        query: the frozen query.
        view: what its prompt may show.
        text: the whole user message.
        chat: its token ids, chat template included.
        labels: the candidates as displayed, in prompt order.
        target: 0-based position of the target among them.
        chains: the chains that the prompt shows.
        dropped: chains that did not fit the token limit.
        left_out: chains that hold a candidate.
    """

    query: Query
    view: QueryView
    text: str
    chat: ChatPrompt
    labels: tuple[str, ...]
    target: int
    chains: tuple[ChainView, ...]
    dropped: int
    left_out: int

    def for_evaluation(self, prepared: Prepared) -> EvaluationQuery:
        """The same as the evaluation protocol takes it."""
        items = prepared.dataset.items
        return EvaluationQuery(
            query_id=self.query.query_id, user_id=prepared.dataset.users[self.query.user_idx].user_id,
            candidates=tuple(items[i].item_id for i in self.query.candidates), titles=self.labels,
            target=self.target, prompt=self.text, prompt_ids=self.chat.ids, opened_think=self.chat.opened_think)


def make_view(prepared: Prepared, query: Query, config: PromptConfig, thoughts: ChainThoughts | None = None
              ) -> QueryView:
    """Everything that the prompt of a query may show.

    Args:
        prepared: the data.
        query: whose prompt.
        config: how many liked items, whether with their facts, and how they are named.
        thoughts: thoughts to show with the chains (``prompts.thoughts: prompt``).
    """
    data = prepared.dataset
    chains = distinct_chains(prepared, query, config)

    def shown(index: int) -> Item:
        return shown_item(data.items[index], config)

    return QueryView(
        domain=data.domain, profile=data.users[query.user_idx],
        liked=tuple((shown(i), rating) for i, rating in prepared.liked(query, config.liked)),
        chains=chains, candidates=tuple(shown(i) for i in query.candidates),
        thoughts=tuple(thoughts[chain] for chain in chains) if thoughts else ())


def distinct_chains(prepared: Prepared, query: Query, config: PromptConfig) -> tuple[ChainView, ...]:
    """The chains of a query as prompts show them (:func:`~r2rec_jax.stages.prepared.without_candidates`)."""
    return tuple(resolve_chain(prepared.dataset, chain, config)
                 for chain in without_candidates(prepared.chains_of(query), query))


def render_query(prepared: Prepared, query: Query, config: PromptConfig, tokenizer: Tokenizer,
                 thoughts: ChainThoughts | None = None) -> RenderedQuery:
    """Render a query within the token limit; the oldest chains are dropped first.

    Raises:
        ValueError: the prompt is too long even without chains.
    """
    view = make_view(prepared, query, config, thoughts)

    def text_of(kept: int) -> str:
        return render_ranking(view, config, kept).text

    available = len(view.chains) if config.chains else 0
    text, dropped = fit_prompt(text_of, lambda t: len(tokenizer.chat(t).ids), available, config.max_tokens,
                               f"query {query.query_id}")
    kept = available - dropped
    prompt = render_ranking(view, config, kept)
    left_out = len(set(prepared.chains_of(query))) - len(view.chains) if config.chains else 0
    return RenderedQuery(query, view, text, tokenizer.chat(text), prompt.candidates,
                         query.candidates.index(query.target), shown_chains(view, config, kept), dropped, left_out)


def render_queries(prepared: Prepared, queries: Sequence[Query], config: PromptConfig, tokenizer: Tokenizer,
                   thoughts: ChainThoughts | None = None, *, advance: Callable[[], None] = lambda: None
                   ) -> list[RenderedQuery]:
    """:func:`render_query` for many, reporting each."""
    rendered = []
    for query in queries:
        rendered.append(render_query(prepared, query, config, tokenizer, thoughts))
        advance()
    return rendered


def count_dropped(rendered: Sequence[RenderedQuery]) -> dict[str, int]:
    """How many prompts lost chains to the token limit, how many chains in all, and how many are not shown since they
    hold a candidate."""
    return {"prompts": len(rendered), "shortened_prompts": sum(r.dropped > 0 for r in rendered),
            "dropped_chains": sum(r.dropped for r in rendered), "left_out_chains": sum(r.left_out for r in rendered),
            "longest_prompt_tokens": max((len(r.chat.ids) for r in rendered), default=0)}
