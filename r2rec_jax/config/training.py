"""Settings of pretraining, SFT, rewards and GRPO."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from r2rec_jax.config.check import check


@dataclass(frozen=True)
class MixConfig:
    """Shares of the tokens that pretraining reads, by kind of text (any scale; 0 leaves a kind out).

    Attributes:
        histories: what users liked, in the order in which they liked it.
        choices: the same, and before some likes a list of items of which it is one. For ``tiny`` their first third are
            bare lists that are repeated, before anything else is read: copying has to be learned before choosing can
            be. A pretrained backbone can copy.
        thoughts: rating questions on the chains of SFT queries, with the teacher's thoughts.
        prompts: ranking prompts of SFT and RL queries, without an answer. A later query of a user shows the target of
            an earlier one among the likes, so GRPO rewards some of it for what was read.
        examples: the SFT examples, prompt and completion.
    """

    histories: float = 1.0
    choices: float = 0.0
    thoughts: float = 0.0
    prompts: float = 0.0
    examples: float = 1.0

    def __post_init__(self) -> None:
        for name, share in asdict(self).items():
            check(0 <= share < math.inf, f"pretrain.mix.{name}", ">= 0", share)
        check(any(asdict(self).values()), "pretrain.mix", "more than 0 for one kind of text", asdict(self))


@dataclass(frozen=True)
class PretrainConfig:
    """Next-token training of a backbone, all parameters: of ``tiny``, and of a pretrained one where ``adapt`` says so.

    Attributes:
        adapt: train a pretrained backbone further on the same texts before it gets its adapter (domain-adaptive
            pretraining, Gururangan et al., 2020, https://arxiv.org/abs/2004.10964; *extension*; ``configs/adapt.yaml``
            has a mix and a learning rate for it). Adapters then belong to the run's own ``pretrain/backbone``.
            Checkpoints, of 12 bytes a parameter, pass through every host whole. ``tiny`` is always trained.
        steps: optimiser steps.
        batch_size: rows a step.
        max_tokens: row length in tokens. Texts are packed whole; of what is longer, choices are left out, histories and
            prompts are cut into parts, and of thoughts and examples the end is read. The stage says how many.
        lr: peak learning rate, linear warm-up over 5 % of the steps, cosine to a tenth.
        checkpoint_every: steps between checkpoints.
        mix: what is read: ``steps`` x ``batch_size`` x ``max_tokens`` tokens in these shares.
        choices_as: how a choice of ``mix.choices`` is written: the ``answer`` block alone, or a whole ``completion``,
            whose thought says which item fits best, so that SFT need not teach where an item is chosen.
    """

    adapt: bool = False
    steps: int = 400
    batch_size: int = 8
    max_tokens: int = 512
    lr: float = 1e-3
    checkpoint_every: int = 100
    mix: MixConfig = field(default_factory=MixConfig)
    choices_as: Literal["answer", "completion"] = "answer"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "max_tokens", "checkpoint_every"):
            check(getattr(self, name) >= 1, f"pretrain.{name}", ">= 1", getattr(self, name))
        check(self.lr > 0, "pretrain.lr", "> 0", self.lr)


def _check_looks(stage: str, every: int, keep: str) -> None:
    check(every >= 0, f"{stage}.eval_every", ">= 0", every)
    check(keep == "last" or every > 0, f"{stage}.eval_every", f">= 1 for {stage}.keep: best", every)


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning of the adapter (Eq. 3).

    Attributes:
        epochs: passes over the examples (*paper*: 10).
        batch_size: examples an update.
        micro_batch: packed rows a pass, on each device that ``parallel`` gives rows of its own; gradients accumulate
            over an update's rows. 1 is best on a CPU.
        lr: AdamW learning rate (*paper*: 5e-5).
        warmup: fraction of the updates with a linear warm-up.
        schedule: learning rate after the warm-up.
        weight_decay: AdamW's, on the adapter.
        max_grad_norm: global-norm clipping.
        thought_weight: chains -> (thought, rating) examples for each ranking example (0 trains on ranking only).
        max_completion: longest completion in tokens; a longer target is an error naming the example.
        buckets: row lengths in tokens that examples are packed into; empty takes the longest example and 3/4 and 1/2 of
            it, in multiples of 64.
        log_every: updates between metric rows.
        checkpoint_every: updates between checkpoints.
        steps: stop after this many updates; null runs all epochs. A few examples of many, for a policy that GRPO is to
            train on more queries.
        eval_every: updates between looks at held-out examples: what the teacher writes for ``eval_prompts`` validation
            queries, mixed like the training examples. Their loss is logged beside that of training (``eval_loss``)
            before the first update, after every so many and after the last. 0 never looks. A teacher that costs
            something writes thoughts for these queries too.
        eval_prompts: how many validation queries; all of them where the data has fewer.
        keep: the adapter that the stage hands on: the ``last``, or the ``best``, whose look had the lowest
            ``eval_loss`` (before the first update is a look too). Results on validation queries then flatter it.
    """

    epochs: int = 10
    batch_size: int = 16
    micro_batch: int = 4
    lr: float = 5e-5
    warmup: float = 0.03
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    thought_weight: float = 1.0
    max_completion: int = 1024
    buckets: Sequence[int] = ()
    log_every: int = 1
    checkpoint_every: int = 50
    steps: int | None = None
    eval_every: int = 0
    eval_prompts: int = 32
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        check(self.steps is None or self.steps >= 1, "sft.steps", ">= 1 or null", self.steps)
        for name in ("epochs", "batch_size", "micro_batch", "max_completion", "log_every", "checkpoint_every",
                     "eval_prompts"):
            check(getattr(self, name) >= 1, f"sft.{name}", ">= 1", getattr(self, name))
        _check_looks("sft", self.eval_every, self.keep)
        check(self.batch_size % self.micro_batch == 0, "sft.batch_size", "a multiple of sft.micro_batch",
               self.batch_size)
        check(self.lr > 0, "sft.lr", "> 0", self.lr)
        check(0 <= self.warmup < 1, "sft.warmup", "in [0, 1)", self.warmup)
        check(self.weight_decay >= 0, "sft.weight_decay", ">= 0", self.weight_decay)
        check(self.max_grad_norm > 0, "sft.max_grad_norm", "> 0", self.max_grad_norm)
        check(self.thought_weight >= 0, "sft.thought_weight", ">= 0", self.thought_weight)
        check(all(b >= 1 for b in self.buckets), "sft.buckets", "positive lengths", tuple(self.buckets))


@dataclass(frozen=True)
class RewardFunction:
    """A reward of your own, added to R.

    Attributes:
        function: import path ``package.module:name`` of a plain function ``(prompts, completions, **columns) ->
            list[float | None]``; see :mod:`r2rec_jax.rewards.functions`.
        weight: what its values are multiplied by.
    """

    function: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        module, colon, name = self.function.partition(":")
        check(bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split(".")),
              "rewards.functions", "import paths like 'my_package.rewards:brevity'", self.function)
        check(math.isfinite(self.weight), "rewards.functions.weight", "finite", self.weight)


@dataclass(frozen=True)
class RewardConfig:
    """R = step_weight * R_step + rank_weight * R_rank (Eq. 5-7) + true_weight * R_true, and functions of your own.

    Attributes:
        step_weight: weight of the reasoning-step reward (*paper*: 1).
        rank_weight: weight of the ranking reward (*paper*: 2). An answer that cannot be read, or lacks the true item,
            has R_rank 0; its R_step stays (Eq. 5 adds them).
        rank_form: ``log`` 1/log2(rank+1), ``reciprocal`` 1/rank, ``linear`` 1-(rank-1)/N (*reconstructed*: log).
        rank_places: what a rank counts: the ``candidates`` before the true item, as evaluation does, or all that
            is ``written`` before it, repeats and what is no candidate too. With the former an answer may open
            with anything and lose nothing, and GRPO learns to (EVIDENCE.md).
        true_weight: weight of R_true (*extension*): how many of the statements that the template would make of the
            prompt the answer makes, word for word, and how many others (:mod:`r2rec_jax.thoughts.truth`). R_step only
            counts statements, so GRPO without this unlearns to make them true; with it a small model found the one
            that is true most often (EVIDENCE.md). For ``thoughts.teacher: template``, whose words can be checked.
            R_true is logged at any weight.
        steps_low: lower end of the band of reasoning statements; null takes the 5th percentile of the SFT targets
            (*reconstructed*).
        steps_high: its upper end; null takes the 95th percentile.
        functions: further rewards, weighted and added.
    """

    step_weight: float = 1.0
    rank_weight: float = 2.0
    rank_form: Literal["log", "reciprocal", "linear"] = "log"
    rank_places: Literal["candidates", "written"] = "candidates"
    true_weight: float = 0.0
    steps_low: int | None = None
    steps_high: int | None = None
    functions: Sequence[RewardFunction] = ()

    def __post_init__(self) -> None:
        names = [entry.function for entry in self.functions]
        check(len(set(names)) == len(names), "rewards.functions", "distinct", names)
        check(self.step_weight >= 0, "rewards.step_weight", ">= 0", self.step_weight)
        check(self.rank_weight >= 0, "rewards.rank_weight", ">= 0", self.rank_weight)
        check(0 <= self.true_weight < math.inf, "rewards.true_weight", ">= 0", self.true_weight)
        low, high = self.steps_low, self.steps_high
        check((low is None) == (high is None), "rewards.steps_low and rewards.steps_high", "set together",
               (low, high))
        if low is not None and high is not None:
            check(1 <= low <= high, "rewards.steps_low", "in 1..rewards.steps_high", low)


@dataclass(frozen=True)
class GrpoConfig:
    """Group relative policy optimisation of the adapter (Eq. 4).

    Attributes:
        epochs: passes over the RL queries (*paper*: 1).
        group_size: completions a prompt, G (*reconstructed*: 8).
        prompts_per_step: prompts a step (*reconstructed*: 8).
        micro_prompts: prompts a pass, on each device that ``parallel`` gives rows of its own; gradients accumulate.
        lr: AdamW learning rate (*paper*: 5e-6).
        warmup: fraction of the updates with a linear warm-up.
        schedule: learning rate after the warm-up.
        weight_decay: AdamW's, on the adapter.
        max_grad_norm: global-norm clipping.
        temperature: of the rollouts (*paper*: 0.6).
        top_p: of the rollouts (*paper*: 0.9).
        max_new_tokens: completion limit in tokens (*reconstructed*: 1,024).
        epsilon: lower clip range (*reconstructed*: 0.2).
        epsilon_high: upper clip range; null equals epsilon.
        beta: weight of the KL term (*reconstructed*: 0.04); 0 skips the reference pass.
        uniform_groups: groups whose rewards are all equal have no advantage, and no gradient but that of the KL term.
            ``keep`` computes it; ``drop`` leaves them out of the update, which is faster by their share (the filter of
            DAPO's dynamic sampling, without drawing others in their place). With ``beta`` 0 they are always left out.
            What is dropped is not counted in ``kl``, ``entropy``, ``drift`` and ratios.
        loss: ``grpo`` (mean over a completion, then over completions), ``dr_grpo`` (sum over tokens divided by
            max_new_tokens), ``dapo`` (mean over all tokens of the update), ``bnpo`` (mean over the tokens of
            ``micro_prompts`` prompts, then over those means).
        scale_rewards: whose standard deviation divides the advantages: the ``group``'s, the ``batch``'s, or ``none``.
        importance: the ratio to the old policy and its clipping, a ``token`` or a ``sequence`` (GSPO).
        sampler_cap: weigh tokens by min(trainer's / sampler's probability, this) (truncated importance sampling), for a
            sampler whose numbers drift from the trainer's (metric ``drift``); null does not.
        reference: the policy that KL is taken against: the adapter GRPO starts from (``sft``) or the ``base``.
        iterations: updates on the same rollouts.
        mask_truncated: drop completions that hit the limit from the loss.
        steps: stop after this many steps (rollouts, and ``iterations`` updates on each); null runs all epochs.
        start: the adapter GRPO starts from: ``sft``, or ``base`` for the paper's row without SFT.
        checkpoint_every: steps between checkpoints.
        eval_every: steps between looks at held-out prompts: ``eval_prompts`` validation queries, each answered
            ``group_size`` times by drawn answers, before the first step, after every so many and after the last. Their
            rewards are logged beside those of the training prompts (``eval_reward_rank``, ``eval_hit``, ...), and
            nothing is trained on them. 0 never looks. A look takes as long as the rollouts of ``eval_prompts`` /
            ``prompts_per_step`` steps, rounded up.
        eval_prompts: how many validation queries; all of them where the data has fewer.
        keep: the adapter that the stage hands on: the ``last``, or the ``best``, whose look had the highest
            ``eval_reward``, all weighted rewards together. Before the first step is a look too, so the best may be the
            adapter that GRPO started from. Results on validation queries then flatter it.
    """

    epochs: int = 1
    group_size: int = 8
    prompts_per_step: int = 8
    micro_prompts: int = 1
    lr: float = 5e-6
    warmup: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    temperature: float = 0.6
    top_p: float = 0.9
    max_new_tokens: int = 1024
    epsilon: float = 0.2
    epsilon_high: float | None = None
    beta: float = 0.04
    uniform_groups: Literal["keep", "drop"] = "keep"
    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo"] = "grpo"
    scale_rewards: Literal["group", "batch", "none"] = "group"
    importance: Literal["token", "sequence"] = "token"
    sampler_cap: float | None = None
    reference: Literal["sft", "base"] = "sft"
    iterations: int = 1
    mask_truncated: bool = False
    steps: int | None = None
    start: Literal["sft", "base"] = "sft"
    checkpoint_every: int = 10
    eval_every: int = 0
    eval_prompts: int = 32
    keep: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        check(self.group_size >= 2, "grpo.group_size", ">= 2", self.group_size,
               "advantages divide by the group's std")
        for name in ("epochs", "prompts_per_step", "micro_prompts", "max_new_tokens", "iterations",
                     "checkpoint_every", "eval_prompts"):
            check(getattr(self, name) >= 1, f"grpo.{name}", ">= 1", getattr(self, name))
        _check_looks("grpo", self.eval_every, self.keep)
        check(self.prompts_per_step % self.micro_prompts == 0, "grpo.prompts_per_step",
               "a multiple of grpo.micro_prompts", self.prompts_per_step)
        check(self.lr > 0, "grpo.lr", "> 0", self.lr)
        check(0 <= self.warmup < 1, "grpo.warmup", "in [0, 1)", self.warmup)
        check(self.weight_decay >= 0, "grpo.weight_decay", ">= 0", self.weight_decay)
        check(self.max_grad_norm > 0, "grpo.max_grad_norm", "> 0", self.max_grad_norm)
        check(self.temperature > 0, "grpo.temperature", "> 0", self.temperature,
               "greedy rollouts of one prompt are all the same")
        check(0 < self.top_p <= 1, "grpo.top_p", "in (0, 1]", self.top_p)
        check(0 < self.epsilon < 1, "grpo.epsilon", "in (0, 1)", self.epsilon)
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        check(high > 0, "grpo.epsilon_high", "> 0", high)
        check(self.beta >= 0, "grpo.beta", ">= 0", self.beta)
        check(self.sampler_cap is None or self.sampler_cap > 0, "grpo.sampler_cap", "> 0 or null", self.sampler_cap)
        check(self.steps is None or self.steps >= 1, "grpo.steps", ">= 1 or null", self.steps)
