"""The PyTorch side: transformers, peft and trl on the same weights, at the best settings that they document.

sdpa attention, KV cache, batched, all cores, no gradient checkpointing, LoRA attached, fused AdamW and autocast on a
GPU; padding is kept small by sorting the examples of an update by length, and of several sizes of a pass the fastest is
taken. torch, peft and trl are imported here alone, when a :class:`PyTorch` is made.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2rec_jax.bench.inputs import Pair, equal_pairs, prompts, sft_data
from r2rec_jax.bench.presets import SEED, TEMPERATURE, TOP_P, Preset
from r2rec_jax.bench.timing import Work, best, forget_peak_host, peak_host_gb, timed
from r2rec_jax.bench.works import DRAWN, Draw
from r2rec_jax.evaluation.tables import cpus
from r2rec_jax.progress import say

LR = 1e-5
MAX_GRAD_NORM = 1.0
SFT_KINDS = ("equal", "throughout", "mixed")
IGNORED = -100
"""Label of a token that is not trained on."""


class PyTorch:
    """The model of a preset, and its works.

    Args:
        preset: sizes.
        folder: scratch folder with ``model/`` and ``adapter/``.
    """

    def __init__(self, preset: Preset, folder: Path) -> None:
        import peft  # noqa: F401  imported now, so that loading is not charged for it
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.torch, self.preset, self.folder = torch, preset, folder
        self.on_gpu = torch.cuda.is_available()
        self.device = "cuda" if self.on_gpu else "cpu"
        self.dtype = getattr(torch, preset.dtype)
        torch.set_num_threads(len(cpus()))
        torch.manual_seed(SEED)
        self._model: Any = None
        self.tried: dict[str, dict[str, float] | None] = {}

    def precision(self) -> Any:
        """What training and drawing run under: peft keeps adapters in float32, and autocast multiplies them in the
        backbone's dtype."""
        return self.torch.autocast(self.device, self.dtype, enabled=self.dtype != self.torch.float32)

    def kind(self) -> str:
        """Kind of device."""
        return "gpu" if self.on_gpu else "cpu"

    @property
    def model(self) -> Any:
        """The peft model, loaded when first asked for."""
        if self._model is None:
            self._model = self._read()
        return self._model

    @property
    def vocab(self) -> int:
        """V."""
        return self.model.config.vocab_size

    def _read(self) -> Any:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(
            self.folder / "model", dtype=self.dtype, attn_implementation="sdpa", device_map={"": self.device})
        model = PeftModel.from_pretrained(base, str(self.folder / "adapter"), is_trainable=True)
        for module in model.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                vars(module)["cast_input_dtype_enabled"] = False  # else adapters cast their input to float32 first
        return model

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def drawing(self, name: str) -> Draw:
        """How ``generate`` draws the completions of ``rollout`` or ``recommend``."""
        torch, shape = self.torch, getattr(self.preset, name)
        ids = torch.tensor(prompts(shape, self.vocab, name)).to(self.device)

        def draw(new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
            self.model.eval()
            self.model.generation_config.eos_token_id = None  # exactly T tokens
            with torch.inference_mode(), self.precision():
                out = self.model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=TEMPERATURE,
                    top_p=TOP_P, top_k=0, max_new_tokens=new_tokens, num_return_sequences=shape.group,
                    pad_token_id=0, use_cache=True, return_dict_in_generate=True, output_logits=True)
                tokens = out.sequences[:, ids.shape[1]:]
                logs = [torch.log_softmax(step.float() / TEMPERATURE, dim=-1).gather(1, tokens[:, i:i + 1])
                        for i, step in enumerate(out.logits)]
                cut = (shape.prompts, shape.group, new_tokens)
                return (tokens.cpu().numpy().astype(np.int32).reshape(cut),
                        torch.cat(logs, dim=1).cpu().numpy().reshape(cut))

        return draw

    def work(self, name: str) -> Work:
        """The named work, run once; of training, with the size of a pass that was the fastest."""
        made: Work
        if name in DRAWN:
            made = DRAWN[name](self.drawing(name), getattr(self.preset, name).new_tokens)
        else:
            made = self._training(name, self._fastest(name))
        made.step()
        self._give_back()
        return made

    def _training(self, name: str, micro: Mapping[str, int]) -> Work:
        if name == "sft":
            return SftWork(self, micro)
        from r2rec_jax.bench.trl_step import GrpoWork

        return GrpoWork(self, micro[""])

    def _fastest(self, name: str) -> dict[str, int]:
        """Kind of data (``""`` for GRPO) -> size of a pass whose second or third step was the shortest; sizes that do
        not fit are left out.

        Raises:
            RuntimeError: none fits.
        """
        sizes: tuple[int, ...] = getattr(self.preset, name).pytorch_micro
        kinds = SFT_KINDS if name == "sft" else ("",)
        if len(sizes) == 1:
            return dict.fromkeys(kinds, sizes[0])
        for size in sizes:
            self.tried[str(size)] = self._tried(name, dict.fromkeys(kinds, size))
            self._model = None
            self._forget()
            say(f"{name}, PyTorch, passes of {size}: {self.tried[str(size)] or 'do not fit in the memory'}")
        found = {size: laps for size in sizes if (laps := self.tried[str(size)]) is not None}
        if not found:
            raise RuntimeError(f"{name} needs smaller passes: none of {sizes} fits in the memory")
        return {kind: min(found, key=lambda size: found[size][_seconds(kind)]) for kind in kinds}

    def _tried(self, name: str, micro: Mapping[str, int]) -> dict[str, float] | None:
        try:
            made = self._training(name, micro)
            made.step()
            laps = [made.step() for _ in range(2)]
        except RuntimeError as error:  # cuBLAS does not call it an OutOfMemoryError
            if isinstance(error, self.torch.OutOfMemoryError) or "ALLOC_FAILED" in str(error):
                return None
            raise
        return {key: min(lap[key] for lap in laps) for key in laps[0]} | self.memory()

    def _give_back(self) -> None:
        """Let go of memory of the accelerator that is kept for later; our side has the same one."""
        gc.collect()
        if self.on_gpu:
            self.torch.cuda.empty_cache()

    def _forget(self) -> None:
        self._give_back()
        if self.on_gpu:
            self.torch.cuda.reset_peak_memory_stats()
        forget_peak_host()

    def compilation(self) -> dict[str, Any]:
        """Nothing is compiled; the shorter of two steps and its peak by the size of a pass, None where it did not
        fit."""
        return {"compile_s": 0.0, "tried": self.tried} if self.tried else {"compile_s": 0.0}

    def load(self) -> dict[str, float]:
        """Seconds from safetensors to a model and an adapter on the device, every page of them read."""
        def whole() -> None:
            for parameter in self.model.parameters():
                parameter.detach().sum()
            self.wait()

        before = peak_host_gb()
        seconds, _ = timed(whole)
        return {"seconds": seconds, "peak_host_gb": peak_host_gb() - before}

    def memory(self) -> dict[str, float]:
        """Peak memory of this process: on the accelerator, or in the host where there is none."""
        if self.on_gpu:
            return {"peak_gb": self.torch.cuda.max_memory_allocated() / 1e9}
        return {"peak_gb": peak_host_gb()}

    def peaks(self) -> dict[str, float]:
        """Measured FLOP/s of a large product and bytes/s of reading a large matrix once."""
        torch = self.torch
        n = 8192 if self.on_gpu else 2048
        a = torch.randn(n, n, dtype=self.dtype, device=self.device)
        tall = torch.ones(131072 if self.on_gpu else 16384, 8192, dtype=self.dtype, device=self.device)
        vector = torch.ones(8192, dtype=self.dtype, device=self.device)

        def run(x: Any, y: Any) -> None:
            torch.matmul(x, y)
            self.wait()

        return {"flops": 2 * n**3 / best(lambda: run(a, a)),
                "bytes": tall.numel() * tall.element_size() / best(lambda: run(tall, vector))}

    def sampled(self, out: Path) -> dict[str, float]:
        """Draw the rollout that was timed and keep its tokens and log-probabilities in ``out``."""
        tokens, logprobs = self.drawing("rollout")(self.preset.rollout.new_tokens)
        np.savez(out, tokens=tokens, logprobs=logprobs)
        return {}

    def scored(self, tokens: np.ndarray) -> np.ndarray:
        """Teacher-forced log-probabilities [P, G, T] of completions of the rollout's prompts."""
        torch, shape = self.torch, self.preset.rollout
        out = []
        with torch.no_grad(), self.precision():
            for prompt, group in zip(prompts(shape, self.vocab, "rollout"), tokens, strict=True):
                ids = torch.tensor(np.concatenate([np.tile(prompt, (len(group), 1)), group], axis=1)).to(self.device)
                logits = self.model(input_ids=ids, logits_to_keep=shape.new_tokens + 1, use_cache=False).logits
                logs = torch.log_softmax(logits[:, :-1].float() / TEMPERATURE, dim=-1)
                out.append(logs.gather(2, ids[:, -shape.new_tokens:, None])[..., 0].cpu().numpy())
        return np.stack(out)

    def sft_loss(self) -> float:
        """Loss of the update at equal lengths, nats a trained token."""
        size = self.preset.sft.pytorch_micro[0]
        pairs, work = equal_pairs(self.preset, self.vocab), SftWork(self, dict.fromkeys(SFT_KINDS, size))
        total = sum(len(pair.completion) for pair in pairs)
        with self.torch.no_grad():
            return sum(float(work.loss(part, total)) for part in work.passes(pairs, size))


class SftWork:
    """Whole updates of a plain loop: padding, passes of ``micro[kind of data]`` examples, clipping, optimiser."""

    def __init__(self, side: PyTorch, micro: Mapping[str, int]) -> None:
        self.side, self.micro, torch = side, micro, side.torch
        self.data = sft_data(side.preset, side.vocab)
        self.trained = [parameter for parameter in side.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=LR, weight_decay=0.0, fused=side.on_gpu)

    def passes(self, pairs: Sequence[Pair], size: int) -> list[list[Pair]]:
        """Passes, longest examples first, so that little is padded."""
        ordered = sorted(pairs, key=lambda pair: -pair.length)
        return [ordered[i:i + size] for i in range(0, len(ordered), size)]

    def loss(self, pairs: Sequence[Pair], total: int) -> Any:
        """The pass's share of the mean over the ``total`` trained tokens of the update."""
        torch, width = self.side.torch, max(pair.length for pair in pairs)
        ids, labels = np.zeros((len(pairs), width), np.int64), np.full((len(pairs), width), IGNORED)
        for row, pair in enumerate(pairs):
            ids[row, :pair.length] = (*pair.prompt, *pair.completion)
            labels[row, len(pair.prompt):pair.length] = pair.completion
        real = np.arange(width) < np.array([pair.length for pair in pairs])[:, None]
        given = {"input_ids": ids, "labels": labels, "attention_mask": real.astype(np.int64)}
        if real.all():
            del given["attention_mask"]
        tensors = {name: torch.from_numpy(x).to(self.side.device) for name, x in given.items()}
        with self.side.precision():
            return self.side.model(**tensors, num_items_in_batch=total, use_cache=False).loss

    def _update(self, pairs: Sequence[Pair], size: int) -> None:
        self.side.model.train()
        total = sum(len(pair.completion) for pair in pairs)
        for part in self.passes(pairs, size):
            self.loss(part, total).backward()
        self.side.torch.nn.utils.clip_grad_norm_(self.trained, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.side.wait()

    def step(self) -> dict[str, float]:
        """One update on each kind of data."""
        return {_seconds(kind): timed(lambda pairs=pairs, size=self.micro[kind]: self._update(pairs, size))[0]
                for kind, pairs in self.data.items()}


def _seconds(kind: str) -> str:
    return f"{kind}_seconds" if kind else "seconds"
