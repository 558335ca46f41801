"""Our side of the benchmark: the decoder, the training programs and the loaders, as every stage calls them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from r2rec_jax.bench.inputs import Pair, equal_pairs, prompts, reward, sft_data, text_of
from r2rec_jax.bench.presets import SEED, SHAPES, TEMPERATURE, TOP_P, Preset
from r2rec_jax.bench.timing import Work, best, peak_host_gb, timed
from r2rec_jax.bench.works import DRAWN, Draw
from r2rec_jax.config import BackboneConfig, GrpoConfig, LoraConfig
from r2rec_jax.files import read_json, write_json
from r2rec_jax.models.backbone import Backbone, resolve_dtype
from r2rec_jax.models.huggingface import load_backbone, save_merged
from r2rec_jax.models.llama import LlamaConfig, build_llama, split_llama
from r2rec_jax.models.lora import zeros_like_lora
from r2rec_jax.models.peft import RECORD, load_adapter, save_adapter
from r2rec_jax.parallel.kept import programs
from r2rec_jax.sampling.decoder import Decoder
from r2rec_jax.stages.workspace import backbone_path
from r2rec_jax.tokens.examples import Example, group_rows
from r2rec_jax.training.environment import Environment, completion_texts, roll_out, score_texts
from r2rec_jax.training.grpo import SUMS, make_grpo_loss, make_passes, make_scoring, update, with_scores
from r2rec_jax.training.losses import group_advantages
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.rollouts import with_advantages
from r2rec_jax.training.rows import pack_update, row_shapes
from r2rec_jax.training.sft import SUMS as SFT_SUMS
from r2rec_jax.training.sft import make_sft_loss, sft_passes
from r2rec_jax.training.state import init_state, make_optimizer
from r2rec_jax.training.updates import Updates

LR = 1e-5
MADE = "made.json"
"""Of which weights the scratch folder was made."""
STARTED = {"whole": False}
"""Stands in :data:`MADE` until the folder is whole."""


class Ours:
    """The model of a preset, and its works.

    Args:
        preset: sizes.
        folder: scratch folder that both sides read: ``model/`` and ``adapter/``.
        cache_dir: where downloads are kept.
    """

    def __init__(self, preset: Preset, folder: Path, cache_dir: str) -> None:
        self.preset, self.folder, self.cache_dir = preset, folder, cache_dir
        self.lora_config = LoraConfig(rank=preset.rank, alpha=2.0 * preset.rank)
        self.compile_s = 0.0
        programs()
        self._loaded: tuple[Backbone, nnx.State] | None = None

    def kind(self) -> str:
        """Kind of device."""
        return jax.default_backend()

    def report(self, what: str, seconds: float) -> None:
        """Count a compilation."""
        self.compile_s += seconds

    def compilation(self) -> dict[str, float]:
        """Seconds of compiling so far, how many programs were compiled, and how many were read as kept before."""
        counted = programs()
        return {"compile_s": self.compile_s, "compiled": counted.compiled, "read": counted.read}

    def export(self) -> dict[str, float]:
        """Write the folder that both sides read: HF safetensors, and a PEFT adapter with both factors random."""
        made = {"backbone": self.preset.backbone, "dtype": self.preset.dtype, "rank": self.preset.rank}
        folders = [self.folder / name for name in ("model", "adapter")]
        if (self.folder / MADE).is_file():
            found = read_json(self.folder / MADE, "remove the folder")
            if found not in (made, made | STARTED):
                raise ValueError(f"{self.folder} must hold {made}; it holds {found}; give another --scratch")
            if found == made:
                return {}
            for folder in folders:  # what a stop left
                shutil.rmtree(folder, ignore_errors=True)
        elif any(folder.exists() for folder in folders):
            raise ValueError(f"{self.folder} must have no model/ or adapter/ that the benchmark did not make; it has; "
                             "give another --scratch")
        write_json(self.folder / MADE, made | STARTED)
        backbone = self._source()
        save_merged(backbone, None, self.folder / "model")
        save_adapter(random_adapter(backbone.lora), self.lora_config, backbone, self.folder / "adapter")
        (self.folder / "adapter" / RECORD).unlink()  # weights made here have no hash that a loader could check
        write_json(self.folder / MADE, made)
        self._loaded = (backbone, random_adapter(backbone.lora))
        return {}

    def _source(self) -> Backbone:
        name = self.preset.backbone
        if name not in SHAPES:
            return load_backbone(backbone_path(name, self.cache_dir), self.lora_config, self.preset.dtype)
        config = LlamaConfig.from_hf(SHAPES[name])
        graphdef, drawn, base = split_llama(
            build_llama(config, self.lora_config, resolve_dtype(self.preset.dtype), SEED))
        return Backbone(graphdef, base, config, SHAPES[name], name, "not hashed", zeros_like_lora(drawn),
                        self.lora_config)

    @property
    def backbone(self) -> Backbone:
        """The frozen model."""
        return self._both()[0]

    @property
    def lora(self) -> nnx.State:
        """The adapter that both sides carry."""
        return self._both()[1]

    def _both(self) -> tuple[Backbone, nnx.State]:
        if self._loaded is None:
            backbone = self._source()
            self._loaded = backbone, random_adapter(backbone.lora)
        return self._loaded

    def frozen(self) -> FrozenModel:
        """The model as training sees it."""
        same = BackboneConfig(remat="off")  # PyTorch keeps its activations too
        return FrozenModel.from_config(self.backbone.graphdef, self.backbone.base, same)

    def decoder(self) -> Decoder:
        """A decoder without end tokens: every completion has exactly T tokens."""
        return Decoder(self.backbone.graphdef, self.backbone.config, (), 0)

    def drawing(self, name: str) -> Draw:
        """How the completions of ``rollout`` or ``recommend`` are drawn."""
        shape, decoder = getattr(self.preset, name), self.decoder()
        asked = prompts(shape, self.backbone.config.vocab_size, name)

        def draw(new_tokens: int) -> tuple[np.ndarray, np.ndarray]:
            rollout = decoder.generate(
                self.lora, self.backbone.base, asked, group=shape.group, max_new_tokens=new_tokens,
                temperature=TEMPERATURE, top_p=TOP_P, key=jax.random.key(SEED), on_compile=self.report)
            return rollout.tokens, rollout.logprobs

        return draw

    def work(self, name: str) -> Work:
        """The named work, compiled and run once."""
        made: Work
        if name in DRAWN:
            made = DRAWN[name](self.drawing(name), getattr(self.preset, name).new_tokens)
        else:
            made = {"sft": SftWork, "grpo": GrpoWork}[name](self)
        made.step()
        return made

    def load(self) -> dict[str, float]:
        """Seconds from safetensors to a model and an adapter on the device."""
        def whole() -> Any:
            backbone = load_backbone(self.folder / "model", self.lora_config, self.preset.dtype)
            lora, _ = load_adapter(self.folder / "adapter", backbone)
            return jax.block_until_ready((backbone.base, lora))

        before = peak_host_gb()
        seconds, _ = timed(whole)
        return {"seconds": seconds, "peak_host_gb": peak_host_gb() - before}

    def memory(self) -> dict[str, float]:
        """Peak memory of this process: on the accelerator, or in the host where there is none."""
        stats = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            return {"peak_gb": stats["peak_bytes_in_use"] / 1e9}
        return {"peak_gb": peak_host_gb()}

    def peaks(self) -> dict[str, float]:
        """Measured FLOP/s of a large product and bytes/s of reading a large matrix once."""
        on_cpu = jax.default_backend() == "cpu"
        n, dtype = 2048 if on_cpu else 8192, resolve_dtype(self.preset.dtype)
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        product = jax.jit(lambda x, y: x @ y)
        rows = 16384 if on_cpu else 131072
        tall, vector = jnp.ones((rows, 8192), dtype), jnp.ones((8192,), dtype)
        read = jax.jit(lambda x, y: x @ y)
        return {"flops": 2 * n**3 / best(lambda: product(a, a).block_until_ready()),
                "bytes": tall.nbytes / best(lambda: read(tall, vector).block_until_ready())}

    def sampled(self, out: Path) -> dict[str, float]:
        """Draw the rollout that was timed and keep its tokens and log-probabilities in ``out``."""
        tokens, logprobs = self.drawing("rollout")(self.preset.rollout.new_tokens)
        np.savez(out, tokens=tokens, logprobs=logprobs)
        return {}

    def scored(self, tokens: np.ndarray) -> np.ndarray:
        """Teacher-forced log-probabilities [P, G, T] of completions of the rollout's prompts."""
        shape, model = self.preset.rollout, self.frozen()
        batch = group_rows(prompts(shape, self.backbone.config.vocab_size, "rollout"), tokens, shape.prompt_tokens,
                           shape.new_tokens, lengths=np.full(tokens.shape[:2], shape.new_tokens))
        score = jax.jit(lambda lora, base, rows: model.score(lora, base, rows, TEMPERATURE)[0])
        rows = [score(self.lora, model.base, jax.tree.map(lambda x, i=i: x[i:i + 1], batch))
                for i in range(shape.prompts)]
        return np.asarray(jnp.concatenate(rows)).reshape(tokens.shape)

    def sft_loss(self) -> float:
        """Loss of the update at equal lengths, nats a trained token."""
        work = SftWork(self)
        loss = jax.jit(make_sft_loss(self.frozen()))
        passes = sft_passes(work.pack(equal_pairs(self.preset, self.backbone.config.vocab_size)))
        return sum(float(loss(self.lora, self.backbone.base, *inputs)[0]) for inputs in passes)


def random_adapter(template: nnx.State) -> nnx.State:
    """Both factors drawn with deviation 0.02, so that the adapter takes part in every number."""
    leaves, treedef = jax.tree.flatten(template)
    keys = jax.random.split(jax.random.key(SEED + 7), len(leaves))
    return jax.tree.unflatten(treedef, [0.02 * jax.random.normal(key, leaf.shape, jnp.float32)
                                        for key, leaf in zip(keys, leaves, strict=True)])


def even_share(completions: Sequence[str], example_ids: Sequence[str]) -> Mapping[str, np.ndarray]:
    """The reward as our loop calls it."""
    return {"total": np.asarray(reward(completions))}


class SftWork:
    """Whole updates: packing, passes, optimiser."""

    def __init__(self, side: Ours) -> None:
        self.side = side
        self.data = sft_data(side.preset, side.backbone.config.vocab_size)
        optimizer = make_optimizer(LR, "constant", 0.0, 1, 0.0, 1.0)
        self.updates = Updates(make_sft_loss(side.frozen()), SFT_SUMS, optimizer, side.report)
        self.state = init_state(side.lora, optimizer)

    def pack(self, pairs: Sequence[Pair]) -> list[Any]:
        """The device passes of an update."""
        examples = [Example(str(i), pair.prompt, pair.completion) for i, pair in enumerate(pairs)]
        return pack_update(examples, row_shapes(examples), self.side.preset.sft.micro)

    def step(self) -> dict[str, float]:
        """One update on each kind of data."""
        return {f"{kind}_seconds": timed(lambda pairs=pairs: self._update(pairs))[0]
                for kind, pairs in self.data.items()}

    def _update(self, pairs: Sequence[Pair]) -> None:
        self.state, _ = self.updates.run(self.state, self.side.backbone.base, sft_passes(self.pack(pairs)))


class GrpoWork:
    """One step as ``training.grpo.train_grpo`` does it, but that each phase is waited for, so that it can be timed:
    there the reference scores while the host rewards."""

    def __init__(self, side: Ours) -> None:
        grpo = side.preset.grpo
        self.side, self.model, self.shape = side, side.frozen(), grpo.decoding
        self.config = GrpoConfig(
            group_size=self.shape.group, prompts_per_step=self.shape.prompts, micro_prompts=grpo.micro_prompts, lr=LR,
            temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=self.shape.new_tokens, reference="base")
        vocab = side.backbone.config.vocab_size
        self.chosen = [Example(str(i), tuple(ids), ()) for i, ids in enumerate(prompts(self.shape, vocab, "grpo"))]
        self.environment = Environment(side.decoder().generate, text_of, even_share)
        optimizer = make_optimizer(LR, "constant", 0.0, 1, 0.0, 1.0)
        self.score = make_scoring(self.model, TEMPERATURE, side.report)
        self.updates = Updates(make_grpo_loss(self.model, self.config), SUMS, optimizer, side.report, pass_squares=True)
        self.state, self.reference = init_state(side.lora, optimizer), zeros_like_lora(side.lora)
        self.steps = 0

    def step(self) -> dict[str, float]:
        """Seconds of rollout, rewards, reference and update."""
        self.steps += 1
        base, config, ids = self.model.base, self.config, [example.example_id for example in self.chosen]
        rollout_s, rollout = timed(lambda: roll_out(
            self.state.params, self.model, self.chosen, config, self.environment, SEED, self.steps, self.side.report))
        reward_s, rewards = timed(lambda: score_texts(
            self.environment.reward, completion_texts(rollout, text_of), ids, config.group_size))

        def referred() -> Any:
            passes = make_passes(self.chosen, rollout, config, self.shape.prompt_tokens, 0)
            passes = with_advantages(passes, group_advantages(rewards["total"], config.scale_rewards))
            passes = [with_scores(group, self.score, self.state.params, self.reference, base, config)
                      for group in passes]
            return jax.block_until_ready(passes)

        reference_s, passes = timed(referred)
        update_s, (self.state, _) = timed(lambda: update(self.state, self.updates, base, passes, config.iterations))
        return {"rollout_seconds": rollout_s, "reward_seconds": reward_s, "reference_seconds": reference_s,
                "update_seconds": update_s, "seconds": rollout_s + reward_s + reference_s + update_s}
