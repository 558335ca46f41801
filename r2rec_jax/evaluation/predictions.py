"""What a system answered for one user, and the JSON Lines files that keep it.

One file per system, one line per answer, in the order in which the answers came. A file is the resume point of an
evaluation and the input of every paired test and breakdown, so a line holds all that a later reader may need: the
prompt, the raw output, what was understood, and where the target stood.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from r2rec_jax.evaluation.ranking import MISS
from r2rec_jax.files import write_text


@dataclass(frozen=True)
class Prediction:
    """One system's answer to one query.

    Attributes:
        system: name as in the result tables (``base``, ``sft``, ...).
        source: identity of what answered: a fingerprint of the checkpoint and of the settings that shape its answers.
        query_id: the frozen query.
        user_id: raw id of the user.
        prompt: the whole user message.
        output: the raw completion, end token removed.
        ranking: raw item ids in the order of the answer, first mentions only; may be incomplete or empty.
        target: raw item id of the target.
        candidates: raw item ids in the order of the prompt.
        target_title: the target as the prompt displays it.
        rank: 1-based rank of the target; :data:`~r2rec_jax.evaluation.ranking.MISS` when the answer is invalid.
        valid: the answer names at least one candidate.
        duplicates: repeated mentions that were dropped.
        outside: numbers or titles outside the candidates that were dropped.
        statements: reasoning statements inside ``<think>``.
        tokens: completion length in tokens, the end token included.
        truncated: the completion hit the length limit.
        copied_order: the answer repeats the order of the prompt.
        seconds: wall-clock seconds for this answer, its share of the batch, compilation not counted.
        answer: which of the query's answers, from 0; a file of a version that drew one has none.
        place: 1-based place of the target among all that the answer names, what is no candidate and repeats too; as
            many as there are candidates where it names the target not; 0 in a file of an earlier version.
    """

    system: str
    source: str
    query_id: str
    user_id: str
    prompt: str
    output: str
    ranking: tuple[str, ...]
    target: str
    candidates: tuple[str, ...]
    target_title: str
    rank: float
    valid: bool
    duplicates: int
    outside: int
    statements: int
    tokens: int
    truncated: bool
    copied_order: bool
    seconds: float
    answer: int = 0
    place: int = 0

    def to_json(self) -> str:
        """One line of JSON; an infinite rank is written as null."""
        plain = asdict(self)
        plain["rank"] = None if self.rank == MISS else int(self.rank)
        return json.dumps(plain, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> Prediction:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: the line is not JSON, or lacks or has extra fields.
        """
        plain: Any = json.loads(line)
        names = {f.name for f in fields(cls)}
        if not isinstance(plain, dict) or {*plain, "answer", "place"} != names:
            got = sorted(plain) if isinstance(plain, dict) else type(plain).__name__
            raise ValueError(f"a prediction must have the fields {sorted(names)}; got {got}")
        for name in ("ranking", "candidates"):
            plain[name] = tuple(plain[name])
        plain["rank"] = MISS if plain["rank"] is None else plain["rank"]
        return cls(**plain)


def read_predictions(path: str | Path) -> list[Prediction]:
    """All predictions of a file, in file order.

    A last line without its line break was torn by a kill and is left out.

    Raises:
        ValueError: a complete line cannot be read (names file and line), or an answer appears twice.
    """
    text = Path(path).read_bytes()
    complete = text[:text.rfind(b"\n") + 1]
    found: dict[tuple[str, int], Prediction] = {}
    for number, line in enumerate(complete.decode("utf-8").split("\n")[:-1], start=1):
        try:
            prediction = Prediction.from_json(line)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is no prediction ({error}); delete the file to evaluate "
                             "again") from None
        key = prediction.query_id, prediction.answer
        if key in found:
            raise ValueError(f"{path} must hold an answer once; line {number} repeats answer {key[1]} to {key[0]}")
        found[key] = prediction
    return list(found.values())


class PredictionLog:
    """A predictions file that grows as answers come, and survives a kill at any moment.

    Args:
        path: the JSON Lines file; made with its folder when absent.
        source: only predictions with this identity are kept; those of another checkpoint or other settings are
            dropped from the file, and counted in ``dropped``.
        answers: how many a query has. Of a query whose answers a kill has cut off none is kept.

    Attributes:
        done: the answers of every query that has all, in their order.
    """

    def __init__(self, path: str | Path, source: str, answers: int = 1) -> None:
        self.path, self.done = Path(path), dict[str, list[Prediction]]()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = read_predictions(self.path) if self.path.exists() else []
        self._add(p for p in found if p.source == source)
        self.dropped = sum(p.source != source for p in found)
        self.done = {query: own for query, own in self.done.items() if len(own) == answers}
        if self.path.exists():
            write_text(self.path, "".join(p.to_json() + "\n" for p in self.all()))

    def all(self) -> list[Prediction]:
        """Every answer that is kept, those of a query together."""
        return [p for own in self.done.values() for p in own]

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Add all answers of some queries; they are on disk when this returns."""
        new = list(predictions)
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(p.to_json() + "\n" for p in new)
            file.flush()
            os.fsync(file.fileno())
        self._add(new)

    def _add(self, predictions: Iterable[Prediction]) -> None:
        for p in predictions:
            self.done.setdefault(p.query_id, []).append(p)
