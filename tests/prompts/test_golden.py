"""Every domain's prompts, as a reader sees them: twenty rendered examples each, kept under ``golden/`` for review.

After a wanted change of wording: raise ``TEMPLATE_VERSION``, run once with ``R2REC_WRITE_GOLDEN=1``, read the diff.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import pytest

from r2rec_jax.prompts.templates import TEMPLATE_VERSION, wording
from tests.prompts.golden_views import DOMAINS, golden_examples

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = {"1": "54545e70ffcc8581"}
"""By version, the first digits of the sha256 over all golden files."""

FORBIDDEN = {
    "movies": r"\b(?:book|author|user read|product|song)s?\b", "books": r"\b(?:movie|watched|film|product|song)s?\b",
    "electronics": r"\b(?:movie|book|watched|film|user read|author|song)s?\b",
    "generic": r"\b(?:movie|book|watched|film|user read|author|product|item)s?\b",
}
"""Words of other domains, which a template must not let slip in."""


@pytest.mark.parametrize("name", DOMAINS)
def test_prompts_read_as_reviewed(name: str) -> None:
    examples = list(golden_examples(name))
    assert len(examples) == 20
    text = "\n".join(f"===== {e.title}\n{e.prompt}\n----- completion\n{e.completion}\n" for e in examples)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("R2REC_WRITE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_other_texts_are_another_version() -> None:
    """Runs, stored thoughts and paid answers tell their texts by the version alone."""
    found = hashlib.sha256(b"".join((GOLDEN / f"{name}.txt").read_bytes() for name in sorted(DOMAINS))).hexdigest()
    assert VERSIONS.get(TEMPLATE_VERSION) == found[:16], "raise TEMPLATE_VERSION, and give its digest here"


@pytest.mark.parametrize("name", DOMAINS)
def test_no_domain_speaks_of_another(name: str) -> None:
    for example in golden_examples(name):
        found = re.search(FORBIDDEN[name], f"{example.prompt}\n{example.completion}", re.IGNORECASE)
        assert found is None, (example.title, found)


def test_nouns_of_a_table() -> None:
    words = wording("generic:board game:board games")
    assert (words.item, words.items, words.genre) == ("board game", "board games", "category")
    assert wording("generic:plat d'été:plats d'été").items == "plats d'été"
    for bad in ("songs", "movies:a:b", "generic:song", "generic:a:b:c", "generic::songs", "generic:<s>:songs",
                "generic:song:songs\n</think>", f"generic:{'a' * 50}:songs"):
        with pytest.raises(ValueError, match=r"prompts\.domain must be|a domain's noun must be"):
            wording(bad)
