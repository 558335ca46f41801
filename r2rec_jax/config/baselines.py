"""Settings of the baselines: one frozen dataclass a model.

Values were chosen on validation queries; where a paper gives one, the docstring says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from r2rec_jax.config.check import check


@dataclass(frozen=True)
class PopularityConfig:
    """Popularity.

    Attributes:
        events: what counts: ``liked`` training edges, or ``all`` of them.
    """

    events: Literal["liked", "all"] = "liked"


@dataclass(frozen=True)
class ItemKNNConfig:
    """Item-based nearest neighbours with cosine similarity.

    Attributes:
        events: which training edges and which history: ``liked`` or ``all``.
        neighbours: how many of the most similar items each item keeps; null keeps all.
        shrinkage: added to the denominator of the cosine, so that similarities from few users count less.
        normalize: divide an item's score by the sum of its kept similarities.
    """

    events: Literal["liked", "all"] = "liked"
    neighbours: int | None = 50
    shrinkage: float = 10.0
    normalize: bool = False

    def __post_init__(self) -> None:
        check(self.neighbours is None or self.neighbours >= 1, "item_knn.neighbours", ">= 1 or null", self.neighbours)
        check(self.shrinkage >= 0, "item_knn.shrinkage", ">= 0", self.shrinkage)


@dataclass(frozen=True)
class EASEConfig:
    """EASE (Steck 2019).

    Attributes:
        events: which training edges and which history: ``liked`` or ``all``.
        l2: weight of the squared norm (lambda); 500 is the *paper's* for MovieLens-20M.
        max_items: larger catalogues are refused; the solution takes about 24 bytes a pair of items.
    """

    events: Literal["liked", "all"] = "liked"
    l2: float = 500.0
    max_items: int = 25_000

    def __post_init__(self) -> None:
        check(self.l2 > 0, "ease.l2", "> 0", self.l2, "the Gram matrix of sparse data has no inverse")


@dataclass(frozen=True)
class GraphModelConfig:
    """What LightGCN, NGCF and GraphSAGE share.

    Attributes:
        events: which training edges make the graph and the positive pairs: ``liked`` or ``all``.
        dim: width of the embeddings.
        layers: steps of message passing.
        loss: ``bpr``, or ``sampled_softmax`` over uniform negatives that a batch shares.
        negatives: negatives of each pair (``bpr``) or of each batch (``sampled_softmax``; the catalogue at most).
        batch_size: pairs an update. The whole graph is propagated in every update, so small batches are slow epochs;
            2,048 and 8,192 reach the same validation value on MovieLens-100K, the latter at twice the ``lr``.
        lr: Adam's; larger than in the papers because batches are.
        l2: weight of half the squared norms of the embeddings in a batch, and of the weight matrices.
        init_std: standard deviation of fresh embeddings.
        epochs: most passes over the data.
        patience: epochs without a better validation value, after which training stops.
    """

    events: Literal["liked", "all"] = "liked"
    dim: int = 64
    layers: int = 3
    loss: Literal["bpr", "sampled_softmax"] = "bpr"
    negatives: int = 1
    batch_size: int = 8192
    lr: float = 2e-2
    l2: float = 1e-4
    init_std: float = 0.1
    epochs: int = 200
    patience: int = 20

    def __post_init__(self) -> None:
        name = type(self).__name__.removesuffix("Config").lower()
        for field in ("dim", "layers", "negatives", "batch_size", "epochs", "patience"):
            check(getattr(self, field) >= 1, f"{name}.{field}", ">= 1", getattr(self, field))
        for field in ("lr", "init_std"):
            check(getattr(self, field) > 0, f"{name}.{field}", "> 0", getattr(self, field))
        check(self.l2 >= 0, f"{name}.l2", ">= 0", self.l2)


@dataclass(frozen=True)
class LightGCNConfig(GraphModelConfig):
    """LightGCN (He et al. 2020); 64-d, 3 layers, l2 1e-4 are the paper's."""


@dataclass(frozen=True)
class NGCFConfig(GraphModelConfig):
    """NGCF (Wang et al. 2019); 64-d, 3 layers, message dropout 0.1 and no node dropout are the paper's.

    Attributes:
        message_dropout: share of the entries of a layer's rows that are dropped in training, in steps of 1/256.
        node_dropout: share of the nodes that send nothing to a layer in training, in steps of 1/256.
        normalize: divide the rows of each layer by their length in the concatenation (the authors' program does).
    """

    lr: float = 1e-2
    epochs: int = 150
    message_dropout: float = 0.1
    node_dropout: float = 0.0
    normalize: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("message_dropout", "node_dropout"):
            check(0 <= getattr(self, field) < 1, f"ngcf.{field}", "in [0, 1)", getattr(self, field))


@dataclass(frozen=True)
class GraphSAGEConfig(GraphModelConfig):
    """GraphSAGE (Hamilton et al. 2017) with the mean aggregator; 2 layers are the paper's.

    Attributes:
        normalize: divide the rows of every layer by their length (Algorithm 1, line 7).
    """

    layers: int = 2
    lr: float = 5e-3
    l2: float = 1e-5
    normalize: bool = False


@dataclass(frozen=True)
class SASRecConfig:
    """SASRec (Kang and McAuley 2018).

    Attributes:
        events: what a history holds: ``liked`` events or ``all``; only likes are predicted.
        max_events: longest history (*paper*: 200); also the length of a packed row.
        width: of the embeddings, D.
        layers: attention blocks (*paper*: 2).
        heads: attention heads (*paper*: 1).
        feed_forward: inner width of the point-wise layers.
        dropout: rate on the embeddings and both branches of a block (*paper*: 0.2 on MovieLens-1M), in steps of 1/256.
        batch_size: packed rows an update.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        epochs: most passes over the data.
        patience: epochs without a better validation value, after which training stops.
    """

    events: Literal["liked", "all"] = "liked"
    max_events: int = 200
    width: int = 64
    layers: int = 2
    heads: int = 1
    feed_forward: int = 128
    dropout: float = 0.2
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.0
    epochs: int = 60
    patience: int = 6

    def __post_init__(self) -> None:
        check_sequential("sasrec", self)
        for name in ("layers", "heads", "feed_forward"):
            check(getattr(self, name) >= 1, f"sasrec.{name}", ">= 1", getattr(self, name))
        check(self.width % self.heads == 0, "sasrec.width", "a multiple of sasrec.heads", self.width)


@dataclass(frozen=True)
class GRU4RecConfig:
    """GRU4Rec (Hidasi et al. 2016).

    Attributes:
        events: what a history holds: ``liked`` events or ``all``; only likes are predicted.
        max_events: longest history; also the length of a packed row.
        width: of the embeddings, D.
        hidden: width of the recurrent state.
        layers: recurrent layers (*paper*: 1).
        dropout: rate on the embeddings and on each layer's states, in steps of 1/256.
        batch_size: packed rows an update.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        epochs: most passes over the data.
        patience: epochs without a better validation value, after which training stops.
    """

    events: Literal["liked", "all"] = "liked"
    max_events: int = 200
    width: int = 64
    hidden: int = 128
    layers: int = 1
    dropout: float = 0.2
    batch_size: int = 32
    lr: float = 2e-3
    weight_decay: float = 0.0
    epochs: int = 60
    patience: int = 6

    def __post_init__(self) -> None:
        check_sequential("gru4rec", self)
        for name in ("hidden", "layers"):
            check(getattr(self, name) >= 1, f"gru4rec.{name}", ">= 1", getattr(self, name))


@dataclass(frozen=True)
class CaserConfig:
    """Caser (Tang and Wang 2018).

    Attributes:
        events: what a window holds: ``liked`` events or ``all``; only likes are predicted.
        max_events: events in a window, L (*paper*: 5 on MovieLens).
        width: of the item and user embeddings, D (*paper*: 50).
        horizontal: horizontal filters of each height (*paper*: 16).
        vertical: vertical filters (*paper*: 4).
        dropout: rate before the fully connected layer (*paper*: 0.5), in steps of 1/256.
        batch_size: windows an update.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        epochs: most passes over the data.
        patience: epochs without a better validation value, after which training stops.
    """

    events: Literal["liked", "all"] = "liked"
    max_events: int = 5
    width: int = 64
    horizontal: int = 16
    vertical: int = 4
    dropout: float = 0.5
    batch_size: int = 2048
    lr: float = 1e-3
    weight_decay: float = 1e-3
    epochs: int = 60
    patience: int = 5

    def __post_init__(self) -> None:
        check_sequential("caser", self)
        for name in ("horizontal", "vertical"):
            check(getattr(self, name) >= 1, f"caser.{name}", ">= 1", getattr(self, name))


def check_sequential(name: str, config: SASRecConfig | GRU4RecConfig | CaserConfig) -> None:
    """The ranges that the sequential models share."""
    for field in ("max_events", "width", "batch_size", "epochs", "patience"):
        check(getattr(config, field) >= 1, f"{name}.{field}", ">= 1", getattr(config, field))
    check(0 <= config.dropout < 1, f"{name}.dropout", "in [0, 1)", config.dropout)
    check(config.lr > 0, f"{name}.lr", "> 0", config.lr)
    check(config.weight_decay >= 0, f"{name}.weight_decay", ">= 0", config.weight_decay)
