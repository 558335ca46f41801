"""The stages that train: pretrain, sft and grpo. They connect files, prompts and rewards to the loops
in ``training``, which know tokens and arrays alone. Every process of a run calls them; process 0 alone writes.

Each leaves ``<run>/<stage>/checkpoints`` to resume from and its product beside them: ``backbone/`` (an HF folder) or
``adapter/`` (a PEFT folder).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from r2rec_jax.config import LoraConfig
from r2rec_jax.models.backbone import Backbone, random_backbone, rescaled, tiny_hf_config, with_base
from r2rec_jax.models.folders import new_folder
from r2rec_jax.models.huggingface import save_merged
from r2rec_jax.models.lora import init_lora
from r2rec_jax.models.peft import save_adapter
from r2rec_jax.models.vocabulary import with_vocabulary
from r2rec_jax.parallel.distributed import is_first, on_first
from r2rec_jax.parallel.sharding import to_host
from r2rec_jax.progress import say
from r2rec_jax.rewards.functions import Columns, add_functions, call_function, load_functions
from r2rec_jax.rewards.steps import Band, resolve_band
from r2rec_jax.rewards.total import compute
from r2rec_jax.stages.corpus import pretraining_texts
from r2rec_jax.stages.rendering import RenderedQuery, count_dropped, render_queries
from r2rec_jax.stages.thinking import held_out_examples, read_examples, shown_thoughts
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.thoughts.truth import truth_of, truth_share
from r2rec_jax.tokens.examples import Example, Limits, check_fit, make_example
from r2rec_jax.training.checkpoints import Checkpoints, Identity
from r2rec_jax.training.environment import Environment
from r2rec_jax.training.grpo import train_grpo
from r2rec_jax.training.metrics import JsonLines, MetricsWriter
from r2rec_jax.training.policy import FrozenModel
from r2rec_jax.training.pretrain import pretrain_graphdef, train_pretrain
from r2rec_jax.training.sft import train_sft
from r2rec_jax.training.shared import SharedCheckpoints
from r2rec_jax.training.state import stream_key


def pretrain_stage(work: Workspace) -> dict[str, Any]:
    """Train the ``tiny`` backbone from scratch, or a pretrained one further; nothing to do for one taken as it is."""
    c, tokenizer, folder = work.config, work.tokenizer, work.run.folder("pretrain")
    if not c.trains_backbone:
        return {"note": f"backbone {c.backbone.source} is pretrained"}
    corpus = pretraining_texts(work)  # before the weights are loaded: a local teacher has its own
    if corpus.left_out or corpus.cut:
        cut = ", ".join(f"{number} {kind}" for kind, number in corpus.cut.items()) or "no other texts"
        say(f"pretrain: longer than pretrain.max_tokens ({c.pretrain.max_tokens}) are {corpus.left_out} choices, which "
            f"are left out, and {cut}, of which the end is read")
    start = _untrained(work) if work.is_tiny else _pretrained(work)
    c.check_positions(start.config.max_positions)
    trained = train_pretrain(
        _in_float32(work, start), corpus.phases, c.pretrain, seed=c.train_seed,
        pad_id=tokenizer.pad_within(start.config.vocab_size),
        checkpoints=_checkpoints(work, "pretrain", start, None), metrics=_metrics(work, "pretrain"))
    backbone = with_base(start, to_host(trained.params), c.backbone.source)
    _replace(folder / "backbone", lambda out: save_merged(backbone, None, out, tokenizer.save))
    parameters = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(backbone.base))
    texts = [text for phase in corpus.phases for text in phase]
    texts = [text if text.in_parts else text.end(c.pretrain.max_tokens) for text in texts]
    return {"parameters": parameters, "texts": len(texts), "tokens": sum(len(text.ids) for text in texts),
            "choices_left_out": corpus.left_out, "texts_cut": corpus.cut,
            "trained_tokens": sum(sum(text.trained) for text in texts), "steps": trained.steps,
            "skipped": trained.skipped, "start_sha256": start.sha256, "base_sha256": backbone.sha256}


def _in_float32(work: Workspace, start: Backbone) -> FrozenModel:
    """For training in float32, which cuDNN's attention does not do, and without room for an adapter."""
    config = work.config.backbone
    attention = "auto" if config.attention == "cudnn" else config.attention
    own = replace(config, dtype="float32", attention=attention)
    return FrozenModel.from_config(pretrain_graphdef(start.config, config.matmul_dtype), start.base, own, work.mesh)


def _untrained(work: Workspace) -> Backbone:
    c, tokenizer = work.config, work.tokenizer
    hf = tiny_hf_config(c.backbone.tiny, vocab_size=tokenizer.vocab_size, bos_id=tokenizer.bos_id,
                        eos_id=tokenizer.end_id, pad_id=tokenizer.pad_id)
    return rescaled(random_backbone(hf, c.lora, c.backbone.dtype, seed=c.train_seed, source="tiny"))


def _pretrained(work: Workspace) -> Backbone:
    """The backbone as it comes, with rows for the items that the run's tokenizer has as tokens."""
    start, tokenizer, before = work.load_source(), work.tokenizer, work.source_tokenizer()
    pieces = {tokenizer.encode(word)[0]: before.encode(word) for word in tokenizer.words if word not in before.words}
    if not pieces:
        return start
    say(f"pretrain: {len(pieces)} items are tokens, beside {before.vocab_size} of the backbone's")
    return with_vocabulary(start, pieces, work.mesh)


def sft_stage(work: Workspace) -> dict[str, Any]:
    """Train the adapter on the examples of the thoughts stage (Eq. 3)."""
    # Before the weights are loaded, and by one process alone: a local teacher has its own.
    written = on_first(lambda: [asdict(example) for example in held_out_examples(work.of_first())])
    c, backbone, tokenizer = work.config, work.backbone, work.tokenizer
    c.check_positions(backbone.config.max_positions)
    limits = Limits(c.prompts.max_tokens, c.sft.max_completion)
    examples = [make_example(tokenizer, e.example_id, e.prompt, e.completion, limits)
                for e in read_examples(work.run.folder("thoughts") / "sft.jsonl")]
    held_out = [make_example(tokenizer, e["example_id"], e["prompt"], e["completion"], limits) for e in written]
    check_fit([*examples, *held_out], backbone.config.max_positions, backbone.config.vocab_size, 0,
              "prompts.max_tokens or sft.max_completion")
    say(f"sft: {len(examples)} examples, {sum(e.length for e in examples)} tokens, of them "
        f"{sum(len(e.completion_ids) for e in examples)} trained on; adapter r={c.lora.rank}" + (
            f"; {len(held_out)} held-out examples every {c.sft.eval_every} updates" if held_out else ""))
    trained = train_sft(
        _frozen(work, backbone), fresh_adapter(work), examples, c.sft, seed=c.train_seed, held_out=held_out,
        pad_id=work.pad_id, checkpoints=_checkpoints(work, "sft", backbone, c.lora), metrics=_metrics(work, "sft"))
    _keep_adapter(work, "sft", trained.params)
    return {"examples": len(examples), "tokens": sum(e.length for e in examples), "steps": trained.steps,
            "skipped": trained.skipped, "base_sha256": backbone.sha256,
            **({"kept": trained.kept} if c.sft.keep == "best" else {})}


def grpo_stage(work: Workspace) -> dict[str, Any]:
    """Train the adapter by its own rollouts and their rewards (Eq. 4 to 7)."""
    queries, held_out = work.prepared.queries["rl"], work.held_out("grpo")
    shown = shown_thoughts(work, [*queries, *held_out])  # before the weights are loaded: a local teacher has its own
    c, backbone, tokenizer = work.config, work.backbone, work.tokenizer
    c.check_positions(backbone.config.max_positions)
    rendered = render_queries(work.prepared, [*queries, *held_out], c.prompts, tokenizer, shown)
    asked = [Example(r.query.query_id, r.chat.ids, ()) for r in rendered]
    check_fit(asked, backbone.config.max_positions, backbone.config.vocab_size, c.grpo.max_new_tokens,
              "grpo.max_new_tokens or prompts.max_tokens")
    band = resolve_band(c.rewards, work.run.result("thoughts")["ranking_statements"])
    say(f"grpo: {len(queries)} prompts, {c.grpo.group_size} completions each; full step reward for "
        f"{band.low} to {band.high} statements" + (
            f"; {len(held_out)} held-out prompts every {c.grpo.eval_every} steps" if held_out else ""))
    environment = Environment(work.decoder.generate, tokenizer.decode, make_reward(work, rendered, band), work.pad_id)
    start = work.adapter("sft") if c.grpo.start == "sft" else fresh_adapter(work)
    trained = train_grpo(
        _frozen(work, backbone), start, asked[:len(queries)], c.grpo, environment, seed=c.train_seed,
        held_out=asked[len(queries):], checkpoints=_checkpoints(work, "grpo", backbone, c.lora),
        metrics=_metrics(work, "grpo"),
        completions_log=JsonLines(work.run.folder("grpo") / "completions.jsonl") if is_first() else None)
    _keep_adapter(work, "grpo", trained.params)
    return {**count_dropped(rendered[:len(queries)]), "band": [band.low, band.high], "steps": trained.steps,
            "skipped": trained.skipped, "base_sha256": backbone.sha256,
            **({"kept": trained.kept} if c.grpo.keep == "best" else {})}


def make_reward(work: Workspace, rendered: Sequence[RenderedQuery], band: Band) -> Any:
    """The reward of these queries as the training loop takes it: texts and ids in, arrays by name out."""
    c = work.config
    by_id = {r.query.query_id: r for r in rendered}
    functions = load_functions(c.rewards.functions)
    own_words = c.thoughts.teacher == "template"
    truth = cache(lambda name: truth_of(by_id[name].view, c.prompts, len(by_id[name].chains)))

    def reward(texts: Sequence[str], example_ids: Sequence[str]) -> dict[str, np.ndarray]:
        asked = [by_id[name] for name in example_ids]
        true = [truth_share(text, truth(r.query.query_id), r.labels, opened_think=r.chat.opened_think)
                for text, r in zip(texts, asked, strict=True)] if own_words else None
        batch = compute(texts, [r.target for r in asked], [r.labels for r in asked], c.rewards, band,
                        form=c.prompts.answer.form, opened_think=asked[0].chat.opened_think, true=true)
        parts = {
            "total": batch.total, "rank": batch.rank, "step": batch.step, "true": batch.true, "valid": batch.valid,
            "hit": batch.listed & (batch.rank_of_target == 1), "copied_order": batch.copied_order,
            "duplicates": batch.duplicates, "outside": batch.outside, "statements": batch.statements,
        }
        if not functions:
            return parts
        columns = _columns(work, asked)
        prompts = [r.text for r in asked]
        values = {name: call_function(name, function, prompts, texts, columns) for name, function in functions.items()}
        return add_functions(parts, c.rewards.functions, values)

    return reward


def _columns(work: Workspace, asked: Sequence[RenderedQuery]) -> Columns:
    """What reward functions are told of the queries, one entry a completion."""
    users = work.prepared.dataset.users
    return Columns(
        example_ids=[r.query.query_id for r in asked], user_ids=[users[r.query.user_idx].user_id for r in asked],
        candidates=[list(r.labels) for r in asked], targets=[r.labels[r.target] for r in asked],
        target_numbers=[r.target + 1 for r in asked])


def fresh_adapter(work: Workspace) -> nnx.State:
    """The run's untrained adapter: A drawn from the seed, B zero, so that it is the base policy and can learn."""
    return init_lora(work.backbone.lora, stream_key(work.config.train_seed, "lora", 0))


def _frozen(work: Workspace, backbone: Backbone) -> FrozenModel:
    return FrozenModel.from_config(backbone.graphdef, backbone.base, work.config.backbone, work.mesh)


def _metrics(work: Workspace, stage: str) -> MetricsWriter | None:
    return MetricsWriter(work.run.path, stage) if is_first() else None


def _checkpoints(work: Workspace, stage: str, backbone: Backbone, lora: LoraConfig | None
                 ) -> Checkpoints | SharedCheckpoints:
    identity = Identity(stage, backbone.sha256, work.run.key(stage), lora)
    folder = work.run.folder(stage) / "checkpoints"
    return Checkpoints(folder, identity) if work.mesh is None else SharedCheckpoints(folder, identity, work.mesh)


def _keep_adapter(work: Workspace, stage: str, lora: nnx.State) -> None:
    whole = to_host(lora)
    _replace(work.run.folder(stage) / "adapter", lambda out: save_adapter(whole, work.config.lora, work.backbone, out))


def _replace(folder: Path, write: Any) -> None:
    """Write a product; the one of a run that was cut off afterwards stays until the new one is whole."""
    def renew() -> None:
        with new_folder(folder, replace=True) as empty:
            write(empty)

    on_first(renew)
