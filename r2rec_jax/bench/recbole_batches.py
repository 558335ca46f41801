"""One training batch of ours as RecBole reads it: the same questions, with its padding, ids and settings.

RecBole's item 0 is padding, so ids move up by one; the start token of sequences is one item more. Packed rows become a
padded row a window:

    ours       S 5 2 | S 7 | .          RecBole     7 6 3 .       S has id 7 where there are 6 items
    targets    5 2 9 | 7 1 | .          (ids + 1)   7 8 . .       asked at every place that is not padding
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2rec_jax.baselines.classical.caser import Caser, Instances
from r2rec_jax.baselines.classical.graph_model import GraphRecommender
from r2rec_jax.baselines.classical.pairs import Pairs
from r2rec_jax.baselines.classical.sequences import Rows, SequenceModel

PREFIXES = 2048
"""Questions of a batch under RecBole's own augmentation; its default ``train_batch_size``."""


@dataclass(frozen=True, eq=False)
class Work:
    """What RecBole's side is given.

    Attributes:
        model: class name in RecBole.
        n_users, n_items: padding included.
        settings: for RecBole's configuration.
        lr, weight_decay: of Adam.
        arrays: the batch by RecBole's field names; ``edge_users`` and ``edge_items`` are the graph; ``asked`` bool
            [W, T] marks the places with a target, whose states take the place of each row's last one.
        targets: how many positions or pairs the loss is a mean over.
        cells: tokens of the batch, padding included; 0 without sequences.
    """

    model: str
    n_users: int
    n_items: int
    settings: dict[str, Any]
    lr: float
    weight_decay: float
    arrays: dict[str, NDArray[Any]]
    targets: int
    cells: int = 0


def padded_windows(rows: Rows, length: int) -> dict[str, NDArray[Any]]:
    """A padded row a window, in the order of the packed rows.

    Args:
        rows: a packed batch.
        length: columns of the padded rows.

    Returns:
        ``item_id_list`` int64 [W, length], ``item_length`` int64 [W], ``asked`` bool [W, length], ``item_id`` int64
        [asked positions], the targets in row-major order of ``asked``.
    """
    target_of = np.full(rows.segments.size, -1, np.int64)
    count = int(rows.count)
    target_of[rows.places[:count]] = rows.targets[:count]
    target_of = target_of.reshape(rows.segments.shape)
    windows = [(b, np.flatnonzero(own == w)) for b, own in enumerate(rows.segments) for w in range(1, own.max() + 1)]
    items = np.zeros((len(windows), length), np.int64)
    targets = np.full((len(windows), length), -1, np.int64)
    for window, (row, columns) in enumerate(windows):
        items[window, :len(columns)] = rows.items[row, columns] + 1
        targets[window, :len(columns)] = target_of[row, columns]
    asked = targets >= 0
    return {"item_id_list": items, "item_length": (items > 0).sum(axis=1), "asked": asked,
            "item_id": targets[asked] + 1}


def prefixes(padded: dict[str, NDArray[Any]], count: int) -> dict[str, NDArray[Any]]:
    """RecBole's own form: each question a row of its own that ends where it is asked; ``count`` of them, drawn evenly.

    Example: the window ``7 6 3 .`` gives rows ``7 . . .``, ``7 6 . .`` and ``7 6 3 .``.
    """
    window, column = np.nonzero(padded["asked"])
    chosen = np.linspace(0, len(window) - 1, min(count, len(window))).astype(np.int64)
    lengths = column[chosen] + 1
    items = padded["item_id_list"][window[chosen]]
    return {"item_id_list": np.where(np.arange(items.shape[1]) < lengths[:, None], items, 0), "item_length": lengths,
            "item_id": padded["item_id"][chosen]}


def sequence_works(model: SequenceModel, batch: Rows) -> list[Work]:
    """SASRec or GRU4Rec twice: every place asked, and a row a question as RecBole trains."""
    config = model.config
    shared = {"loss_type": "CE", "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": config.max_events}
    if model.name == "sasrec":
        name = "SASRec"
        shared |= {"n_layers": config.layers, "n_heads": config.heads, "hidden_size": config.width,
                   "inner_size": config.feed_forward, "hidden_dropout_prob": config.dropout, "attn_dropout_prob": 0.0,
                   "hidden_act": "relu", "layer_norm_eps": 1e-5}
    else:
        name = "GRU4Rec"
        shared |= {"embedding_size": config.width, "hidden_size": config.hidden, "num_layers": config.layers,
                   "dropout_prob": config.dropout}
    padded = padded_windows(batch, config.max_events)
    return [Work(name, model.events.n_users + 1, model.events.n_items + 2, shared, config.lr, config.weight_decay,
                 arrays, len(arrays["item_id"]), arrays["item_id_list"].size)
            for arrays in (padded, prefixes(padded, PREFIXES))]


def caser_work(model: Caser, batch: Instances) -> Work:
    """Caser: one target a row on both sides; RecBole pads where ours has a learned filler."""
    config, count = model.config, int(batch.count)
    items = batch.items[:count].astype(np.int64)
    arrays = {"item_id_list": np.where(items == model.events.n_items, 0, items + 1),
              "user_id": batch.users[:count].astype(np.int64) + 1,
              "item_id": batch.targets[:count].astype(np.int64) + 1}
    settings = {"loss_type": "CE", "train_neg_sample_args": None, "MAX_ITEM_LIST_LENGTH": config.max_events,
                "embedding_size": config.width, "nh": config.horizontal, "nv": config.vertical,
                "dropout_prob": config.dropout, "reg_weight": 0.0}
    return Work("Caser", model.events.n_users + 1, model.events.n_items + 1, settings, config.lr, config.weight_decay,
                arrays, count, items.size)


def graph_work(model: GraphRecommender, batch: Pairs) -> Work:
    """A graph model; all pairs and edges are the same on both sides."""
    config, real = model.config, batch.weight > 0
    if config.loss != "bpr" or config.negatives != 1:
        raise ValueError("RecBole's graph models train by bpr with one negative; got "
                         f"{config.loss!r} and {config.negatives} negatives; leave {model.name}.loss as it is")
    edges = model.history
    plain = model.name == "graphsage"
    shift = 0 if plain else 1
    arrays = {"user_id": np.asarray(batch.user[real], np.int64) + shift,
              "item_id": np.asarray(batch.positive[real], np.int64) + shift,
              "neg_item_id": np.asarray(batch.negative[real, 0], np.int64) + shift,
              "edge_users": edges.user_idx.astype(np.int64) + shift,
              "edge_items": edges.items.astype(np.int64) + shift}
    if plain:
        name, settings = "GraphSAGE", {"dim": config.dim, "layers": config.layers, "l2": config.l2}
    elif model.name == "ngcf":
        name = "NGCF"
        settings = {"embedding_size": config.dim, "hidden_size_list": [config.dim] * config.layers,
                    "node_dropout": config.node_dropout, "message_dropout": config.message_dropout,
                    "reg_weight": config.l2}
    else:
        name = "LightGCN"
        settings = {"embedding_size": config.dim, "n_layers": config.layers, "reg_weight": config.l2,
                    "require_pow": True}
    return Work(name, model.events.n_users + shift, model.events.n_items + shift, settings, config.lr, 0.0,
                arrays, int(real.sum()))


def works_of(model: Any, batch: Any) -> list[Work]:
    """The works that a model's step is compared with: two for SASRec and GRU4Rec, one otherwise."""
    if isinstance(model, Caser):
        return [caser_work(model, batch)]
    if isinstance(model, GraphRecommender):
        return [graph_work(model, batch)]
    return sequence_works(model, batch)
