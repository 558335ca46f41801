"""Run both sides in alternation and turn their seconds into rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from r2rec_jax.bench.counts import Size, decode_bytes, sft_flops
from r2rec_jax.bench.inputs import sft_data
from r2rec_jax.bench.presets import Preset
from r2rec_jax.bench.timing import median, spread
from r2rec_jax.progress import say

Side = Literal["ours", "pytorch"]
SIDES: tuple[Side, Side] = ("ours", "pytorch")
Samples = Mapping[Side, Sequence[Mapping[str, float]]]


class Worker:
    """A side in a process of its own (``bench.worker``); end it by leaving the ``with`` block."""

    def __init__(self, side: Side, preset: Preset, folder: Path, cache_dir: str) -> None:
        self.side = side
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "HF_HUB_OFFLINE": "1",
                                    "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore",
                                    "PYTORCH_ALLOC_CONF": "expandable_segments:True"}  # room that is freed can be used
        self._process = subprocess.Popen(
            [sys.executable, "-m", "r2rec_jax.bench.worker", side, preset.name, preset.backbone, str(folder),
             str(Path(cache_dir).expanduser())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, op: str, **more: Any) -> Any:
        """One request, answered: ``warm`` and ``step`` a work, ``load``, ``memory``, ``peaks``, ``kind``, ``export``,
        ``sampled``, ``scored``, ``sft_loss``.

        Raises:
            RuntimeError: the side failed, with its reason.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": op, **more}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the {self.side} worker died in {op}; its last words are above")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"the {self.side} side failed in {op}: {reply['error']}")
        return reply["value"]


@dataclass(frozen=True)
class Measured:
    """What was measured of one work.

    Attributes:
        rows: result rows.
        notes: further facts by side: compile seconds, peaks, peak memory.
    """

    rows: list[dict[str, Any]]
    notes: dict[str, Any]


def measure(work: str, preset: Preset, folder: Path, cache_dir: str) -> Measured:
    """One work, both sides in fresh processes, in alternation."""
    if work == "load":
        return _measure_load(preset, folder, cache_dir)
    with Worker("ours", preset, folder, cache_dir) as ours, Worker("pytorch", preset, folder, cache_dir) as theirs:
        workers: dict[Side, Worker] = {"ours": ours, "pytorch": theirs}
        if work == "numerics":
            return Measured(_numerics(preset, workers, folder), {})
        notes: dict[str, Any] = {"warm": {}}
        for side in SIDES[::-1]:  # PyTorch first: its sizes are tried while an accelerator's memory is its own
            notes["warm"][side] = workers[side].ask("warm", work=work)
        samples: dict[Side, list[dict[str, float]]] = {"ours": [], "pytorch": []}
        for repeat in range(preset.repeats):
            for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
                samples[side].append(workers[side].ask("step", work=work))
                say(f"{work} {repeat + 1}/{preset.repeats} {side}: "
                    + ", ".join(f"{k} {v:.3f}" for k, v in samples[side][-1].items()))
        notes["memory"] = {side: workers[side].ask("memory") for side in SIDES}
        if work in ("rollout", "sft"):
            notes["peaks"] = {side: workers[side].ask("peaks") for side in SIDES}
    hf = json.loads((folder / "model" / "config.json").read_text())
    return Measured(rows_of(work, preset, samples, notes, hf), notes)


def rows_of(work: str, preset: Preset, samples: Samples, notes: Mapping[str, Any], hf: Mapping[str, Any]
            ) -> list[dict[str, Any]]:
    """The rows of a work that was timed."""
    size, itemsize = Size.from_hf(hf), 4 if preset.dtype == "float32" else 2
    best = {name: max(notes["peaks"][side][name] for side in SIDES) for name in ("flops", "bytes")} \
        if "peaks" in notes else {}
    add = _Rows(work, preset, samples)
    if work == "rollout":
        shape = preset.rollout
        add.rate("new_tokens_per_s", shape.rows * shape.new_tokens, lambda s: s["seconds"], _decoding(shape))
        add.rate("prompt_tokens_per_s", shape.prompts * shape.prompt_tokens, lambda s: s["first_seconds"])
        add.rate("decode_tokens_per_s", shape.rows * (shape.new_tokens - 1), _decode_seconds)
        add.rate("bandwidth_share", decode_bytes(size, shape, itemsize) / best["bytes"], _decode_seconds,
                 f"of {best['bytes'] / 1e9:.0f} GB/s")
    elif work == "sft":
        for kind, pairs in sft_data(preset, hf["vocab_size"]).items():
            about = f"{len(pairs)} examples, {sum(p.length for p in pairs)} tokens, " \
                    f"{sum(len(p.completion) for p in pairs)} trained"
            add.rate(f"{kind}_tokens_per_s", sum(p.length for p in pairs), lambda s, k=kind: s[f"{k}_seconds"], about)
            add.rate(f"{kind}_flop_utilisation", sft_flops(size, pairs, preset.rank) / best["flops"],
                     lambda s, k=kind: s[f"{k}_seconds"], f"of {best['flops'] / 1e12:.2f} TFLOP/s")
        add.peak_memory({side: notes["memory"][side]["peak_gb"] for side in SIDES})
    elif work == "grpo":
        add.cost("step_seconds", lambda s: s["seconds"], _decoding(preset.grpo.decoding))
        for phase in ("rollout", "reward", "reference", "update"):
            add.cost(f"{phase}_seconds", lambda s, p=phase: s[f"{p}_seconds"])
        add.peak_memory({side: notes["memory"][side]["peak_gb"] for side in SIDES})
    elif work == "recommend":
        shape = preset.recommend
        add.rate("users_per_s", shape.prompts, lambda s: s["seconds"], _decoding(shape))
    elif work == "load":
        add.cost("seconds", lambda s: s["seconds"], "safetensors and adapter, every page read")
        add.cost("peak_host_gb", lambda s: s["peak_host_gb"], "above the process with its libraries")
    return add.rows


def _decode_seconds(sample: Mapping[str, float]) -> float:
    """All tokens but the first; at least a hundredth of the whole, since tiny shapes drown in noise."""
    return max(sample["seconds"] - sample["first_seconds"], sample["seconds"] / 100)


def _decoding(shape: Any) -> str:
    return f"P {shape.prompts}, G {shape.group}, S {shape.prompt_tokens}, T {shape.new_tokens}"


class _Rows:
    """Collects rows; ratio > 1 means that ours is better, whatever the metric's direction."""

    def __init__(self, work: str, preset: Preset, samples: Samples) -> None:
        self.work, self.preset, self.samples = work, preset, samples
        self.rows: list[dict[str, Any]] = []

    def rate(self, metric: str, amount: float, seconds: Any, about: str = "") -> None:
        """More is better: an amount over the seconds of each sample."""
        self._add(metric, {side: [amount / seconds(s) for s in self.samples[side]] for side in SIDES},
                  True, about)

    def cost(self, metric: str, value: Any, about: str = "") -> None:
        """Less is better."""
        self._add(metric, {side: [value(s) for s in self.samples[side]] for side in SIDES}, False, about)

    def peak_memory(self, values: Mapping[Side, float]) -> None:
        """Gigabytes, less is better, measured once."""
        self._add("peak_memory_gb", {side: [values[side]] for side in SIDES}, False, "")

    def _add(self, metric: str, values: Mapping[Side, list[float]], more_is_better: bool, about: str) -> None:
        ours, pytorch = median(values["ours"]), median(values["pytorch"])
        above, below = (ours, pytorch) if more_is_better else (pytorch, ours)
        self.rows.append({
            "work": self.work, "preset": self.preset.name, "metric": metric, "ours": ours, "pytorch": pytorch,
            "ratio": above / max(below, 1e-12), "repeats": len(values["ours"]),
            "spread": max(spread(values[side]) for side in SIDES), "about": about, "values": dict(values)})


def _measure_load(preset: Preset, folder: Path, cache_dir: str) -> Measured:
    samples: dict[Side, list[dict[str, float]]] = {"ours": [], "pytorch": []}
    for repeat in range(preset.repeats):
        for side in SIDES if repeat % 2 == 0 else SIDES[::-1]:
            with Worker(side, preset, folder, cache_dir) as worker:
                samples[side].append(worker.ask("load"))
    return Measured(rows_of("load", preset, samples, {}, json.loads((folder / "model" / "config.json").read_text())),
                    {})


def _numerics(preset: Preset, workers: Mapping[Side, Worker], folder: Path) -> list[dict[str, Any]]:
    """Teacher-forced differences on the tokens that each side drew in its timed rollout, and of the SFT loss.

    ``ours`` is the difference on our tokens, ``pytorch`` on theirs, ``ratio`` the tolerance over the larger.

    Raises:
        RuntimeError: they differ by more than the preset's tolerance.
    """
    rows: list[dict[str, Any]] = []

    def add(metric: str, ours: float, pytorch: float, tolerance: float, about: str) -> None:
        rows.append({"work": "numerics", "preset": preset.name, "metric": metric, "ours": ours, "pytorch": pytorch,
                     "ratio": tolerance / max(ours, pytorch, 1e-12), "repeats": 1, "spread": 0.0, "about": about})

    apart: dict[Side, np.ndarray] = {}
    for side, other in (SIDES, SIDES[::-1]):
        file = f"drawn-{side}.npz"
        workers[side].ask("sampled", file=file)
        with np.load(folder / file) as drawn:
            sampled = drawn["logprobs"]
        apart[side] = np.abs(sampled - np.asarray(workers[other].ask("scored", file=file)))
    about = f"nats a token, tolerance {preset.tolerance:g} of the mean"
    add("mean_logprob_difference", float(apart["ours"].mean()), float(apart["pytorch"].mean()), preset.tolerance, about)
    add("max_logprob_difference", float(apart["ours"].max()), float(apart["pytorch"].max()), 100 * preset.tolerance,
        "nats, tolerance 100 times that of the mean")
    losses = {side: float(workers[side].ask("sft_loss")) for side in SIDES}
    gap = abs(losses["ours"] - losses["pytorch"])
    add("sft_loss_difference", gap, gap, preset.tolerance, f"nats a token, of {losses['ours']:.4f}")
    wrong = [row["metric"] for row in rows if row["ratio"] < 1]
    if wrong:
        raise RuntimeError(f"the two paths must agree within the preset's tolerance; {', '.join(wrong)} do not: "
                           + "; ".join(f"{row['metric']} {row['ours']:.2e} and {row['pytorch']:.2e}" for row in rows))
    return rows
