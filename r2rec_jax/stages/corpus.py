"""What the ``tiny`` backbone is pretrained on: the text of the training side of the data, and nothing of any target.

Two kinds of text, each ended by the end token: what users liked, in the order in which they liked it (from training
edges alone), and the SFT examples, prompt and completion. The examples are few and the histories many, so the examples
are repeated until both kinds have as many tokens: a model that has hardly seen a prompt cannot be tuned by an adapter
(with the examples once, SFT began at 4.9 nats a token and was at 3.1 after 53 updates).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from r2rec_jax.prompts.verbalize import item_text
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.thinking import read_examples
from r2rec_jax.stages.workspace import Workspace

LIKES_A_TEXT = 20


def pretraining_texts(work: Workspace) -> list[list[int]]:
    """Token ids of every text, end token included; texts that are repeated stand in the list as often."""
    tokenizer = work.tokenizer
    histories = [[*tokenizer.encode(text), tokenizer.end_id] for text in liked_histories(work.prepared)]
    examples = [[*tokenizer.chat(e.prompt).ids, *tokenizer.encode_completion(e.completion), tokenizer.end_id]
                for e in read_examples(work.run.folder("thoughts") / "sft.jsonl")]
    return histories + examples * max(1, round(sum(map(len, histories)) / sum(map(len, examples))))


def liked_histories(prepared: Prepared) -> Iterator[str]:
    """What each user liked, oldest first, one item a line, cut into texts of :data:`LIKES_A_TEXT` items.

    Only training edges: no validation or test event, and nothing after it.
    """
    events = prepared.dataset.interactions
    wanted = prepared.training & (events.rating > prepared.data_config.positive_above)
    for user in range(len(prepared.dataset.users)):
        rows = np.arange(events.offsets[user], events.offsets[user + 1])
        liked = events.item_idx[rows[wanted[rows]]]
        for start in range(0, len(liked), LIKES_A_TEXT):
            yield "\n".join(item_text(prepared.dataset.items[i]) for i in liked[start:start + LIKES_A_TEXT])
