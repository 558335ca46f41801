"""What GRPO asks of the world outside the model: completions are drawn, turned into texts, and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from r2rec_jax.config import GrpoConfig
from r2rec_jax.parallel.compiling import Report, silent
from r2rec_jax.parallel.distributed import FirstFailed, check_stop, on_first
from r2rec_jax.reasons import one_line
from r2rec_jax.sampling.rollout import Rollout
from r2rec_jax.tokens.examples import Example
from r2rec_jax.training.metrics import LOOK
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.rollouts import Generate
from r2rec_jax.training.session import RewardError
from r2rec_jax.training.state import stream_key

LOGGED_AS = {"total": "reward", "rank": "reward_rank", "step": "reward_step", "true": "reward_true"}
"""Names in the metrics of reward parts whose own name says too little; the others keep theirs."""


class RewardFn(Protocol):
    """Scores completions: one number each under ``total``, and under any other name what is logged beside it."""

    def __call__(self, completions: Sequence[str], example_ids: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Arrays of one number a completion, by name."""
        ...


@dataclass(frozen=True)
class Environment:
    """What GRPO needs of the world outside the model.

    Attributes:
        generate: draws completions.
        decode: token ids to text (a completion's end token is left out).
        reward: scores the texts.
        pad_id: written where there is no token; never read.
    """

    generate: Generate
    decode: Callable[[Sequence[int]], str]
    reward: RewardFn
    pad_id: int = 0


def roll_out(lora: nnx.State, model: FrozenModel, chosen: Sequence[Example], config: GrpoConfig,
             environment: Environment, seed: int, step: int, report: Report = silent, stream: str = "rollout"
             ) -> Rollout:
    """G completions of each prompt by the adapter as it stands; the noise is a function of seed, stream, step and
    row."""
    first = (step - 1) * config.prompts_per_step * config.group_size
    return environment.generate(
        lora, model.base, [example.prompt_ids for example in chosen], group=config.group_size,
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p,
        key=stream_key(seed, stream, step), row_ids=range(first, first + len(chosen) * config.group_size),
        on_compile=report)


def completion_texts(rollout: Rollout, decode: Callable[[Sequence[int]], str]) -> list[str]:
    """Texts of all completions, prompt by prompt, each without its end token."""
    prompts, group = rollout.lengths.shape
    return [decode(rollout.tokens[p, g, : rollout.lengths[p, g] - int(rollout.finished[p, g])].tolist())
            for p in range(prompts) for g in range(group)]


def shared_rewards(reward: RewardFn, texts: Sequence[str], example_ids: Sequence[str], group: int
                   ) -> dict[str, np.ndarray]:
    """:func:`score_texts` by process 0 for all, so that a function that asks a service, or is not deterministic, is
    called once and every process trains on the same numbers."""
    def score() -> dict[str, list[list[float]]]:
        return {name: x.tolist() for name, x in score_texts(reward, texts, example_ids, group).items()}

    try:
        return {name: np.asarray(x, np.float64) for name, x in on_first(score).items()}
    except FirstFailed as error:
        raise RewardError(str(error)) from None


def score_texts(reward: RewardFn, texts: Sequence[str], example_ids: Sequence[str], group: int
                ) -> dict[str, np.ndarray]:
    """Rewards as float64 [P, G] arrays by name.

    Raises:
        RewardError: in one line, when the function raises, has no ``total``, or gives one that is not finite; it names
            the example.
    """
    repeated = [example_id for example_id in example_ids for _ in range(group)]
    try:
        parts = {name: np.asarray(x, np.float64) for name, x in reward(texts, repeated).items()}
    except Exception as error:
        raise RewardError(f"the reward function failed on {_culprit(reward, texts, repeated, group)}: "
                          f"{type(error).__name__}: {one_line(error)}") from error
    wrong = {name: x.shape for name, x in parts.items() if x.shape != (len(texts),)}
    if "total" not in parts or wrong:
        raise RewardError(f"a reward function must return 'total' and parts of shape ({len(texts)},); got "
                          f"{sorted(parts)} with wrong shapes {wrong}")
    if not np.isfinite(parts["total"]).all():
        place = int(np.flatnonzero(~np.isfinite(parts["total"]))[0])
        raise RewardError(f"a reward must be finite; got {parts['total'][place]} for completion {place % group} of "
                          f"example {repeated[place]!r}")
    return {name: x.reshape(len(example_ids), group) for name, x in parts.items()}


def _culprit(reward: RewardFn, texts: Sequence[str], repeated: Sequence[str], group: int) -> str:
    for number, (text, example_id) in enumerate(zip(texts, repeated, strict=True)):
        try:
            reward([text], [example_id])
        except Exception:
            return f"completion {number % group} of example {example_id!r}"
    return f"the completions of examples {', '.join(dict.fromkeys(repeated))} together"


def spread(rewards: Float[np.ndarray, "P G"]) -> Bool[np.ndarray, " P"]:
    """Which groups have rewards that differ. Advantages would not do: of equal numbers float leaves some."""
    return np.ptp(rewards, axis=1) > 0


def step_metrics(rollout: Rollout, rewards: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What is logged of a step's rollouts.

    Returns:
        :func:`reward_means`; ``reward_std`` of the total over all completions; ``zero_spread_groups``: share of groups
        whose rewards are all equal, which teach nothing; ``completion_tokens``: mean length; ``truncated``: share of
        completions that hit the limit.
    """
    total = rewards["total"]
    return {
        **reward_means(rewards), "reward_std": float(total.std()),
        "zero_spread_groups": float(1 - spread(total).mean()), "completion_tokens": float(rollout.lengths.mean()),
        "truncated": float(1 - rollout.finished.mean()),
    }


def reward_means(rewards: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of every part over the completions where it is a number, by its name in the metrics."""
    return {LOGGED_AS.get(name, name): float(np.mean(x[np.isfinite(x)]))
            for name, x in rewards.items() if np.isfinite(x).any()}


def held_out_metrics(lora: nnx.State, model: FrozenModel, prompts: Sequence[Example], config: GrpoConfig,
                     environment: Environment, seed: int, report: Report = silent) -> dict[str, float]:
    """What the policy earns on prompts that it is not trained on: G completions of each, drawn and rewarded like those
    of a step, as many in a call. Prompts in other length buckets than those of the steps before compile what steps with
    such prompts would.

    Prompts and noise are the same each time, so that two results differ by what was learned in between.

    Returns:
        Means over all completions, named as in :func:`step_metrics` with ``eval_`` before it: of the reward parts, and
        ``eval_completion_tokens`` and ``eval_truncated``; ``eval_prompts``: how many were asked.
    """
    size, parts = config.prompts_per_step, []
    for number, start in enumerate(range(0, len(prompts), size), start=1):
        check_stop()
        chosen = prompts[start:start + size]
        repeated = [chosen[i % len(chosen)] for i in range(size)]  # the last call may have too few
        rollout = roll_out(lora, model, repeated, config, environment, seed, number, report, "held out")
        own = rollout.of(slice(len(chosen)))
        rewards = shared_rewards(environment.reward, completion_texts(own, environment.decode),
                                 [example.example_id for example in chosen], config.group_size)
        parts.append(rewards | {"completion_tokens": own.lengths, "truncated": 1.0 - own.finished})
    names = dict.fromkeys(name for part in parts for name in part)
    together = {name: np.concatenate([part[name] for part in parts if name in part]) for name in names}
    return {f"{LOOK}{name}": value for name, value in reward_means(together).items()} | {f"{LOOK}prompts": len(prompts)}
