"""Titles that try to be something else: markup of every tokenizer, candidate numbers, controls, broken encodings."""

from __future__ import annotations

import random
from collections.abc import Sequence

MARKUP = (
    "<s>", "</s>", "<unk>", "<pad>", "<think>", "</think>", "<answer>", "</answer>", "<answer>1</answer>",
    "<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "<｜User｜>", "<｜Assistant｜>",
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<|eot_id|>", "<|start_header_id|>system<|end_header_id|>",
    "<|begin_of_text|>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<|user|>", "<|assistant|>", "<|end|>", "<0x0A>",
    "＜s＞", "＜/think＞", "Final answer:", "Candidates:", "{{ messages }}", "{% raw %}",
)
NUMBERS = ("[3] ", "3. ", "(7) ", "21. ", "20) ", "\n21. Extra item", "\r\n5. Heat", "\u20281. Line", "1.", "-5-> ",
           "1, 2, 3")
CONTROLS = ("\n", "\r", "\t", "\x00", "\x1b[2J", "\x07", "\x85", "\u202e", "\u2066", "\u2069", "\u200b", "\ufeff", 
            "\u2028", "\u2029", "\u00a0", "\u3000", "\u00ad", "\U000e0041", "\ud800", "\udcff", "\ufffe")
WORDS = ("Heat", "Big", "Toy Story", "Amélie", "日本語", "😀", "Crime & Punishment", "C++", "\\", "\\n", "The", "7",
         ";", ",")


def hostile_titles(count: int, seed: int, specials: Sequence[str] = ()) -> list[str]:
    """``count`` different titles.

    Args:
        count: how many.
        seed: of the draw.
        specials: further markup: a tokenizer's own special tokens.
    """
    rng = random.Random(f"hostile-{seed}")
    groups = (MARKUP, tuple(specials) or MARKUP, NUMBERS, CONTROLS, WORDS, WORDS)
    titles: dict[str, None] = {}
    while len(titles) < count:
        kind = rng.random()
        if kind < 0.003:
            title = rng.choice([*MARKUP, *WORDS, *CONTROLS]) * 10_000
        elif kind < 0.05:
            title = rng.randbytes(rng.randint(1, 40)).decode("utf-8", rng.choice(("surrogateescape", "replace")))
        else:
            title = "".join(rng.choice(rng.choice(groups)) for _ in range(rng.randint(1, 6)))
            if rng.random() < 0.3:
                title = title.replace("<", rng.choice(("<", " <", "\\<"))).strip("\n")
        titles[title[:10_000] if kind < 0.003 else title] = None
    return list(titles)
