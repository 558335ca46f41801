"""A list of experiments: what ``python -m r2rec_jax.experiments LIST.yaml`` runs, evaluates and reports.

    name: tiny
    title: A model from scratch
    what: What is done and why, in a few sentences.
    config: configs/evidence/tiny.base.yaml
    seeds: [0, 1, 2]
    baselines: [popularity, item-knn, ease, sasrec]
    experiments:
      - {name: main, why: the recipe, systems: [pretrained, sft, sft+grpo], likelihood: true,
         diagnostics: [swapped, none], headline: true}
      - {name: no-sft, why: rewards alone, systems: [grpo], set: {grpo.start: base, grpo.reference: base},
         reuse: [main], headline: true}
      - {name: lr-1e-4, why: a search, systems: [sft+grpo], set: {grpo.lr: 1.0e-4, evaluate.users: 200},
         reuse: [main], split: validation, seeds: [0]}
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from r2rec_jax.config.check import check

BASELINES = "baselines"
"""What ``--only`` calls the classical models of a list; no experiment may have this name."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


@dataclass(frozen=True)
class Experiment:
    """One variant of the recipe, trained and judged with every seed.

    Attributes:
        name: of its folder, and in tables.
        why: one line: what it is to show.
        set: settings that differ from the list's configuration, by dotted name (``grpo.lr: 1.0e-4``).
        systems: what is evaluated, and so what is trained; the last one is the final system, whose chains are swapped
            and whose completions are kept to be read.
        likelihood: also rank candidates by likelihood under every system (``evaluate.likelihood`` says how).
        diagnostics: also evaluate the final system with other users' chains, or without chains.
        reuse: experiments whose finished stages are taken where they are the same.
        headline: it stands in the main table and in the tests.
        split: whose queries; a search is judged on ``validation``.
        against: the experiment that its systems are tested against; null is the main table, and for a search the first
            one that names none and has the same system.
        seeds: its own; null takes the list's.
    """

    name: str
    why: str = ""
    set: Mapping[str, Any] = field(default_factory=dict)
    systems: Sequence[Literal["base", "pretrained", "sft", "grpo", "sft+grpo"]] = ("base", "sft", "sft+grpo")
    likelihood: bool = False
    diagnostics: Sequence[Literal["swapped", "none"]] = ()
    reuse: Sequence[str] = ()
    headline: bool = False
    split: Literal["test", "validation"] = "test"
    against: str | None = None
    seeds: Sequence[int] | None = None

    def __post_init__(self) -> None:
        check(bool(_NAME.fullmatch(self.name)) and self.name != BASELINES, "experiments.name",
              f"letters, digits and . _ + -, and not {BASELINES!r}", self.name)
        where = f"experiment {self.name}: "
        check(bool(self.systems) and len(set(self.systems)) == len(self.systems), where + "systems",
              "distinct and at least one", list(self.systems))
        check(not self.headline or self.split == "test", where + "split", "test for a headline", self.split,
              "validation queries are for choosing")
        check(not self.headline or self.against is None, where + "against", "null for a headline", self.against,
              "the main table has tests of its own")

    @property
    def changes_grpo_alone(self) -> bool:
        """Whether SFT, and all that is before it, is that of the list's configuration."""
        return {name.partition(".")[0] for name in self.set} <= {"grpo", "rewards"}


@dataclass(frozen=True)
class ExperimentList:
    """Experiments on one configuration, with the classical models beside them.

    Attributes:
        name: of the result files, ``results/evidence_<name>.json``.
        title: heading of the report.
        what: a few sentences on what is done, for readers who know nothing of it.
        config: YAML of the configuration that all experiments start from.
        root: folder of all runs; null is ``runs/evidence/<name>``.
        set: settings of all experiments that differ from the configuration.
        seeds: each is ``train_seed`` and ``data.split_seed`` of its own run.
        split_seed: one draw of users and candidates for all seeds; null takes each seed's own.
        baselines: classical models that are judged on the same candidates.
        baselines_out: folder of those models, which lists may share; null is ``<root>/baselines``.
        experiments: in the order in which they run.
    """

    name: str
    title: str
    what: str
    config: str
    experiments: Sequence[Experiment]
    root: str | None = None
    set: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = (0, 1, 2)
    split_seed: int | None = None
    baselines: Sequence[str] = ("popularity",)
    baselines_out: str | None = None

    def __post_init__(self) -> None:
        check(bool(_NAME.fullmatch(self.name)), "name", "letters, digits and . _ + -", self.name)
        names = [experiment.name for experiment in self.experiments]
        check(bool(names) and len(set(names)) == len(names), "experiments", "distinct and at least one", names)
        for experiment in self.experiments:
            unknown = sorted(set(experiment.reuse) - set(names))
            check(not unknown, f"experiment {experiment.name}: reuse", "names of the list", unknown)
            others = {e.name for e in self.experiments if e.split == experiment.split} - {experiment.name}
            check(experiment.against in {None, *others}, f"experiment {experiment.name}: against",
                  "another one of the list with the same split", experiment.against)
        for owner, seeds in (("seeds", self.seeds), *((f"experiment {e.name}: seeds", e.seeds)
                                                      for e in self.experiments if e.seeds is not None)):
            check(bool(seeds) and len(set(seeds)) == len(seeds), owner, "distinct and at least one", list(seeds))
