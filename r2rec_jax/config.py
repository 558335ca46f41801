"""Every setting of a run, as frozen dataclasses: one per stage, checked on construction.

The YAML files under ``configs/`` and the command line (``--sft.lr 1e-4``) both fill :class:`TrainConfig`
through jsonargparse. A value out of range raises ``ValueError`` with the invariant, the value and the fix.
Settings marked *paper* carry the value that the R2Rec paper states (section 4.1.2); those marked *reconstructed*
fill a gap that the paper leaves open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

STAGES = ("prepare", "thoughts", "pretrain", "sft", "grpo", "evaluate", "export")
"""The stages of a run, in order. ``pretrain`` runs only with the ``tiny`` backbone."""


def _check(condition: bool, name: str, invariant: str, value: object, why: str = "") -> None:
    if not condition:
        reason = f" ({why})" if why else ""
        raise ValueError(f"{name} must be {invariant}{reason}; got {value!r}")


@dataclass(frozen=True)
class DataConfig:
    """Which interactions, and how they are split into queries.

    Attributes:
        name: data set: ``ml-100k`` or ``ml-1m``.
        path: folder that holds the original files; null tries the official address, then a registry package.
        cache_dir: where downloads are kept; ``~`` is expanded.
        positive_above: an interaction is positive (liked) when its rating is above this (*paper*: 3).
        min_positives: users with fewer positives are not eligible for evaluation or training queries (*paper*: 6).
        min_history: positives that must lie before a training target (*reconstructed*: 5, the profile's length).
        candidates: list length, the target included (*paper*: 20).
        negatives: how the other candidates are drawn: ``uniform`` over items the user never interacted with
            (*paper*), ``popularity``-proportional over the same, or the user's own ``disliked`` items filled up
            with uniform ones.
        eval_users: users whose last positive is a test target (*paper*: 1,000).
        validation_users: how many of them also give a validation query (their last positive but one).
        sft_queries: training queries for SFT (*paper*: 500).
        rl_queries: training queries for GRPO, disjoint from the SFT ones (*paper*: 500).
        split_seed: draws users, ties and candidates; frozen to files that every system reads.
    """

    name: Literal["ml-100k", "ml-1m"] = "ml-100k"
    path: str | None = None
    cache_dir: str = "~/.cache/r2rec_jax"
    positive_above: float = 3.0
    min_positives: int = 6
    min_history: int = 5
    candidates: int = 20
    negatives: Literal["uniform", "popularity", "disliked"] = "uniform"
    eval_users: int = 900
    validation_users: int = 200
    sft_queries: int = 500
    rl_queries: int = 500
    split_seed: int = 0

    def __post_init__(self) -> None:
        _check(self.min_positives >= 3, "data.min_positives", ">= 3", self.min_positives,
               "one positive each for test, validation and history")
        _check(self.min_history >= 1, "data.min_history", ">= 1", self.min_history)
        _check(2 <= self.candidates <= 100, "data.candidates", "in 2..100", self.candidates)
        _check(self.eval_users >= 1, "data.eval_users", ">= 1", self.eval_users)
        _check(0 <= self.validation_users <= self.eval_users, "data.validation_users",
               "in 0..data.eval_users", self.validation_users, "validation queries come from evaluation users")
        _check(self.sft_queries >= 1, "data.sft_queries", ">= 1", self.sft_queries)
        _check(self.rl_queries >= 1, "data.rl_queries", ">= 1", self.rl_queries)


@dataclass(frozen=True)
class GraphConfig:
    """How interaction chains are drawn (Eq. 1).

    Attributes:
        chains: chains drawn for a query (*paper*: 5).
        before_target: also drop other users' edges that are later than the query's target.
    """

    chains: int = 5
    before_target: bool = False

    def __post_init__(self) -> None:
        _check(0 <= self.chains <= 20, "graph.chains", "in 0..20", self.chains)


@dataclass(frozen=True)
class AnswerConfig:
    """The form of the answer that the model is asked for.

    Attributes:
        form: ``numbers`` (candidate numbers) or ``titles`` (candidate titles) inside ``<answer>``.
        top: how many places the model is asked for; candidates not listed share the last rank.
    """

    form: Literal["numbers", "titles"] = "numbers"
    top: int = 20

    def __post_init__(self) -> None:
        _check(1 <= self.top <= 100, "prompts.answer.top", "in 1..100", self.top)


@dataclass(frozen=True)
class PromptConfig:
    """What a prompt shows.

    Attributes:
        domain: the template; ``auto`` takes the data set's own (movies for MovieLens).
        liked: how many of the most recent liked items the prompt lists (*paper*: 5).
        chains: show the interaction chains (the paper's ablation "w/o Interaction Chain" sets false).
        thoughts: ``completion`` (the model writes them), ``prompt`` (a teacher's are shown: "Prompt Full"), or
            ``none`` (no reasoning asked for: "w/o Reasoning Chain").
        detail: ``hops`` writes a statement for each hop of a chain, ``brief`` one statement a chain.
        answer: form and length of the answer.
        max_tokens: longest prompt in tokens (*reconstructed*); oldest chains are dropped first, counted.
    """

    domain: Literal["auto", "movies", "books", "electronics", "generic"] = "auto"
    liked: int = 5
    chains: bool = True
    thoughts: Literal["completion", "prompt", "none"] = "completion"
    detail: Literal["hops", "brief"] = "hops"
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    max_tokens: int = 3072

    def __post_init__(self) -> None:
        _check(1 <= self.liked <= 50, "prompts.liked", "in 1..50", self.liked)
        _check(self.max_tokens >= 32, "prompts.max_tokens", ">= 32", self.max_tokens)


@dataclass(frozen=True)
class ThoughtsConfig:
    """Who writes the interaction-of-thoughts that SFT learns from (Eq. 2).

    Attributes:
        teacher: ``template`` (deterministic, offline) or ``local`` (our own backbone under the masked prompt).
        attempts: how often the ``local`` teacher may try one chain before it is given up.
        max_new_tokens: longest thought of the ``local`` teacher, in tokens.
        temperature: sampling temperature of the ``local`` teacher.
    """

    teacher: Literal["template", "local"] = "template"
    attempts: int = 4
    max_new_tokens: int = 256
    temperature: float = 0.7

    def __post_init__(self) -> None:
        _check(self.attempts >= 1, "thoughts.attempts", ">= 1", self.attempts)
        _check(self.max_new_tokens >= 1, "thoughts.max_new_tokens", ">= 1", self.max_new_tokens)
        _check(self.temperature >= 0, "thoughts.temperature", ">= 0", self.temperature)


@dataclass(frozen=True)
class TinyConfig:
    """Shape of the ``tiny`` backbone, trained from scratch.

    Attributes:
        vocab_size: BPE vocabulary, special tokens included.
        hidden_size, layers, heads, kv_heads, ffn: the Llama shape.
        max_positions: longest sequence the configuration declares.
    """

    vocab_size: int = 2048
    hidden_size: int = 192
    layers: int = 4
    heads: int = 6
    kv_heads: int = 2
    ffn: int = 512
    max_positions: int = 4096

    def __post_init__(self) -> None:
        _check(self.vocab_size >= 300, "backbone.tiny.vocab_size", ">= 300", self.vocab_size,
               "256 bytes and the special tokens")
        for name in ("hidden_size", "layers", "heads", "kv_heads", "ffn", "max_positions"):
            _check(getattr(self, name) >= 1, f"backbone.tiny.{name}", ">= 1", getattr(self, name))
        _check(self.hidden_size % (2 * self.heads) == 0, "backbone.tiny.hidden_size",
               "a multiple of 2 * backbone.tiny.heads", self.hidden_size, "RoPE rotates pairs")
        _check(self.heads % self.kv_heads == 0, "backbone.tiny.heads", "a multiple of backbone.tiny.kv_heads",
               self.heads)


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen language model.

    Attributes:
        source: a local HF folder, a ``.gguf`` file, a hub id, ``tiny``, or ``smollm2-135m`` (the hub's
            HuggingFaceTB/SmolLM2-135M-Instruct, or the same weights from a registry package when offline).
        dtype: of the frozen weights; ``auto`` is bfloat16 on GPU and TPU and float32 on CPU.
        attention: ``auto`` is cuDNN on GPU and XLA elsewhere.
        remat: recompute activations in the backward pass (less memory, more time); ``auto`` does so on GPU and TPU.
        tiny: the shape used by ``source: tiny``.
    """

    source: str = "smollm2-135m"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    attention: Literal["auto", "xla", "cudnn"] = "auto"
    remat: Literal["auto", "on", "off"] = "auto"
    tiny: TinyConfig = field(default_factory=TinyConfig)

    def __post_init__(self) -> None:
        _check(bool(self.source.strip()), "backbone.source", "a path, a hub id, 'tiny' or 'smollm2-135m'", self.source)


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters on the linear layers (*reconstructed*: r 16, alpha 32, all seven).

    Attributes:
        rank: r.
        alpha: the update is scaled by alpha / r.
        targets: which linears, by their short names.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: Sequence[str] = ("q", "k", "v", "o", "gate", "up", "down")

    def __post_init__(self) -> None:
        _check(self.rank >= 1, "lora.rank", ">= 1", self.rank)
        _check(self.alpha > 0, "lora.alpha", "> 0", self.alpha)
        known = ("q", "k", "v", "o", "gate", "up", "down")
        unknown = [t for t in self.targets if t not in known]
        _check(bool(self.targets) and not unknown and len(set(self.targets)) == len(self.targets),
               "lora.targets", f"distinct names out of {known}", tuple(self.targets))


@dataclass(frozen=True)
class PretrainConfig:
    """Next-token training of the ``tiny`` backbone, all parameters.

    Attributes:
        steps: optimiser steps.
        batch_size: rows a step.
        max_tokens: row length in tokens; texts are packed end to end.
        lr: peak learning rate, linear warm-up over 5 % of the steps, cosine to a tenth.
        checkpoint_every: steps between checkpoints.
    """

    steps: int = 400
    batch_size: int = 8
    max_tokens: int = 512
    lr: float = 1e-3
    checkpoint_every: int = 100

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "max_tokens", "checkpoint_every"):
            _check(getattr(self, name) >= 1, f"pretrain.{name}", ">= 1", getattr(self, name))
        _check(self.lr > 0, "pretrain.lr", "> 0", self.lr)


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning of the adapter (Eq. 3).

    Attributes:
        epochs: passes over the examples (*paper*: 10).
        batch_size: examples an update.
        micro_batch: examples a device pass; gradients accumulate up to batch_size.
        lr: AdamW learning rate (*paper*: 5e-5).
        warmup: fraction of the updates with a linear warm-up.
        schedule: learning rate after the warm-up.
        weight_decay: AdamW's, on the adapter.
        max_grad_norm: global-norm clipping.
        thought_weight: chains -> (thought, rating) examples for each ranking example (0 trains on ranking only).
        max_completion: longest completion in tokens; a longer target is an error naming the example.
        buckets: row lengths in tokens that batches are padded to; empty derives powers of two and their midpoints.
        log_every: updates between metric rows.
        checkpoint_every: updates between checkpoints.
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

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batch", "max_completion", "log_every", "checkpoint_every"):
            _check(getattr(self, name) >= 1, f"sft.{name}", ">= 1", getattr(self, name))
        _check(self.batch_size % self.micro_batch == 0, "sft.batch_size", "a multiple of sft.micro_batch",
               self.batch_size)
        _check(self.lr > 0, "sft.lr", "> 0", self.lr)
        _check(0 <= self.warmup < 1, "sft.warmup", "in [0, 1)", self.warmup)
        _check(self.weight_decay >= 0, "sft.weight_decay", ">= 0", self.weight_decay)
        _check(self.max_grad_norm > 0, "sft.max_grad_norm", "> 0", self.max_grad_norm)
        _check(self.thought_weight >= 0, "sft.thought_weight", ">= 0", self.thought_weight)
        _check(all(b >= 1 for b in self.buckets), "sft.buckets", "positive lengths", tuple(self.buckets))


@dataclass(frozen=True)
class RewardConfig:
    """R = step_weight * R_step + rank_weight * R_rank (Eq. 5-7).

    Attributes:
        step_weight: weight of the reasoning-step reward (*paper*: 1).
        rank_weight: weight of the ranking reward (*paper*: 2).
        rank_form: ``log`` 1/log2(rank+1), ``reciprocal`` 1/rank, ``linear`` 1-(rank-1)/N (*reconstructed*: log).
        steps_low, steps_high: the band of reasoning statements; null takes the 5th and 95th percentile of the SFT
            targets (*reconstructed*).
    """

    step_weight: float = 1.0
    rank_weight: float = 2.0
    rank_form: Literal["log", "reciprocal", "linear"] = "log"
    steps_low: int | None = None
    steps_high: int | None = None

    def __post_init__(self) -> None:
        _check(self.step_weight >= 0, "rewards.step_weight", ">= 0", self.step_weight)
        _check(self.rank_weight >= 0, "rewards.rank_weight", ">= 0", self.rank_weight)
        low, high = self.steps_low, self.steps_high
        _check((low is None) == (high is None), "rewards.steps_low and rewards.steps_high", "set together",
               (low, high))
        if low is not None and high is not None:
            _check(1 <= low <= high, "rewards.steps_low", "in 1..rewards.steps_high", low)


@dataclass(frozen=True)
class GrpoConfig:
    """Group relative policy optimisation of the adapter (Eq. 4).

    Attributes:
        epochs: passes over the RL queries (*paper*: 1).
        group_size: completions a prompt, G (*reconstructed*: 8).
        prompts_per_step: prompts an update (*reconstructed*: 8).
        micro_prompts: prompts a device pass; gradients accumulate.
        lr: AdamW learning rate (*paper*: 5e-6).
        warmup: fraction of the updates with a linear warm-up.
        schedule: learning rate after the warm-up.
        weight_decay: AdamW's, on the adapter.
        max_grad_norm: global-norm clipping.
        temperature, top_p: of the rollouts (*paper*: 0.6 and 0.9).
        max_new_tokens: completion limit in tokens (*reconstructed*: 1,024).
        epsilon: lower clip range (*reconstructed*: 0.2).
        epsilon_high: upper clip range; null equals epsilon.
        beta: weight of the KL term (*reconstructed*: 0.04); 0 skips the reference pass.
        loss: ``grpo`` (mean over a completion, then over completions), ``dr_grpo`` (sum over tokens divided by
            max_new_tokens), ``dapo`` (mean over all tokens of the update).
        scale_rewards: divide advantages by the group's standard deviation.
        reference: the policy that KL is taken against: the adapter GRPO starts from (``sft``) or the ``base``.
        iterations: updates on the same rollouts.
        mask_truncated: drop completions that hit the limit from the loss.
        steps: stop after this many updates; null runs all epochs.
        start: the adapter GRPO starts from: ``sft``, or ``base`` for the paper's row without SFT.
        checkpoint_every: updates between checkpoints.
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
    loss: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    scale_rewards: bool = True
    reference: Literal["sft", "base"] = "sft"
    iterations: int = 1
    mask_truncated: bool = False
    steps: int | None = None
    start: Literal["sft", "base"] = "sft"
    checkpoint_every: int = 10

    def __post_init__(self) -> None:
        _check(self.group_size >= 2, "grpo.group_size", ">= 2", self.group_size,
               "advantages divide by the group's std")
        for name in ("epochs", "prompts_per_step", "micro_prompts", "max_new_tokens", "iterations",
                     "checkpoint_every"):
            _check(getattr(self, name) >= 1, f"grpo.{name}", ">= 1", getattr(self, name))
        _check(self.prompts_per_step % self.micro_prompts == 0, "grpo.prompts_per_step",
               "a multiple of grpo.micro_prompts", self.prompts_per_step)
        _check(self.lr > 0, "grpo.lr", "> 0", self.lr)
        _check(0 <= self.warmup < 1, "grpo.warmup", "in [0, 1)", self.warmup)
        _check(self.weight_decay >= 0, "grpo.weight_decay", ">= 0", self.weight_decay)
        _check(self.max_grad_norm > 0, "grpo.max_grad_norm", "> 0", self.max_grad_norm)
        _check(self.temperature > 0, "grpo.temperature", "> 0", self.temperature,
               "greedy rollouts of one prompt are all the same")
        _check(0 < self.top_p <= 1, "grpo.top_p", "in (0, 1]", self.top_p)
        _check(0 < self.epsilon < 1, "grpo.epsilon", "in (0, 1)", self.epsilon)
        high = self.epsilon if self.epsilon_high is None else self.epsilon_high
        _check(high > 0, "grpo.epsilon_high", "> 0", high)
        _check(self.beta >= 0, "grpo.beta", ">= 0", self.beta)
        _check(self.steps is None or self.steps >= 1, "grpo.steps", ">= 1 or null", self.steps)


@dataclass(frozen=True)
class EvaluateConfig:
    """How checkpoints are evaluated.

    Attributes:
        split: ``test`` or ``validation``.
        users: how many of the frozen evaluation queries, in file order; null takes all.
        systems: which policies: ``base`` (``pretrained`` for tiny), ``sft``, ``sft+grpo``.
        temperature, top_p: of the completion (*paper*: 0.6 and 0.9); temperature 0 is greedy.
        max_new_tokens: completion limit in tokens.
        batch_size: prompts decoded together.
    """

    split: Literal["test", "validation"] = "test"
    users: int | None = None
    systems: Sequence[Literal["base", "sft", "sft+grpo"]] = ("base", "sft", "sft+grpo")
    temperature: float = 0.6
    top_p: float = 0.9
    max_new_tokens: int = 1024
    batch_size: int = 8

    def __post_init__(self) -> None:
        _check(self.users is None or self.users >= 1, "evaluate.users", ">= 1 or null", self.users)
        _check(self.temperature >= 0, "evaluate.temperature", ">= 0", self.temperature)
        _check(0 < self.top_p <= 1, "evaluate.top_p", "in (0, 1]", self.top_p)
        _check(self.max_new_tokens >= 1, "evaluate.max_new_tokens", ">= 1", self.max_new_tokens)
        _check(self.batch_size >= 1, "evaluate.batch_size", ">= 1", self.batch_size)


@dataclass(frozen=True)
class ExportConfig:
    """What the export stage writes under ``<run>/export``.

    Attributes:
        formats: ``peft`` (adapter folder), ``merged`` (HF safetensors folder).
        checkpoint: whose adapter.
    """

    formats: Sequence[Literal["peft", "merged"]] = ("peft",)
    checkpoint: Literal["sft", "grpo"] = "grpo"


@dataclass(frozen=True)
class TrainConfig:
    """One run: where it lives, and every stage's settings.

    Attributes:
        run_dir: folder of the run; refused when it was made with another configuration.
        train_seed: everything random but users and candidates (those are ``data.split_seed``).
        note: printed at the start and kept in the results (what this configuration is for, what it is not).
    """

    run_dir: str = "runs/quickstart"
    train_seed: int = 0
    note: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    prompts: PromptConfig = field(default_factory=PromptConfig)
    thoughts: ThoughtsConfig = field(default_factory=ThoughtsConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    rewards: RewardConfig = field(default_factory=RewardConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        _check(self.prompts.answer.top <= self.data.candidates, "prompts.answer.top",
               "<= data.candidates", self.prompts.answer.top)
        _check(not (self.grpo.start == "base" and self.grpo.reference == "sft"), "grpo.reference",
               "'base' when grpo.start is 'base'", self.grpo.reference, "there is no SFT adapter to compare with")


def as_plain(config: Any) -> Any:
    """A dataclass as JSON-ready dicts, lists and scalars (tuples become lists)."""
    return json.loads(json.dumps(asdict(config)))


def fingerprint(*parts: Any) -> str:
    """Sha256 of the canonical JSON of ``parts`` (plain values), as 64 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
