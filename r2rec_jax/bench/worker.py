"""One side of the benchmark in a process of its own: ``python -m r2rec_jax.bench.worker ours|pytorch``.

Reads one JSON request a line from standard input and answers each with one line. Processes of their own keep the
two sides' threads, allocators and peak memory apart.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from r2rec_jax.bench.presets import Preset, preset_named


def make_side(side: str, preset: Preset, folder: Path, cache_dir: str) -> Any:
    """The framework's side; importing it is what takes the time."""
    if side == "ours":
        from r2rec_jax.bench.ours import Ours

        return Ours(preset, folder, cache_dir)
    from r2rec_jax.bench.pytorch import PyTorch

    return PyTorch(preset, folder)


class Server:
    """Answers requests by a side's methods."""

    def __init__(self, side: Any, folder: Path) -> None:
        self.side, self.folder = side, folder
        self.works: dict[str, Any] = {}

    def answer(self, request: dict[str, Any]) -> Any:
        """What a request asks for; see :class:`r2rec_jax.bench.compare.Worker`."""
        op, name = request["op"], request.get("work", "")
        if op == "warm":
            self.works[name] = self.side.work(name)
            return self.side.compilation()
        if op == "step":
            return self.works[name].step()
        if op == "sampled":
            return self.side.sampled(self.folder / request["file"])
        if op == "scored":
            with np.load(self.folder / request["file"]) as drawn:
                return self.side.scored(drawn["tokens"]).tolist()
        return getattr(self.side, op)()


def main() -> None:
    """Serve until standard input ends."""
    side, preset, weights, folder, cache_dir = sys.argv[1:6]
    # Libraries print; only answers may reach the other end.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    server = Server(make_side(side, preset_named(preset, weights=weights), Path(folder), cache_dir), Path(folder))
    for line in sys.stdin:
        try:
            reply = {"value": server.answer(json.loads(line))}
        except Exception as error:  # told to the parent, which stops
            import traceback

            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
