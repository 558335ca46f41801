"""Group relative policy optimisation of the adapter (Eq. 4; the loss itself is in ``losses``).

A step: draw G completions of each prompt, score them by the reward function, turn rewards into advantages within each
group, and update the adapter on all of them (``iterations`` times on the same rollouts). Rollouts come from the adapter
as it stands. Sampled and scored log-probabilities are both log softmax(logits / temperature) over the whole vocabulary.
The first update needs no pass for the old log-probabilities: they are the policy's own with the gradient stopped. The
reference policy is a LoRA tree of its own: a copy of the adapter GRPO starts from, or the zero tree.

A group whose rewards are all equal has no advantage. Without a KL term its gradient is zero, so with ``beta`` 0 such
groups take no part in the passes, and the update is the same as with them; with one, ``uniform_groups: drop`` leaves
them out too.

The paper gives the reward, learning rate, temperature and top-p; G, clip range, beta and steps are ours (config).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from r2rec_jax.config import GrpoConfig
from r2rec_jax.models.lora import copy_tree, zeros_like_lora
from r2rec_jax.parallel.compiling import Report, silent
from r2rec_jax.parallel.distributed import check_stop
from r2rec_jax.parallel.sharding import place
from r2rec_jax.sampling.rollout import Rollout
from r2rec_jax.tokens.examples import Batch, Example
from r2rec_jax.tokens.loader import Loader
from r2rec_jax.training.checkpoints import Checkpoints
from r2rec_jax.training.environment import (
    Environment,
    completion_texts,
    held_out_metrics,
    roll_out,
    shared_rewards,
    spread,
    step_metrics,
)
from r2rec_jax.training.losses import completion_weights, group_advantages, grpo_loss
from r2rec_jax.training.metrics import JsonLines, MetricsWriter
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.programs import Program
from r2rec_jax.training.rollouts import GroupBatch, group_shape, lay_out, rows_used, with_advantages
from r2rec_jax.training.session import Session, Trained, steps_of
from r2rec_jax.training.shared import SharedCheckpoints
from r2rec_jax.training.state import TrainState, init_state, learning_rate, make_optimizer, make_schedule
from r2rec_jax.training.updates import LossFn, Updates, signal_and_noise

SUMS = ("tokens", "kl", "ratio", "clip_low", "clip_high", "correction", "entropy", "drift")
OF_THE_FIRST = ("drift", "grad_signal", "grad_noise", "grad_groups")
"""Values that are told of the first update on a step's rollouts, where the policy is the one that drew them."""
SHOWN = ("reward", "kl", "completion_tokens")


def make_grpo_loss(model: FrozenModel, config: GrpoConfig) -> LossFn:
    """``loss(lora, base, group_batch)``: a pass's share of -J, and sums over its trained tokens."""
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high

    def loss(lora: nnx.State, base: nnx.State, group: GroupBatch) -> tuple[Array, dict[str, Any]]:
        logprobs, entropy = model.score(lora, base, group.rows, config.temperature)
        completions = group.completions if config.importance == "sequence" else None
        value, sums = grpo_loss(logprobs, group.old, group.reference, group.advantages, group.weights,
                                epsilon=config.epsilon, epsilon_high=high, beta=config.beta, completions=completions,
                                group=config.group_size, sampled_logprobs=group.sampled,
                                sampler_cap=config.sampler_cap)
        mask = group.weights > 0
        sums["entropy"] = jnp.sum(jnp.where(mask, entropy, 0))
        sums["drift"] = jnp.sum(jnp.where(mask, jnp.abs(logprobs - group.sampled), 0))
        return value, jax.lax.stop_gradient(sums)

    return loss


def train_grpo(
    model: FrozenModel,
    lora: nnx.State,
    prompts: Sequence[Example],
    config: GrpoConfig,
    environment: Environment,
    *,
    seed: int,
    held_out: Sequence[Example] = (),
    checkpoints: Checkpoints | SharedCheckpoints | None = None,
    metrics: MetricsWriter | None = None,
    completions_log: JsonLines | None = None,
) -> Trained:
    """Train the adapter by rewards on its own completions.

    Args:
        model: the frozen backbone.
        lora: adapter to start from, and the reference when that is ``sft``; left as it is. A resumed run must be
            given the same one.
        prompts: their completion ids are not used.
        config: of the stage.
        environment: sampler, text and rewards.
        seed: order of the prompts and noise of the rollouts.
        held_out: prompts that the policy answers before the first step, after every ``eval_every`` steps and after the
            last, and is not trained on; see :func:`~r2rec_jax.training.environment.held_out_metrics`. None are asked
            where ``eval_every`` is 0.
        checkpoints: resumed from and saved to.
        metrics: one row a step; see :func:`~r2rec_jax.training.environment.step_metrics`. ``grad_signal`` and
            ``grad_noise`` (:func:`~r2rec_jax.training.updates.signal_and_noise`) say how much of the squared gradient
            norm the ``grad_groups`` groups of the step have in common, where they are in more passes than one and weigh
            alike (not with ``bnpo``). What held-out prompts gave has a row of its own, with the number of steps before
            it.
        completions_log: gets the first group of each step: prompt, texts and rewards.

    Returns:
        The trained adapter, or the one whose look had the highest ``eval_reward`` (``config.keep``), and counts.

    Raises:
        ValueError: no prompts.
        RewardError: the reward function failed, naming the example; the steps before it are saved.
        RuntimeError: three updates in a row were not finite.
    """
    loader = Loader(prompts, config.prompts_per_step, config.epochs, seed)
    total = steps_of("grpo", len(loader), config.steps)
    settings = (config.lr, config.schedule, config.warmup, total * config.iterations)
    optimizer, schedule = make_optimizer(*settings, config.weight_decay, config.max_grad_norm), make_schedule(*settings)
    reference = place(copy_tree(lora) if config.reference == "sft" else zeros_like_lora(lora), model.mesh)
    longest = max(len(example.prompt_ids) for example in prompts)
    whole = config.beta > 0 and config.uniform_groups == "keep"
    state = place(init_state(lora, optimizer, keep_best=config.keep == "best"), model.mesh)
    session = Session("grpo", state, loader, total, checkpoints=checkpoints, metrics=metrics, log=completions_log,
                      checkpoint_every=config.checkpoint_every, shown=SHOWN)
    session.watch(
        config.eval_every if held_out else 0,
        lambda: held_out_metrics(session.state.params, model, held_out, config, environment, seed, session.report),
        lambda values: values["eval_reward"])
    with session:
        score = make_scoring(model, config.temperature, session.report)
        updates = Updates(make_grpo_loss(model, config), SUMS, optimizer, session.report, mesh=model.mesh,
                          pass_squares=config.loss != "bnpo")  # there a group's weight depends on its pass

        def scored(chosen: Sequence[Example], rollout: Rollout, kept: np.ndarray | None = None) -> list[GroupBatch]:
            passes = make_passes(chosen, rollout, config, longest, environment.pad_id, model.row_shards, kept)
            return [with_scores(group, score, session.state.params, reference, model.base, config) for group in passes]

        for step in session.steps():
            chosen = next(loader)
            ids = [example.example_id for example in chosen]
            clock = Clock(session)
            rollout = roll_out(session.state.params, model, chosen, config, environment, seed, step, session.report)
            clock.lap("rollout_seconds")
            check_stop()
            passes = scored(chosen, rollout) if whole else []
            texts = completion_texts(rollout, environment.decode)
            rewards = shared_rewards(environment.reward, texts, ids, config.group_size)
            clock.lap("reward_seconds")
            check_stop()
            advantages = group_advantages(rewards["total"], config.scale_rewards)
            if not whole:
                taught = np.flatnonzero(spread(rewards["total"]))
                passes, advantages = scored(chosen, rollout, taught), advantages[taught]
            lr = learning_rate(schedule, session.state)
            passes = with_advantages(passes, advantages)
            state, values = update(session.state, updates, model.base, passes, config.iterations)
            clock.lap("update_seconds")
            values |= {"lr": lr, **step_metrics(rollout, rewards), **clock.laps}
            if completions_log is not None:
                completions_log.append({"step": step, "example_id": ids[0], "completions": texts[: config.group_size],
                                        "rewards": {name: x[0] for name, x in rewards.items()}})
            session.finish(step, state, values, ids)
    return session.trained()


def make_scoring(model: FrozenModel, temperature: float, report: Report = silent) -> Program:
    """``(lora, base, rows) -> {"logprobs"}``: log-probabilities of a batch's targets, compiled."""
    def score(lora: nnx.State, base: nnx.State, rows: Batch) -> dict[str, Array]:
        return {"logprobs": model.score(lora, base, rows, temperature)[0]}

    return Program("scoring", score, report=report, mesh=model.mesh)


def make_passes(chosen: Sequence[Example], rollout: Rollout, config: GrpoConfig, longest: int, pad_id: int,
                row_shards: int = 1, kept: np.ndarray | None = None) -> list[GroupBatch]:
    """The device passes of a step, ``micro_prompts`` rows on each of ``row_shards`` devices, without scores and
    advantages; of the prompts numbered in ``kept`` alone, with the weights that they have among all."""
    counted = rollout.finished if config.mask_truncated else np.ones_like(rollout.finished)
    weights = completion_weights(rollout.lengths, counted, config.loss, config.max_new_tokens, config.micro_prompts)
    shape = group_shape(rollout, longest, config.max_new_tokens)
    if kept is not None:
        chosen, weights = [chosen[row] for row in kept], weights[kept]
        rollout = rollout.of(kept)
    return lay_out([example.prompt_ids for example in chosen], rollout, weights, shape,
                   config.micro_prompts * row_shards, pad_id) if chosen else []


def with_scores(group: GroupBatch, score: Program, lora: nnx.State, reference: nnx.State, base: nnx.State,
                config: GrpoConfig) -> GroupBatch:
    """The pass with the log-probabilities that the loss needs and nothing more: reference if beta > 0, old if the
    rollouts serve more than one update. It does not wait for them: where all groups are kept, the device works while
    the host rewards."""
    return replace(
        group, reference=score(reference, base, group.rows)["logprobs"] if config.beta > 0 else None,
        old=score(lora, base, group.rows)["logprobs"] if config.iterations > 1 else None)


def update(state: TrainState, updates: Updates, base: nnx.State, passes: Sequence[GroupBatch], iterations: int
           ) -> tuple[TrainState, dict[str, float]]:
    """All updates on one step's rollouts; values are token means, averaged over the updates (:data:`OF_THE_FIRST`: the
    first's), and left out where no token was trained on, as ``kl`` is where no reference was scored."""
    rows, counts = [], [rows_used(group) for group in passes]
    means_of = [name for name in SUMS if name != "kl" or any(group.reference is not None for group in passes)]
    for _ in range(iterations):
        state, values = updates.run(state, base, [(group,) for group in passes])
        tokens = values.pop("tokens")
        parts = signal_and_noise(values["grad_norm"], values.pop("pass_squares", np.nan), counts)
        values |= {"grad_signal": parts[0], "grad_noise": parts[1], "grad_groups": sum(counts)} if parts else {}
        rows.append({name: value / tokens if name in SUMS else value for name, value in values.items()
                     if name not in SUMS or (tokens and name in means_of)})
    means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in rows[0]}
    first = {name: rows[0][name] for name in OF_THE_FIRST if name in rows[0]}
    return state, means | {name: rows[-1][name] for name in ("skipped", "skipped_in_a_row")} | first


class Clock:
    """Seconds of the phases of a step, compilations left out."""

    def __init__(self, session: Session) -> None:
        self.laps: dict[str, float] = {}
        self._session = session
        self._mark = self._now()

    def _now(self) -> float:
        return time.monotonic() - self._session.compile_s

    def lap(self, name: str) -> None:
        """The time since the last lap was spent on ``name``."""
        now = self._now()
        self.laps[name], self._mark = round(now - self._mark, 4), now
