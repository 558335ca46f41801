"""The rating question over one chain, and the masked progressive prompt that a teacher answers (Eq. 2, Appendix A.1).

The question shows the unclosed forward chain: who rated what, up to the final item, whose rating by the target user is
masked. The teacher's prompt adds the true answer and asks for reasoning as if it were unknown: hop by hop, each from
what came before, nothing of the answer before the end, and at the end the true answer. The wording is ours, and so is
the request for one statement a line, which keeps thoughts in the form that the model itself is trained to write.
"""

from __future__ import annotations

from collections.abc import Sequence

from r2rec_jax.prompts.answer import render_completion, render_rating
from r2rec_jax.prompts.ranking import RATING_KEY
from r2rec_jax.prompts.templates import Wording, wording
from r2rec_jax.prompts.verbalize import TARGET, chain_text, neighbour_name, profile_text, rating_words, title_text
from r2rec_jax.prompts.views import ChainView


def _material(chain: ChainView, words: Wording) -> list[str]:
    profile = profile_text(chain.user)
    return [
        RATING_KEY,
        f"{TARGET.capitalize()}: {profile}" if profile else "",
        f"Interaction chain, ratings on the arrows between users and {words.items}:",
        chain_text(chain, masked=True),
        f"Question: which rating does the {TARGET} give {title_text(chain.item1)}?",
    ]


def render_thought(chain: ChainView, domain: str) -> str:
    """The rating question on a chain, its closing rating masked: the whole user message."""
    lines = [
        *_material(chain, wording(domain)),
        "Reason inside <think> and </think>, one statement a line, hop by hop, each from what came before it. "
        "Then answer with the rating from 1 to 5: <answer>...</answer>",
    ]
    return "\n".join(line for line in lines if line)


def render_thought_completion(statements: Sequence[str], rating: int, *, opened_think: bool = False) -> str:
    r"""The completion that answers a rating question: ``<think>\n...\n</think>\n<answer>4</answer>``."""
    return render_completion(statements, render_rating(rating), opened_think=opened_think)


def teacher_prompt(chain: ChainView, domain: str) -> str:
    """The masked progressive prompt: chain, question, true answer, and the four rules of Appendix A.1."""
    words = wording(domain)
    other = neighbour_name(chain.neighbour)
    lines = [
        f"You are an expert in recommending {words.items}. You get a chain of interactions between users and "
        f"{words.items}, a question about it and the correct answer. Write the reasoning that leads from the chain "
        "to the answer.",
        f"How to read a chain: \"{TARGET} -5-> A -4-> user 1234 -2-> B -?-> {TARGET}\" means that the {TARGET} "
        f"{words.past} A and rated it 5, that user 1234 {words.past} A too and rated it 4, and that user 1234 also "
        f"{words.past} B and rated it 2. The question is how the {TARGET}, who {words.past} B as well, rated it.",
        *_material(chain, words),
        f"Correct answer: {chain.rating_u1} ({rating_words(chain.rating_u1)})",
        "Reason as somebody who does not know the correct answer and works it out from the chain alone:",
        "1. Progressive: go hop by hop; each step builds only on the steps before it.",
        "2. Masked: a step about one hop uses that hop and earlier ones, and nothing that comes later in the chain.",
        "3. Hidden: no step mentions, hints at or relies on the correct answer; it is there only to guide you.",
        "4. Consistent: the rating that the reasoning arrives at is the correct one.",
        f"Write one sentence a line, unnumbered: one on how the {TARGET} rated {title_text(chain.item0)}, one on how "
        f"{other} rated it, one on how {other} rated {title_text(chain.item1)}, and a last one that draws the "
        f"conclusion and ends in \"predicted rating\" and the rating. Then the rating alone:",
        "<think>\n...\n</think>\n<answer>...</answer>",
    ]
    return "\n".join(line for line in lines if line)
