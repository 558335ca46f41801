"""A small data set in MovieLens-100K's file formats, made up from a seed: planted tastes, invented titles."""

from __future__ import annotations

from pathlib import Path

import numpy as np

GENRES = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
          "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western")


def write_ml100k(folder: Path, users: int = 40, items: int = 60, events: int = 25, seed: int = 0) -> Path:
    """Write u.data, u.item, u.user and u.genre; half of the users like even genres, the other half odd ones."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "u.genre").write_text("".join(f"{g}|{i}\n" for i, g in enumerate(GENRES)), encoding="latin-1")
    kinds = rng.integers(1, len(GENRES), items)
    lines = []
    for i in range(items):
        flags = ["1" if g == kinds[i] else "0" for g in range(len(GENRES))]
        year = 1950 + int(rng.integers(0, 48))
        lines.append("|".join([str(i + 1), f"Invented Title No. {i + 1} ({year})", f"01-Jan-{year}", "", "", *flags]))
    (folder / "u.item").write_text("\n".join(lines) + "\n", encoding="latin-1")
    people = [f"{u + 1}|{20 + u % 50}|{'MF'[u % 2]}|artist|00000" for u in range(users)]
    (folder / "u.user").write_text("\n".join(people) + "\n", encoding="latin-1")
    rows = []
    for u in range(users):
        for order, i in enumerate(rng.permutation(items)[:events]):
            likes = kinds[i] % 2 == u % 2
            rating = int(rng.integers(4, 6) if likes else rng.integers(1, 4))
            rows.append(f"{u + 1}\t{i + 1}\t{rating}\t{880_000_000 + 1000 * order + u}")
    (folder / "u.data").write_text("\n".join(rows) + "\n", encoding="latin-1")
    return folder


SMALL = [
    "--data.eval_users=8", "--data.validation_users=2", "--data.sft_queries=8", "--data.rl_queries=4",
    "--graph.chains=2", "--prompts.liked=3", "--prompts.detail=brief", "--prompts.answer.top=5",
    "--backbone.source=tiny", "--backbone.tiny.vocab_size=512", "--backbone.tiny.hidden_size=32",
    "--backbone.tiny.layers=1", "--backbone.tiny.heads=2", "--backbone.tiny.kv_heads=1", "--backbone.tiny.ffn=64",
    "--lora.rank=2", "--pretrain.steps=4", "--pretrain.batch_size=2", "--pretrain.max_tokens=128",
    "--pretrain.checkpoint_every=2", "--sft.epochs=1", "--sft.batch_size=4", "--sft.micro_batch=2", "--sft.lr=1e-3",
    "--sft.checkpoint_every=1", "--sft.max_completion=2048", "--prompts.max_tokens=2048", "--grpo.group_size=2",
    "--grpo.prompts_per_step=2", "--grpo.max_new_tokens=16", "--grpo.temperature=1.0", "--grpo.checkpoint_every=1",
    "--evaluate.users=3", "--evaluate.max_new_tokens=16", "--evaluate.batch_size=3", "--evaluate.temperature=0",
]
"""Settings of a run of every stage in seconds."""
