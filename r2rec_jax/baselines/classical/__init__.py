"""The classical recommenders of the paper's Table 1, and three closed-form ones that are the floor to beat.

    popularity, item-knn, ease          closed form
    sasrec, gru4rec, caser              sequential
    lightgcn, ngcf, graphsage           on the bipartite graph

A model's module is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from r2rec_jax.baselines.events import Events
from r2rec_jax.baselines.model import Recommender
from r2rec_jax.config import baselines as settings

_PACKAGE = "r2rec_jax.baselines.classical"


@dataclass(frozen=True)
class Entry:
    """Where a model and its settings are defined: ``module`` under this package, class names."""

    module: str
    model: str
    config: str


REGISTRY: dict[str, Entry] = {
    "popularity": Entry("popularity", "Popularity", "PopularityConfig"),
    "item-knn": Entry("item_knn", "ItemKNN", "ItemKNNConfig"),
    "ease": Entry("ease", "EASE", "EASEConfig"),
    "sasrec": Entry("sasrec", "SASRec", "SASRecConfig"),
    "gru4rec": Entry("gru4rec", "GRU4Rec", "GRU4RecConfig"),
    "caser": Entry("caser", "Caser", "CaserConfig"),
    "lightgcn": Entry("lightgcn", "LightGCN", "LightGCNConfig"),
    "ngcf": Entry("ngcf", "NGCF", "NGCFConfig"),
    "graphsage": Entry("graphsage", "GraphSAGE", "GraphSAGEConfig"),
}
"""Model name -> where it is."""

NAMES = tuple(REGISTRY)


def check_names(names: Sequence[str], what: str) -> None:
    """Make sure that names are of models, each once.

    Args:
        names: as asked for.
        what: how they were asked for, the refusal begins with it.

    Raises:
        ValueError: an unknown or a repeated name, or none.
    """
    if not names or len(set(names)) != len(names) or not set(names) <= set(NAMES):
        raise ValueError(f"{what} must be distinct names among {', '.join(NAMES)}; got "
                         f"{', '.join(map(str, names)) or 'none'}")


def _entry(name: str) -> Entry:
    if name not in REGISTRY:
        raise ValueError(f"a model must be one of {', '.join(NAMES)}; got {name!r}")
    return REGISTRY[name]


def config_class(name: str) -> type[Any]:
    """The dataclass of a model's settings.

    Raises:
        ValueError: no such model.
    """
    return getattr(settings, _entry(name).config)


def model_class(name: str) -> type[Any]:
    """The class of a model.

    Raises:
        ValueError: no such model.
    """
    entry = _entry(name)
    return getattr(import_module(f"{_PACKAGE}.{entry.module}"), entry.model)


def make_model(name: str, config: Any, events: Events) -> Recommender:
    """A model over training events, with the settings given (None takes the defaults).

    Raises:
        ValueError: no such model.
    """
    return model_class(name)(config_class(name)() if config is None else config, events)
