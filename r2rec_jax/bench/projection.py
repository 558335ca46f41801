"""The paper's whole recipe from measured steps, with the arithmetic shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from r2rec_jax.bench.inputs import recorded_lengths
from r2rec_jax.bench.presets import Preset

SFT_QUERIES, SFT_EPOCHS, RL_PROMPTS, USERS = 500, 10, 500, 1000


def project(preset: Preset, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Minutes of SFT (500 queries x 10), GRPO (500 prompts x 8) and evaluation (1,000 users) on each side.

    Each query gives a ranking and a thought example of the recorded lengths. Rollouts and answers are taken as
    proportional to the recorded length of a completion, references and updates to the tokens of a row.

    Returns:
        Minutes by side and stage and the arithmetic as text; None when a work that is needed was not measured.
    """
    found = {(row["work"], row["metric"]): row for row in rows if row["preset"] == preset.name}
    needed = [("sft", "mixed_tokens_per_s"), ("recommend", "users_per_s"),
              *(("grpo", f"{phase}_seconds") for phase in ("rollout", "reward", "reference", "update"))]
    if any(key not in found for key in needed):
        return None
    lengths = recorded_lengths(preset.lengths)
    (prompt, completion), thought = (np.mean(lengths["ranking"], axis=0).tolist(),
                                     float(np.sum(np.mean(lengths["thought"], axis=0))))
    grpo, users = preset.grpo.decoding, preset.recommend
    longer = completion / grpo.new_tokens
    out: dict[str, Any] = {}
    for side in ("ours", "pytorch"):
        value = {key: found[key][side] for key in needed}
        tokens = SFT_QUERIES * SFT_EPOCHS * (prompt + completion + thought)
        sft = tokens / value["sft", "mixed_tokens_per_s"]
        # Ours computes a prompt once for its group, PyTorch's path once a completion.
        copies = 1 if side == "ours" else grpo.group
        row = (copies * prompt + grpo.group * completion) / (
            copies * grpo.prompt_tokens + grpo.group * grpo.new_tokens)
        step = (value["grpo", "rollout_seconds"] * longer + value["grpo", "reward_seconds"] * longer
                + (value["grpo", "reference_seconds"] + value["grpo", "update_seconds"]) * row)
        rl = RL_PROMPTS / grpo.prompts * step
        evaluation = USERS / value["recommend", "users_per_s"] * completion / users.new_tokens
        minutes = {"sft": sft / 60, "grpo": rl / 60, "evaluation": evaluation / 60}
        minutes["whole"] = sum(minutes.values())
        out[side] = minutes | {"arithmetic": (
            f"SFT: {SFT_QUERIES} queries x {SFT_EPOCHS} epochs x ({prompt:.0f} + {completion:.0f} + {thought:.0f}) "
            f"tokens / {value['sft', 'mixed_tokens_per_s']:.0f} tokens/s = {sft:.0f} s. "
            f"GRPO: {RL_PROMPTS} / {grpo.prompts} steps x ({value['grpo', 'rollout_seconds']:.2f} s rollout x "
            f"{longer:.2f} + ({value['grpo', 'reference_seconds']:.2f} + {value['grpo', 'update_seconds']:.2f}) s x "
            f"{row:.2f}) = {rl:.0f} s. Evaluation: {USERS} / {value['recommend', 'users_per_s']:.2f} users/s x "
            f"{completion / users.new_tokens:.2f} = {evaluation:.0f} s.")}
    return out
