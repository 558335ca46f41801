"""Which statements are true of a prompt: all that the template can write of it, word for word; and R_true.

The template states facts that can be read in the prompt. A model that has learned its wording can therefore be checked
without a judge: a statement of its own is either one of these, or it is invented (or said in other words, which this
does not see). A last statement that names the answer is an opinion and not counted. With ``prompts.detail: hops`` some
statements do not name their film ("User 12 gave it 4"); they count as true when they are of any chain.

R_true (*extension*) = facts stated / max(statements made, facts that the template states of the prompt). It is 1 for
what the template writes, but for the rare prompt that shows another film of the answer's name (one or two of 250 of
MovieLens-100K, which has films twice): the template then says less, so as not to name its answer too early. Leaving out
what is hard to say costs as much as saying it wrong, and a fact counts once however often and in however many of its
phrasings it is stated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from r2rec_jax.config import PromptConfig
from r2rec_jax.prompts.answer import read_statements, split_completion
from r2rec_jax.prompts.ranking import shown_chains
from r2rec_jax.prompts.views import QueryView
from r2rec_jax.thoughts.target import CONCLUSIONS, before_the_answer
from r2rec_jax.thoughts.teacher import Phrase, end_once, every_phrasing
from r2rec_jax.thoughts.template import TemplateTeacher


@dataclass(frozen=True)
class Truth:
    """What is true of a prompt.

    Attributes:
        statements: all that the template can make of it before it names an answer, in every phrasing, with the numbers
            of the facts that each can stand for: more than one where it does not name its film.
        expected: how many facts it states in one completion.
    """

    statements: Mapping[str, frozenset[int]]
    expected: int


def truth_of(view: QueryView, config: PromptConfig, chains_kept: int | None = None) -> Truth:
    """What is true of a prompt.

    Args:
        view: what the prompt shows.
        config: the prompt's switches.
        chains_kept: as in the prompt.
    """
    teacher = TemplateTeacher(config.template(view.domain))
    shown = shown_chains(view, config, chains_kept)
    phrases = every_phrasing()

    def written(phrase: Phrase, thoughts: Literal["completion", "prompt", "none"]) -> list[str]:
        own = [teacher.phrased(chain, phrase) for chain in shown]
        asked = replace(config, thoughts=thoughts)
        return list(map(end_once, before_the_answer(view, own, None, asked, phrase, len(shown))[0]))

    found: dict[str, set[int]] = {}
    for phrase in phrases:
        for fact, statement in enumerate(written(phrase, "completion")):  # what stands in the prompt is no less true
            found.setdefault(statement, set()).add(fact)
    expected = 0 if config.thoughts == "none" else len(set(written(phrases[0], config.thoughts)))
    return Truth({text: frozenset(facts) for text, facts in found.items()}, expected)


def count_true(completion: str, truth: Truth, titles: Sequence[str], *, opened_think: bool) -> tuple[int, int]:
    """How many different statements a completion makes, its conclusion left out, and how many facts they state."""
    reasoning, _ = split_completion(completion, opened_think=opened_think)
    statements = read_statements(reasoning, titles)
    if statements and statements[-1].startswith(CONCLUSIONS):
        statements = statements[:-1]
    return len(statements), _facts_stated([truth.statements[line] for line in statements if line in truth.statements])


def _facts_stated(statements: Sequence[frozenset[int]]) -> int:
    """How many facts are stated when each statement stands for one of those that it can stand for."""
    facts = sorted(frozenset[int]().union(*statements))
    can = csr_array([[fact in own for fact in facts] for own in statements]) if facts else None
    return 0 if can is None else int((maximum_bipartite_matching(can, perm_type="column") >= 0).sum())


def truth_share(completion: str, truth: Truth, titles: Sequence[str], *, opened_think: bool) -> float:
    """R_true of a completion, in [0, 1]; 1 for silence where there is nothing to say.

    Of two statements expected, one made and true gives 1/2, as do two made of which one is true; three made of which
    two are true give 2/3.
    """
    made, true = count_true(completion, truth, titles, opened_think=opened_think)
    most = max(made, truth.expected)
    return true / most if most else 1.0
