"""The figures that the R2Rec paper prints: Table 1 (all systems) and Table 2 (ablations).

Data sets in the order MovieLens (1M), Amazon Book, Amazon Electronics; HitRatio@1, HitRatio@3 and NDCG@3 of each, with
the names that our result rows use. The paper's protocol (section 4.1): 19 uniform negatives, the last positive as the
target, 1,000 users, three runs averaged.

Not every cell can be what its heading says: with one relevant item, NDCG@3 is bound by the two hit ratios
(:func:`~r2rec_jax.evaluation.ranking.ndcg3_range`), and 13 of the 36 cells of Table 1 lie outside by more than the
printed digits explain. :func:`breaks_the_law` finds them.
"""

from __future__ import annotations

from dataclasses import dataclass

from r2rec_jax.evaluation.ranking import ndcg3_range

DATASETS = {"ml-1m": "MovieLens", "amazon-books": "Amazon Book", "amazon-electronics": "Amazon Electronics"}
"""Data sets of the paper: our name -> the paper's."""

NEGATIVES, SPLIT, USERS, RUNS = "uniform", "last-positive", 1000, 3

GROUPS: dict[str, tuple[str, ...]] = {
    "Classical": ("popularity", "item-knn", "ease", "graphsage", "ngcf", "lightgcn", "gru4rec", "caser", "sasrec"),
    "LLM-based": ("gpt-4o-mini", "o4-mini", "chatrec", "tallrec", "llara"),
    "R2Rec": ("base", "pretrained", "sft", "grpo", "sft+grpo"),
}
"""The blocks of Table 1, and the systems of result files that stand in each, in the order of our tables."""

PRINTED_UNIT = 0.001
"""The last digit that the paper prints."""


@dataclass(frozen=True)
class PaperRow:
    """One line of a table of the paper.

    Attributes:
        group: the block it stands in.
        name: as the paper prints it.
        system: our name for it.
        cells: one triple (HitRatio@1, HitRatio@3, NDCG@3) a data set, in the order of :data:`DATASETS`.
        prompt: what the prompts of our system must show to correspond, as ``SystemRun.prompt`` of
            :mod:`r2rec_jax.evaluation.comparison` says it; None where it does not matter.
    """

    group: str
    name: str
    system: str
    cells: tuple[tuple[float, float, float], ...]
    prompt: str | None = None

    def cell(self, dataset: str) -> tuple[float, float, float] | None:
        """The triple of one of our data sets; None where the paper has none."""
        return dict(zip(DATASETS, self.cells, strict=True)).get(dataset)


TABLE_1 = (
    PaperRow("Classical", "GraphSage", "graphsage",
             ((0.313, 0.491, 0.461), (0.321, 0.502, 0.465), (0.318, 0.516, 0.443))),
    PaperRow("Classical", "NGCF", "ngcf", ((0.358, 0.512, 0.472), (0.455, 0.521, 0.497), (0.372, 0.524, 0.451))),
    PaperRow("Classical", "LightGCN", "lightgcn",
             ((0.276, 0.491, 0.435), (0.362, 0.537, 0.465), (0.379, 0.563, 0.487))),
    PaperRow("Classical", "GRU4Rec", "gru4rec",
             ((0.376, 0.504, 0.452), (0.495, 0.572, 0.527), (0.386, 0.521, 0.498))),
    PaperRow("Classical", "Caser", "caser", ((0.319, 0.496, 0.421), (0.422, 0.631, 0.544), (0.385, 0.518, 0.496))),
    PaperRow("Classical", "SASRec", "sasrec", ((0.380, 0.510, 0.452), (0.531, 0.592, 0.544), (0.391, 0.514, 0.453))),
    PaperRow("LLM-based", "GPT-4o-mini", "gpt-4o-mini",
             ((0.240, 0.374, 0.317), (0.344, 0.502, 0.436), (0.222, 0.318, 0.276))),
    PaperRow("LLM-based", "o4-mini", "o4-mini",
             ((0.274, 0.419, 0.357), (0.466, 0.596, 0.541), (0.282, 0.372, 0.335))),
    PaperRow("LLM-based", "ChatRec", "chatrec",
             ((0.230, 0.340, 0.293), (0.304, 0.408, 0.362), (0.258, 0.370, 0.315))),
    PaperRow("LLM-based", "TallRec", "tallrec",
             ((0.318, 0.442, 0.401), (0.412, 0.478, 0.421), (0.342, 0.432, 0.368))),
    PaperRow("LLM-based", "LLaRA", "llara", ((0.371, 0.473, 0.454), (0.528, 0.583, 0.556), (0.403, 0.526, 0.491))),
    PaperRow("R2Rec", "R2Rec", "sft+grpo",
             ((0.404, 0.544, 0.484), (0.586, 0.656, 0.627), (0.460, 0.596, 0.538))),
)

TABLE_2 = (
    PaperRow("Prompt", "Full", "base", ((0.230, 0.381, 0.317), (0.366, 0.494, 0.440), (0.192, 0.326, 0.268)),
             "chains and thoughts"),
    PaperRow("Prompt", "w/o Reasoning Chain", "base",
             ((0.186, 0.327, 0.267), (0.278, 0.420, 0.361), (0.172, 0.256, 0.219)), "chains"),
    PaperRow("Prompt", "w/o Interaction Chain", "base",
             ((0.156, 0.299, 0.237), (0.160, 0.324, 0.255), (0.072, 0.156, 0.118)), "no chains"),
    PaperRow("Training Stage", "Full", "sft+grpo",
             ((0.404, 0.544, 0.484), (0.586, 0.656, 0.627), (0.460, 0.596, 0.538))),
    PaperRow("Training Stage", "w/o RL", "sft", ((0.320, 0.453, 0.397), (0.528, 0.608, 0.574), (0.436, 0.490, 0.467))),
    PaperRow("Training Stage", "w/o SFT", "grpo",
             ((0.156, 0.270, 0.221), (0.248, 0.340, 0.300), (0.112, 0.158, 0.139))),
)


def group_of(system: str) -> str:
    """The block of Table 1 that a system belongs to; ``Other`` for one that no result file of ours is known to name."""
    return next((group for group, names in GROUPS.items() if system in names), "Other")


def table_order(system: str) -> tuple[int, int]:
    """Sort key of systems: by block, then as in :data:`GROUPS`."""
    for place, names in enumerate(GROUPS.values()):
        if system in names:
            return place, names.index(system)
    return len(GROUPS), 0


def breaks_the_law(hr1: float, hr3: float, ndcg3: float, unit: float = PRINTED_UNIT) -> bool:
    """Whether a printed triple can come from no list of ranks, rounding allowed for.

    Each printed figure may be off by half a ``unit``. The bounds on NDCG@3 are sums of the hit ratios with weights
    that add up to 1, so rounding moves them by half a unit at most, and NDCG@3 itself by another half.

    Example:
        >>> breaks_the_law(0.404, 0.544, 0.484)   # R2Rec on MovieLens: 0.474 to 0.492
        False
        >>> breaks_the_law(0.313, 0.491, 0.461)   # GraphSage on MovieLens: 0.402 to 0.425
        True
    """
    low, high = ndcg3_range(hr1, hr3)
    slack = unit + 1e-9
    return not low - slack <= ndcg3 <= high + slack
