"""R_rank (Eq. 6): how high the true item stands in the answer; 0 when the answer does not list it.

What stands before the true item is counted by ``rewards.rank_places``.

    log: 1 / log2(rank + 1)        reciprocal: 1 / rank        linear: 1 - (rank - 1) / N
"""

from __future__ import annotations

import math
from typing import Literal

RankForm = Literal["log", "reciprocal", "linear"]


def rank_reward(rank: int | None, n_candidates: int, form: RankForm = "log") -> float:
    """R_rank of a 1-based rank, None for a true item that is absent or an answer that cannot be read.

    Raises:
        ValueError: the rank is outside 1..n_candidates, or the form is unknown.

    Example:
        >>> [round(rank_reward(rank, 20), 3) for rank in (1, 2, 3, None)]
        [1.0, 0.631, 0.5, 0.0]
    """
    if rank is None:
        return 0.0
    if not 1 <= rank <= n_candidates:
        raise ValueError(f"rank must be in 1..{n_candidates}; got {rank}")
    if form == "log":
        return 1.0 / math.log2(rank + 1)
    if form == "reciprocal":
        return 1.0 / rank
    if form == "linear":
        return 1.0 - (rank - 1) / n_candidates
    raise ValueError(f"rewards.rank_form must be log, reciprocal or linear; got {form!r}")
