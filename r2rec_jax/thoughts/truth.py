"""Which statements are true of a prompt: all that the template can write of it, word for word.

The template states facts that can be read in the prompt. A model that has learned its wording can therefore be checked
without a judge: a statement of its own is either one of these, or it is invented (or said in other words, which this
does not see).
"""

from __future__ import annotations

from collections.abc import Sequence

from r2rec_jax.config import PromptConfig
from r2rec_jax.prompts.answer import read_statements, split_completion
from r2rec_jax.prompts.ranking import shown_chains
from r2rec_jax.prompts.verbalize import item_labels
from r2rec_jax.prompts.views import QueryView
from r2rec_jax.thoughts.target import before_the_answer, conclusion
from r2rec_jax.thoughts.teacher import REASONS, end_once, every_phrasing
from r2rec_jax.thoughts.template import TemplateTeacher

CONCLUSIONS = 2 * REASONS
"""Phrasings of a conclusion, which come first."""


def true_statements(view: QueryView, config: PromptConfig, chains_kept: int | None = None) -> frozenset[str]:
    """Every statement of the template on a prompt, in every phrasing, whichever candidate it ends on.

    Args:
        view: what the prompt shows.
        config: the prompt's switches.
        chains_kept: as in the prompt.

    Returns:
        The statements. Those on a candidate say that it fits best, which is an opinion; what they give as its reason
        is true.
    """
    teacher = TemplateTeacher(config.template(view.domain))
    labels = item_labels(view.candidates)
    shown = shown_chains(view, config, chains_kept)
    found: set[str] = set()
    for number, phrase in enumerate(every_phrasing()):
        thoughts = [teacher.phrased(chain, phrase) for chain in shown]
        statements, tastes, taste = before_the_answer(view, thoughts, None, config, phrase, len(shown))
        found.update(statements)
        if number < CONCLUSIONS:
            found.update(conclusion(view, position, label, tastes, taste, config, phrase)
                         for position, label in enumerate(labels))
    return frozenset(map(end_once, found))


def count_true(
    completion: str, true: frozenset[str], titles: Sequence[str], *, opened_think: bool,
) -> tuple[int, int]:
    """How many statements a completion makes, and how many of them are among the true ones."""
    statements = read_statements(split_completion(completion, opened_think=opened_think)[0], titles)
    return len(statements), sum(statement in true for statement in statements)
