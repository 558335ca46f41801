"""Every setting of a run, as frozen dataclasses: one per stage, checked on construction.

The YAML files under ``configs/`` and the command line (``--sft.lr 1e-4``) both fill :class:`TrainConfig`
through jsonargparse. A value out of range raises ``ValueError`` with the invariant, the value and the fix.
Settings marked *paper* carry the value that the R2Rec paper states (section 4.1.2); those marked *reconstructed*
fill a gap that the paper leaves open.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from r2rec_jax.config.check import check, check_seed
from r2rec_jax.config.data import COUNTS, AnswerConfig, DataConfig, GraphConfig, PromptConfig, ThoughtsConfig
from r2rec_jax.config.endpoint import EndpointConfig
from r2rec_jax.config.model import BackboneConfig, LoraConfig, TinyConfig
from r2rec_jax.config.output import EvaluateConfig, ExportConfig
from r2rec_jax.config.parallel import ParallelConfig
from r2rec_jax.config.table import TableConfig
from r2rec_jax.config.training import GrpoConfig, MixConfig, PretrainConfig, RewardConfig, RewardFunction, SftConfig

__all__ = [
    "STAGES",
    "AnswerConfig",
    "BackboneConfig",
    "DataConfig",
    "EndpointConfig",
    "EvaluateConfig",
    "ExportConfig",
    "GraphConfig",
    "GrpoConfig",
    "LoraConfig",
    "MixConfig",
    "ParallelConfig",
    "PretrainConfig",
    "PromptConfig",
    "RewardConfig",
    "RewardFunction",
    "SftConfig",
    "TableConfig",
    "ThoughtsConfig",
    "TinyConfig",
    "TrainConfig",
    "as_plain",
    "fingerprint",
]

STAGES = ("prepare", "thoughts", "pretrain", "sft", "grpo", "evaluate", "export")
"""The stages of a run, in order. ``pretrain`` has something to do for ``tiny`` and with ``pretrain.adapt``."""


@dataclass(frozen=True)
class TrainConfig:
    """One run: where it lives, and every stage's settings.

    Attributes:
        run_dir: folder of the run; refused when it was made with another configuration.
        train_seed: everything random but users and candidates (those are ``data.split_seed``).
        note: printed at the start and kept in the results (what this configuration is for, what it is not).
        parallel: devices and processes; the only section that no result depends on.
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
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        check_seed("train_seed", self.train_seed)
        for name, value in dotted(asdict(self)).items():
            check(not isinstance(value, float) or math.isfinite(value), name, "a finite number", value,
                  "result files are JSON, which has no other")
        check(self.prompts.answer.top <= self.data.candidates, "prompts.answer.top",
               "<= data.candidates", self.prompts.answer.top)
        check(self.evaluate.split != "validation" or self.data.validation_users >= 1, "data.validation_users",
               ">= 1 when evaluate.split is 'validation'", self.data.validation_users)
        check(self.prompts.chains or self.prompts.thoughts != "prompt", "prompts.thoughts",
               "completion or none when prompts.chains is false", self.prompts.thoughts,
               "a prompt shows thoughts with its chains, and a teacher would write them for nothing")
        check(not (self.grpo.start == "base" and self.grpo.reference == "sft"), "grpo.reference",
               "'base' when grpo.start is 'base'", self.grpo.reference, "there is no SFT adapter to compare with")
        check(not (self.backbone.source == "tiny" and self.pretrain.adapt), "pretrain.adapt",
               "false with backbone.source 'tiny'", self.pretrain.adapt, "it is trained from scratch anyway")
        check(self.pretrain.adapt or not self.backbone.item_tokens, "backbone.item_tokens",
               "false without pretrain.adapt", self.backbone.item_tokens,
               "tiny has backbone.tiny.item_tokens" if self.backbone.source == "tiny" else "new tokens must be learned")
        check(self.thoughts.teacher == "template" or not self.rewards.true_weight, "rewards.true_weight",
               "0 unless thoughts.teacher is 'template'", self.rewards.true_weight,
               "statements in other words cannot be checked")
        check(not self.graph.before_target or self.data.has_times, "graph.before_target",
               "false for a table without data.table.timestamp", self.graph.before_target,
               "rows of a file do not say which of two users' events is older")

    def check_users(self, split: str) -> None:
        """Make sure, before hours of training, that as many queries are drawn as are to be evaluated.

        Raises:
            ValueError: the split has fewer.
        """
        count = COUNTS[split]
        drawn = getattr(self.data, count)
        check(drawn >= 1, f"data.{count}", f">= 1 to evaluate {split} queries", drawn)
        check((self.evaluate.users or 1) <= drawn, "evaluate.users", f"<= data.{count}, {drawn}", self.evaluate.users)

    def check_positions(self, positions: int | None = None) -> None:
        """Make sure, before hours of training, that completions leave room for a prompt, however short.

        Args:
            positions: of the backbone, in tokens; None takes those of ``tiny``. Others have to be loaded first.

        Raises:
            ValueError: those of a stage do not.
        """
        if positions is None:
            if self.backbone.source != "tiny":
                return
            positions = self.backbone.tiny.max_positions
        limits = {"grpo": self.grpo.max_new_tokens}
        if self.evaluate.method == "generate":
            limits["evaluate"] = self.evaluate.max_new_tokens
        for stage, limit in limits.items():
            check(limit < positions, f"{stage}.max_new_tokens", f"< {positions}, the backbone's positions", limit,
                  "prompt and completion must fit them")

    @property
    def trains_backbone(self) -> bool:
        """Whether the backbone is of the run's own pretraining: ``tiny``, or a pretrained one that is adapted."""
        return self.backbone.source == "tiny" or self.pretrain.adapt


def as_plain(config: Any) -> Any:
    """A dataclass as JSON-ready dicts, lists and scalars (tuples become lists)."""
    return json.loads(json.dumps(asdict(config)))


def dotted(plain: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted name: value}.

    Example: ``{"a": {"b": 1, "c": {}}}`` gives ``{"a.b": 1, "a.c": {}}``.
    """
    if not isinstance(plain, Mapping) or not plain:
        return {name: plain}
    return {key: value for part, inner in plain.items()
            for key, value in dotted(inner, f"{name}.{part}" if name else str(part)).items()}


def fingerprint(*parts: Any) -> str:
    """Sha256 of the canonical JSON of ``parts`` (plain values), as 64 hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
