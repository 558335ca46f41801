"""The paper's whole recipe from measured steps, with the arithmetic shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from r2rec_jax.bench.inputs import recorded_lengths
from r2rec_jax.bench.presets import Preset

SFT_QUERIES, SFT_EPOCHS, RL_PROMPTS, USERS = 500, 10, 500, 1000


def project(preset: Preset, rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Minutes of SFT (500 queries x 10), GRPO (500 prompts x 8) and evaluation (1,000 users) on each side.

    Each query gives a ranking and a thought example of the recorded lengths. Of rollouts and answers, reading the
    prompt (at the rate measured in ``rollout``) is taken as proportional to the recorded length of a prompt, the rest
    to that of a completion; references and updates to the tokens of a row.

    Returns:
        Minutes by side and stage and the arithmetic as text; None when a work that is needed was not measured, or
        when reading the prompts would by its rate take longer than the whole did.
    """
    found = {(row["work"], row["metric"]): row for row in rows if row["preset"] == preset.name}
    needed = [("rollout", "prompt_tokens_per_s"), ("sft", "mixed_tokens_per_s"), ("recommend", "users_per_s"),
              *(("grpo", f"{phase}_seconds") for phase in ("rollout", "reward", "reference", "update"))]
    if any(key not in found for key in needed):
        return None
    lengths = recorded_lengths(preset.lengths)
    (prompt, completion), thought = (np.mean(lengths["ranking"], axis=0).tolist(),
                                     float(np.sum(np.mean(lengths["thought"], axis=0))))
    grpo, users = preset.grpo.decoding, preset.recommend
    out: dict[str, Any] = {}
    for side in ("ours", "pytorch"):
        value = {key: found[key][side] for key in needed}
        tokens = SFT_QUERIES * SFT_EPOCHS * (prompt + completion + thought)
        sft = tokens / value["sft", "mixed_tokens_per_s"]
        # Ours computes a prompt once for its group, PyTorch's path once a completion.
        copies = 1 if side == "ours" else grpo.group
        row = (copies * prompt + grpo.group * completion) / (
            copies * grpo.prompt_tokens + grpo.group * grpo.new_tokens)
        rate, rollout = value["rollout", "prompt_tokens_per_s"], value["grpo", "rollout_seconds"]
        grouped = _Answering(rollout, grpo.prompts * grpo.prompt_tokens / rate, prompt / grpo.prompt_tokens,
                             completion / grpo.new_tokens)
        # The rate is of groups, each prompt counted once: without a group PyTorch's path reads one copy of it.
        single = 1 if side == "ours" else preset.rollout.group
        alone = _Answering(USERS / value["recommend", "users_per_s"], USERS * users.prompt_tokens / rate / single,
                           prompt / users.prompt_tokens, completion / users.new_tokens)
        if any(part.reading >= part.measured for part in (grouped, alone)):
            return None
        reward = value["grpo", "reward_seconds"] * completion / grpo.new_tokens
        step = grouped.seconds + reward + (value["grpo", "reference_seconds"] + value["grpo", "update_seconds"]) * row
        rl, evaluation = RL_PROMPTS / grpo.prompts * step, alone.seconds
        minutes = {"sft": sft / 60, "grpo": rl / 60, "evaluation": evaluation / 60}
        minutes["whole"] = sum(minutes.values())
        out[side] = minutes | {"arithmetic": (
            f"SFT: {SFT_QUERIES} queries x {SFT_EPOCHS} epochs x ({prompt:.0f} + {completion:.0f} + {thought:.0f}) "
            f"tokens / {value['sft', 'mixed_tokens_per_s']:.0f} tokens/s = {sft:.0f} s. "
            f"GRPO: {RL_PROMPTS} / {grpo.prompts} steps x ({grouped.arithmetic} + "
            f"({value['grpo', 'reference_seconds']:.2f} + {value['grpo', 'update_seconds']:.2f}) s x {row:.2f}) = "
            f"{rl:.0f} s. Evaluation of {USERS} users: {alone.arithmetic} = {evaluation:.0f} s.")}
    return out


@dataclass(frozen=True)
class _Answering:
    """Measured seconds of answering, of which ``reading`` went into prompts, at other lengths."""

    measured: float
    reading: float
    prompts: float
    completions: float

    @property
    def seconds(self) -> float:
        return self.reading * self.prompts + (self.measured - self.reading) * self.completions

    @property
    def arithmetic(self) -> str:
        tokens = self.measured - self.reading
        return (f"{self.reading:.2f} s of prompts x {self.prompts:.2f} + {tokens:.2f} s of tokens x "
                f"{self.completions:.2f}")
