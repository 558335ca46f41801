"""What decides a stage's outcome: the settings it reads, as a fingerprint (its key) and as what is compared.

The key of a stage covers the keys of those that it builds on. Not every setting enters one: where something lies, how
often it is looked at, and in what order the same numbers are added up decide nothing, and what came when run folders
were in use enters only where it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r2rec_jax.config import TrainConfig, as_plain, fingerprint
from r2rec_jax.config.data import WITHOUT_EFFECT as DATA_PLACES
from r2rec_jax.config.endpoint import OPERATIONAL
from r2rec_jax.prompts.templates import TEMPLATE_VERSION
from r2rec_jax.stages.systems import trained_by

READS: dict[str, tuple[str, ...]] = {
    "prepare": ("data", "graph", "train_seed"),
    "thoughts": ("prompts", "thoughts", "backbone", "train_seed"),
    "pretrain": ("pretrain", "train_seed"),
    "sft": ("sft", "lora", "train_seed"),
    "grpo": ("grpo", "rewards", "lora", "train_seed"),
    "evaluate": ("evaluate", "train_seed"),
    "export": ("export", "grpo"),
}
"""Which settings each stage reads (those of the stages it builds on come through their keys)."""

BESIDES: dict[str, tuple[str, ...]] = {"thoughts": ("sft.thought_weight", "pretrain.mix.thoughts")}
"""Settings of other sections that a stage reads too, see :func:`besides`. They are compared, but enter no key, which
they did not when run folders came into use: what an earlier version has finished stays finished."""

_BUILDS_ON: dict[str, tuple[str, ...]] = {
    "prepare": (), "thoughts": ("prepare",), "pretrain": ("thoughts",), "sft": ("pretrain",),
}

LOOKS = ("eval_every", "eval_prompts")
WITHOUT_EFFECT = {"data": DATA_PLACES, "thoughts": ("store",), "thoughts.endpoint": OPERATIONAL, "sft": LOOKS,
                  "grpo": LOOKS}
"""Settings that say where something lies, how it is reached or how often it is looked at, not what it is: they do not
enter a key. See :func:`without_effect`."""

LATER: dict[str, Any] = {"sft.steps": None, "sft.keep": "last", "grpo.keep": "last", "pretrain.adapt": False,
                         "backbone.item_tokens": False,
                         "backbone.matmul_dtype": None, "grpo.uniform_groups": "keep", "rewards.true_weight": 0.0,
                         "pretrain.choices_as": "answer", "prompts.names": "title", "evaluate.answers": 1}
"""Settings that came when run folders were in use already, and the value that does what was done before. With it they
do not enter a key: what an earlier version has finished stays finished."""

ROUNDING = ("pretrain.checkpoint_every", "sft.checkpoint_every", "sft.log_every", "sft.micro_batch",
            "grpo.checkpoint_every", "grpo.micro_prompts", "backbone.attention", "backbone.remat")
"""Settings that say how often something is kept, or in what order the same numbers are added up. A run may go on under
others: keys, which have them, keep the values that its folder was made with."""

FIRST_TEXTS = "1"
"""The version of the texts that run folders have which name none."""


def builds_on(config: TrainConfig, stage: str) -> tuple[str, ...]:
    """The stages whose output a stage takes as input: GRPO only takes SFT's when it starts from it, and evaluation and
    export take those whose checkpoints they are asked for."""
    if stage == "grpo":
        return ("sft",) if config.grpo.start == "sft" else ("pretrain",)
    if stage == "evaluate":
        return tuple(dict.fromkeys(map(trained_by, config.evaluate.systems)))
    if stage == "export":
        return (trained_by(config.export.checkpoint),)
    return _BUILDS_ON[stage]


def without_effect(section: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of a section's settings that have no effect on an outcome: :data:`WITHOUT_EFFECT`, but looks decide where
    the best of what they saw is kept."""
    return () if values.get("keep", "last") != "last" else WITHOUT_EFFECT.get(section, ())


def read_settings(plain: dict[str, Any], stage: str, texts: str = TEMPLATE_VERSION) -> dict[str, Any]:
    """The settings a stage reads, as {dotted name: value}, without those that have no effect on the outcome.

    Args:
        plain: of :func:`~r2rec_jax.config.as_plain`.
        stage: which one.
        texts: version of the words of prompts and thoughts, which the ``thoughts`` stage writes down.
    """
    flat: dict[str, Any] = {"version of the texts": texts} if stage == "thoughts" and texts != FIRST_TEXTS else {}
    for section in READS[stage]:
        value = plain[section]
        if not isinstance(value, dict):
            flat[section] = value
            continue
        skip = without_effect(section, value)
        for name, inner in value.items():
            if f"{section}.{name}" in LATER and inner == LATER[f"{section}.{name}"]:
                continue
            if name in skip or (section == "thoughts" and name == "endpoint" and value["teacher"] != "endpoint"):
                continue
            inner_skip = WITHOUT_EFFECT.get(f"{section}.{name}", ())
            flat[f"{section}.{name}"] = ({k: v for k, v in inner.items() if k not in inner_skip}
                                         if isinstance(inner, dict) else inner)
    return flat


def besides(plain: dict[str, Any], stage: str) -> dict[str, Any]:
    """Those of :data:`BESIDES`, as {dotted name: value}; of the last, whether a tokenizer is trained on thoughts that
    are written for it alone."""
    found = {name: setting(plain, name) for name in BESIDES.get(stage, ())}
    if found:
        alone = plain["backbone"]["source"] == "tiny" and not rankings_or_sft_read_thoughts(plain)
        found["pretrain.mix.thoughts"] = bool(alone and found["pretrain.mix.thoughts"])
    return found


def rankings_or_sft_read_thoughts(plain: Mapping[str, Any]) -> bool:
    """Whether thoughts are read by more than pretraining: a ranking has those of chains it shows, SFT learns them
    where they have a weight."""
    prompts = plain["prompts"]
    return bool((prompts["chains"] and prompts["thoughts"] != "none") or plain["sft"]["thought_weight"])


def compared_settings(plain: dict[str, Any], stage: str, *texts: str) -> dict[str, Any]:
    """What tells two outcomes of a stage apart: :func:`read_settings`, whose arguments these are, without
    :func:`rounding`, and :func:`besides`."""
    read, skip = read_settings(plain, stage, *texts), rounding(plain)
    return {name: value for name, value in read.items() if name not in skip} | besides(plain, stage)


def rounding(plain: Mapping[str, Any]) -> dict[str, Any]:
    """:data:`ROUNDING`, as {dotted name: value}; the mean that ``bnpo`` takes is over ``micro_prompts`` prompts."""
    return {name: setting(plain, name) for name in ROUNDING
            if name != "grpo.micro_prompts" or plain["grpo"]["loss"] != "bnpo"}


def stage_key(config: TrainConfig, stage: str, first: Mapping[str, Any] | None = None) -> str:
    """Fingerprint of everything that decides a stage's outcome.

    Args:
        config: the settings.
        stage: which one.
        first: :func:`rounding` of another start, whose values take the place of these.
    """
    plain = as_plain(config)
    below, read = [stage_key(config, name, first) for name in builds_on(config, stage)], read_settings(plain, stage)
    replaced = {name: value for name, value in (first or {}).items() if name in read and name in rounding(plain)}
    return fingerprint(stage, read | replaced, below)


def made_with(record: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`rounding` of the start that made a run folder, from its run.json."""
    return record.get("made_with") or rounding(record["config"])


def setting(plain: Mapping[str, Any], name: str) -> Any:
    """A setting by its dotted name, whether or not a key has it; None where there is none."""
    value: Any = plain
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
