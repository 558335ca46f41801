"""Which statements are true of a prompt: all that the template can write of it, word for word.

The template states facts that can be read in the prompt. A model that has learned its wording can therefore be checked
without a judge: a statement of its own is either one of these, or it is invented (or said in other words, which this
does not see). The statement that names the answer is an opinion and not counted. With ``prompts.detail: hops`` some
statements do not name their film ("User 12 gave it 4"); they count as true when they are of any chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from r2rec_jax.config import PromptConfig
from r2rec_jax.prompts.answer import read_statements, split_completion
from r2rec_jax.prompts.ranking import shown_chains
from r2rec_jax.prompts.views import QueryView
from r2rec_jax.thoughts.target import CONCLUSIONS, before_the_answer
from r2rec_jax.thoughts.teacher import end_once, every_phrasing
from r2rec_jax.thoughts.template import TemplateTeacher


def true_statements(view: QueryView, config: PromptConfig, chains_kept: int | None = None) -> frozenset[str]:
    """Every statement that the template can make of a prompt before it names an answer, in every phrasing.

    Args:
        view: what the prompt shows.
        config: the prompt's switches.
        chains_kept: as in the prompt.
    """
    teacher = TemplateTeacher(config.template(view.domain))
    shown = shown_chains(view, config, chains_kept)
    told = replace(config, thoughts="completion")  # a thought that stands in the prompt is no less true
    found: set[str] = set()
    for phrase in every_phrasing():
        thoughts = [teacher.phrased(chain, phrase) for chain in shown]
        found.update(before_the_answer(view, thoughts, None, told, phrase, len(shown))[0])
    return frozenset(map(end_once, found))


def count_true(
    completion: str, true: frozenset[str], titles: Sequence[str], *, opened_think: bool,
) -> tuple[int, int]:
    """How many statements a completion makes, conclusions left out, and how many of them are among the true ones."""
    reasoning, _ = split_completion(completion, opened_think=opened_think)
    statements = [line for line in read_statements(reasoning, titles) if not line.startswith(CONCLUSIONS)]
    return len(statements), sum(statement in true for statement in statements)
