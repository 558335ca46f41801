"""What the stages of one run share: prepared data, tokenizer, backbone, adapters. Loaded when first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from r2rec_jax.config import TrainConfig
from r2rec_jax.files import sha256_of
from r2rec_jax.progress import say
from r2rec_jax.stages.run import RunFolder

if TYPE_CHECKING:
    from flax import nnx
    from jax.sharding import Mesh

    from r2rec_jax.data.queries import Query
    from r2rec_jax.models.huggingface import Backbone
    from r2rec_jax.models.quantize import Quantize
    from r2rec_jax.sampling.decoder import Decoder
    from r2rec_jax.stages.prepared import Prepared
    from r2rec_jax.tokens.tokenizer import Tokenizer

SMOLLM2 = "smollm2-135m"


def backbone_path(source: str, cache_dir: str) -> str | Path:
    """Where a backbone's files are: a local path, a hub id, or the cached GGUF of ``smollm2-135m``.

    Args:
        source: ``backbone.source``; not ``tiny``.
        cache_dir: ``data.cache_dir``.
    """
    if source == SMOLLM2:
        from r2rec_jax.data.fetch import fetch_backbone_gguf

        return fetch_backbone_gguf(cache_dir)
    path = Path(source).expanduser()
    return path if path.exists() else source


def load_tokenizer(source: str, cache_dir: str) -> Tokenizer:
    """A backbone's own tokenizer, from where the backbone lies.

    Args:
        source: as ``backbone.source``; also a ``tokenizer.model`` file.
        cache_dir: ``data.cache_dir``.
    """
    from r2rec_jax.tokens.tokenizer import Tokenizer

    return Tokenizer.load(backbone_path(source, cache_dir))


def say_undivided(base: nnx.State, sizes: Mapping[str, int]) -> None:
    """Say what every device of an axis holds whole because the axis does not divide it; nothing where all is divided.

    ``mesh: what an axis does not divide is replicated on it, 113.2 MB of the backbone in 1 of its arrays; the largest:
    embed [49153, 576] on tensor, 113.2 MB``.

    Args:
        base: the backbone's weights.
        sizes: devices on each axis.
    """
    from r2rec_jax.parallel.sharding import undivided

    found = undivided(base, sizes)
    if found:
        largest = "; ".join(f"{entry.path} {list(entry.shape)} on {' and '.join(entry.axes)}, {entry.nbytes / 1e6:.1f} "
                            "MB" for entry in found[:3])
        whole = sum(entry.nbytes for entry in found) / 1e6
        say(f"mesh: what an axis does not divide is replicated on it, {whole:.1f} MB of the backbone in {len(found)} "
            f"of its arrays; the largest: {largest}")


@dataclass
class Workspace:
    """One run's shared objects.

    Attributes:
        run: the run folder.
        alone: everything on one device of this process, whatever the mesh: for what process 0 does by itself.
    """

    run: RunFolder
    alone: bool = False

    def of_first(self) -> Workspace:
        """The workspace of what process 0 does by itself: one of several processes must not touch their mesh."""
        from r2rec_jax.parallel.distributed import several

        return Workspace(self.run, alone=True) if several() else self

    @property
    def config(self) -> TrainConfig:
        """The run's settings."""
        return self.run.config

    @property
    def is_tiny(self) -> bool:
        """Whether the backbone is trained from scratch."""
        return self.config.backbone.source == "tiny"

    @cached_property
    def prepared(self) -> Prepared:
        """Data, queries and chains of the prepare stage."""
        from r2rec_jax.stages.prepared import Prepared

        recorded = self.run.result("prepare")
        return Prepared.load(self.run.folder("prepare"), config=self.config, recorded=recorded)

    def held_out(self, stage: Literal["sft", "grpo"]) -> list[Query]:
        """The validation queries that a stage looks at beside what it is trained on; none unless asked for.

        Raises:
            ValueError: the data has none.
        """
        config = self.config.sft if stage == "sft" else self.config.grpo
        if not config.eval_every:
            return []
        queries = self.prepared.queries["validation"]
        if not queries:
            raise ValueError(f"{stage}.eval_every needs validation queries; the data has none; raise "
                             "data.validation_users, or set it to 0")
        return list(queries[:config.eval_prompts])

    @property
    def tokenizer_dir(self) -> Path:
        """Where the run keeps its tokenizer (an HF folder), so that it runs on with the network unplugged."""
        return self.run.folder("thoughts") / "tokenizer"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        from r2rec_jax.tokens.tokenizer import Tokenizer

        return Tokenizer.load(self.tokenizer_dir)

    def source_tokenizer(self) -> Tokenizer:
        """The backbone's own tokenizer, from where the backbone lies."""
        return load_tokenizer(self.config.backbone.source, self.config.data.cache_dir)

    @cached_property
    def mesh(self) -> Mesh | None:
        """The run's devices; None for a single one."""
        from r2rec_jax.parallel.mesh import make_mesh

        return None if self.alone else make_mesh(self.config.parallel)

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen model, laid out on the mesh, with a zero adapter of the run's shape."""
        loaded = self._load(self.config.backbone.quantize)
        if self.mesh is not None:
            say_undivided(loaded.base, self.mesh.shape)
        return loaded

    def load_full(self) -> Backbone:
        """The frozen model with full weights: the run's own, or loaded once more when that is quantised."""
        return self.backbone if self.config.backbone.quantize == "none" else self._load("none")

    def load_source(self, quantize: Quantize = "none") -> Backbone:
        """The pretrained backbone as it comes, whatever becomes of it in the run; not for ``tiny``."""
        c = self.config
        return self._load_from(backbone_path(c.backbone.source, c.data.cache_dir), quantize)

    def _load(self, quantize: Quantize) -> Backbone:
        if not self.config.trains_backbone:
            return self.load_source(quantize)
        self.run.result("pretrain")
        return self._load_from(self.run.folder("pretrain") / "backbone", quantize)

    def _load_from(self, path: str | Path, quantize: Quantize) -> Backbone:
        from r2rec_jax.models.attention import check_backend
        from r2rec_jax.models.backbone import resolve_dtype, with_matmul_dtype
        from r2rec_jax.models.huggingface import load_backbone
        from r2rec_jax.parallel.sharding import place

        c = self.config
        check_backend(c.backbone.attention, resolve_dtype(c.backbone.dtype))
        loaded = load_backbone(path, c.lora, c.backbone.dtype, quantize=quantize, mesh=self.mesh)
        return replace(with_matmul_dtype(loaded, c.backbone.matmul_dtype), lora=place(loaded.lora, self.mesh))

    @property
    def pad_id(self) -> int:
        """What fills padding, a token that the backbone has a row for."""
        return self.tokenizer.pad_within(self.backbone.config.vocab_size)

    @cached_property
    def decoder(self) -> Decoder:
        """The KV-cache decoder over the backbone."""
        from r2rec_jax.sampling.decoder import Decoder

        return Decoder(self.backbone.graphdef, self.backbone.config, self.tokenizer.end_ids, self.pad_id,
                       attention=self.config.backbone.attention, mesh=self.mesh)

    def adapter_sha256(self, checkpoint: str) -> str | None:
        """Of the file that a checkpoint's adapter lies in; None for ``base``, which has none."""
        from r2rec_jax.models.peft import WEIGHTS

        return None if checkpoint == "base" else sha256_of(self._adapter_folder(checkpoint) / WEIGHTS)

    def adapter(self, checkpoint: str, full: Backbone | None = None) -> nnx.State:
        """The policy of a checkpoint: ``base`` is the zero tree, ``sft`` and ``grpo`` are read from their stage.

        Args:
            checkpoint: which one.
            full: of :meth:`load_full`, to merge the adapter into; None for the run's own backbone.

        Raises:
            ValueError: that stage has not finished, or its adapter belongs to another base.
        """
        from r2rec_jax.models.peft import load_adapter
        from r2rec_jax.parallel.sharding import place

        backbone = full or self.backbone
        if checkpoint == "base":
            return backbone.lora
        lora, _ = load_adapter(self._adapter_folder(checkpoint), backbone, other_precision=full is not None)
        return place(lora, self.mesh)

    def _adapter_folder(self, checkpoint: str) -> Path:
        self.run.result(checkpoint)
        folder, lost = self.run.folder(checkpoint), self.run.lost(checkpoint)
        if lost:
            raise ValueError(f"{folder} must hold what the stage made; {', '.join(lost)} is missing; python -m "
                             f"r2rec_jax.train --stages {checkpoint} makes it again")
        return folder / "adapter"
