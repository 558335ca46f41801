"""The thoughts stage: a teacher writes the interaction-of-thoughts, and they become SFT examples (Eq. 2).

Under ``<run>/thoughts``:

    thoughts.jsonl    the store: every thought that was written, keyed by content (a chat server's lie elsewhere, see
                      ``stages/endpoint.py``)
    tokenizer/        the run's tokenizer as an HF folder (trained here for the ``tiny`` backbone)
    sft.jsonl         the examples as text: chain -> (thought, rating), and ranking prompt -> (thoughts, ranking)
    held_out.jsonl    the same of the validation queries that ``sft.eval_every`` asks for
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from r2rec_jax.config import TrainConfig, as_plain
from r2rec_jax.data.queries import Query
from r2rec_jax.files import write_json_lines
from r2rec_jax.parallel.distributed import on_first, several
from r2rec_jax.progress import bar, say
from r2rec_jax.prompts.answer import parse_completion
from r2rec_jax.prompts.ranking import render_ranking
from r2rec_jax.prompts.thought import render_thought, render_thought_completion
from r2rec_jax.prompts.verbalize import item_name
from r2rec_jax.prompts.views import ChainView
from r2rec_jax.sampling.endpoint import Stopped
from r2rec_jax.stages.keys import rankings_or_sft_read_thoughts
from r2rec_jax.stages.prepared import Prepared
from r2rec_jax.stages.rendering import (
    ChainThoughts,
    RenderedQuery,
    count_dropped,
    distinct_chains,
    make_view,
    render_queries,
)
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.thoughts.store import ThoughtStore, collect, thought_key
from r2rec_jax.thoughts.target import RankingTarget, write_ranking_target
from r2rec_jax.thoughts.teacher import Teacher, Thought, pick
from r2rec_jax.tokens.bpe import train_tokenizer
from r2rec_jax.tokens.tokenizer import Tokenizer

Written = dict[ChainView, Thought | None]


@dataclass(frozen=True)
class TextExample:
    """An SFT example as text.

    Attributes:
        example_id: query id, for thoughts with the chain's number.
        kind: ``ranking`` or ``thought``.
        prompt: the user message.
        completion: what the model should write; a ``<think>`` that the chat template opens is left out.
        statements: reasoning statements in it.
    """

    example_id: str
    kind: Literal["ranking", "thought"]
    prompt: str
    completion: str
    statements: int


def make_teacher(work: Workspace) -> Teacher:
    """The configured teacher."""
    c = work.config
    domain = c.prompts.template(work.prepared.dataset.domain)
    if c.thoughts.teacher == "template":
        from r2rec_jax.thoughts.template import TemplateTeacher

        return TemplateTeacher(domain, varied=c.prompts.wording == "varied")
    if c.thoughts.teacher == "endpoint":
        from r2rec_jax.stages.endpoint import make_remote_teacher

        return make_remote_teacher(work, domain)
    from r2rec_jax.stages.local_teacher import make_local_teacher

    return make_local_teacher(work, domain)


@contextmanager
def _store_folder(work: Workspace) -> Iterator[Path]:
    """The folder of the store, made and held where several runs may share it."""
    if work.config.thoughts.teacher == "endpoint":
        from r2rec_jax.stages.endpoint import locked_folder, store_folder

        with locked_folder(store_folder(work)) as folder:
            yield folder
    else:
        folder = work.run.folder("thoughts")
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def write_thoughts(work: Workspace, queries: Sequence[Query], prepared: Prepared | None = None) -> Written:
    """The thoughts on all chains of ``queries``, out of the store or written now. Of several processes, which must all
    ask, process 0 alone opens the store and tells the others.

    Args:
        work: the run; every process's own, or process 0's alone.
        queries: whose chains.
        prepared: the data that knows their chains; None for the run's own.

    Raises:
        RuntimeError: a chat server had to be left before the end; what it wrote is in the store.
    """
    data = prepared or work.prepared
    prompts = work.config.prompts
    chains = list(dict.fromkeys(c for query in queries for c in distinct_chains(data, query, prompts)))
    if work.alone or not several():
        return dict(zip(chains, _collect(work, chains), strict=True))
    told = on_first(lambda: [thought and asdict(thought) for thought in _collect(work.of_first(), chains)])
    return {chain: Thought(**plain | {"statements": tuple(plain["statements"])}) if plain else None
            for chain, plain in zip(chains, told, strict=True)}


def _collect(work: Workspace, chains: Sequence[ChainView]) -> list[Thought | None]:
    """Their thoughts, in this process."""
    keys = [str(work.config.train_seed)] * len(chains)
    with _store_folder(work) as folder:
        store = ThoughtStore(folder / "thoughts.jsonl")
        teacher = make_teacher(work)
        figures = getattr(teacher, "figures", dict)
        with bar("thoughts", len(chains), "chains") as progress:
            try:
                thoughts = collect(teacher, store, chains, keys,
                                   on_progress=lambda count: progress.advance(count, **figures()))
            except Stopped as stop:
                kept = sum(thought_key(c, teacher, k) in store for c, k in zip(chains, keys, strict=True))
                raise Stopped(f"{stop}; {kept} of {len(chains)} thoughts are kept in {store.path}; run the same "
                              "command again to go on") from None
    rejected = getattr(teacher, "rejected", None)
    if rejected:
        say("thoughts rejected: " + "; ".join(f"{count} x {reason}" for reason, count in rejected.items()))
    return thoughts


def shown_thoughts(work: Workspace, queries: Sequence[Query], prepared: Prepared | None = None
                   ) -> ChainThoughts | None:
    """What ``prompts.thoughts: prompt`` shows with each chain; None under the other settings. Arguments as
    :func:`write_thoughts`.

    Raises:
        ValueError: the teacher gave up on a chain that a prompt would show.
    """
    if work.config.prompts.thoughts != "prompt":
        return None
    written = write_thoughts(work, queries, prepared)
    missing = sum(thought is None for thought in written.values())
    if missing:
        raise ValueError(f"prompts.thoughts 'prompt' needs a thought for every chain; teacher "
                         f"{work.config.thoughts.teacher!r} gave up on {missing} of {len(written)}; raise "
                         "thoughts.attempts or use thoughts.teacher: template")
    brief = work.config.prompts.detail == "brief"
    return {chain: thought.one_line if brief else " ".join(thought.statements)
            for chain, thought in written.items() if thought is not None}


def thoughts_stage(work: Workspace) -> dict[str, Any]:
    """Write thoughts, the tokenizer and the SFT examples.

    Returns:
        Counts: thoughts written and given up, examples by kind, prompts shortened, lengths in tokens, and the
        statement counts of the ranking targets (the reward's band comes from them).
    """
    prepared, c = work.prepared, work.config
    sft, rl, held_out = prepared.queries["sft"], prepared.queries["rl"], work.held_out("sft")
    unread = _are_unread(c)
    if unread:
        say("thoughts: none are written, since nothing of this run would read them")
    everything = _unwritten(work, [*sft, *held_out]) if unread else write_thoughts(work, [*sft, *held_out])
    written = {chain: everything[chain] for chain in _unwritten(work, sft)} if held_out else everything
    shown = shown_thoughts(work, [*sft, *rl, *held_out, *work.held_out("grpo")])
    tokenizer = _make_tokenizer(work, written, shown)
    with bar("render", len(sft), "prompts") as progress:
        rendered = render_queries(prepared, sft, c.prompts, tokenizer, shown, advance=progress.advance)
    examples = sft_examples(work, rendered, written)
    write_json_lines(work.run.folder("thoughts") / "sft.jsonl", map(asdict, examples))
    held_out_examples(work, everything)
    lengths = _lengths(tokenizer, examples)
    count = sum(thought is not None for thought in written.values())
    result = {
        "teacher": c.thoughts.teacher, "thoughts": count, "given_up": 0 if unread else len(written) - count,
        "examples": dict(Counter(e.kind for e in examples)),
        **_costs(work), **count_dropped(rendered), "tokens": lengths,
        "ranking_statements": [e.statements for e in examples if e.kind == "ranking"],
        "tokenizer": tokenizer.fingerprint, "vocab_size": tokenizer.vocab_size,
    }
    say(f"thoughts: {result['thoughts']} written, {result['given_up']} given up; examples {result['examples']}; "
        f"{result['shortened_prompts']} prompts lost {result['dropped_chains']} chains to the limit; "
        f"tokens {lengths}")
    return result


def held_out_examples(work: Workspace, written: Written | None = None) -> list[TextExample]:
    """What the SFT examples would be if they were of the validation queries that ``sft.eval_every`` asks for; none
    unless it does. They are kept beside the others, so that a later stage asks no teacher for them.

    Args:
        work: the run.
        written: thoughts on all of their chains; None has those written that the store lacks.
    """
    queries, path = work.held_out("sft"), work.run.folder("thoughts") / "held_out.jsonl"
    if not queries:
        return []
    kept = read_examples(path) if path.exists() else []
    if [e.example_id for e in kept if e.kind == "ranking"] == [query.query_id for query in queries]:
        return kept
    if written is None:
        written = _unwritten(work, queries) if _are_unread(work.config) else write_thoughts(work, queries)
    rendered = render_queries(work.prepared, queries, work.config.prompts, work.tokenizer,
                              shown_thoughts(work, queries))
    examples = sft_examples(work, rendered, written)
    write_json_lines(path, map(asdict, examples))
    return examples


def _are_unread(config: TrainConfig) -> bool:
    """Whether no prompt, example or text of the run has a thought in it."""
    return not (rankings_or_sft_read_thoughts(as_plain(config))
                or (config.trains_backbone and config.pretrain.mix.thoughts))


def _unwritten(work: Workspace, queries: Sequence[Query]) -> Written:
    return {chain: None for query in queries for chain in distinct_chains(work.prepared, query, work.config.prompts)}


def sft_examples(work: Workspace, rendered: Sequence[RenderedQuery], written: Written) -> list[TextExample]:
    """All examples of these queries, rankings and thoughts."""
    return [*ranking_examples(work, rendered, written), *thought_examples(work, rendered, written)]


def _costs(work: Workspace) -> dict[str, Any]:
    """What the teacher cost, where it cost anything."""
    if work.config.thoughts.teacher != "endpoint":
        return {}
    from r2rec_jax.stages.endpoint import spent

    return {"endpoint": spent(work)}


def ranking_examples(work: Workspace, rendered: Sequence[RenderedQuery], written: Written) -> list[TextExample]:
    """One example a query: the ranking prompt, and reasoning and ranking as the target."""
    config = work.config.prompts
    examples = []
    for r in rendered:
        target = _ranking_target(work, r.query, r.view, written, len(r.chains))
        completion = target.completion(r.view, config, opened_think=r.chat.opened_think)
        parsed = parse_completion(completion, form=config.answer.form, titles=r.labels,
                                  opened_think=r.chat.opened_think)
        examples.append(TextExample(r.query.query_id, "ranking", r.text, completion, parsed.statements))
    return examples


def thought_examples(work: Workspace, rendered: Sequence[RenderedQuery], written: Written) -> list[TextExample]:
    """Chain -> (thought, rating) examples, ``sft.thought_weight`` for each ranking example, evenly over the queries."""
    config = work.config
    domain = config.prompts.template(work.prepared.dataset.domain)
    pool = []
    for r in rendered:
        for number, chain in enumerate(r.view.chains):
            thought = written[chain]
            if thought is not None:
                order = pick(range(2**62), str(config.train_seed), r.query.query_id, str(number))
                pool.append((number, order, r, chain, thought))
    pool.sort(key=lambda entry: entry[:2])
    wanted = round(config.sft.thought_weight * len(rendered))
    examples = []
    for number, _, r, chain, thought in pool[:wanted]:
        completion = render_thought_completion(thought.statements, thought.rating, opened_think=r.chat.opened_think)
        examples.append(TextExample(f"{r.query.query_id}/chain-{number}", "thought", render_thought(chain, domain),
                                    completion, len(thought.statements)))
    return examples


def read_examples(path: Path) -> list[TextExample]:
    """The examples that the stage wrote."""
    return [TextExample(**json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _ranking_target(work: Workspace, query: Query, view: Any, written: Written, kept: int) -> RankingTarget:
    scores = work.prepared.item_scores
    return write_ranking_target(
        view, [written[chain] for chain in view.chains], query.candidates.index(query.target),
        [float(scores[i]) for i in query.candidates], work.config.prompts, f"{work.config.train_seed}/{query.query_id}",
        kept)


def _make_tokenizer(work: Workspace, written: Written, shown: ChainThoughts | None) -> Tokenizer:
    """Keep the backbone's tokenizer with the run, or train the ``tiny`` one on all that it will have to write."""
    prepared, config, backbone = work.prepared, work.config.prompts, work.config.backbone
    names = [item_name(item) for item in prepared.dataset.items] if backbone.has_item_tokens else ()
    if not work.is_tiny:
        tokenizer = work.source_tokenizer()
        (tokenizer.with_words(names) if names else tokenizer).save(work.tokenizer_dir)
        return work.tokenizer
    texts = []
    for query in [*prepared.queries["sft"], *prepared.queries["rl"]]:
        view = make_view(prepared, query, config, shown)
        texts.append(render_ranking(view, config).text)
        if query.split == "sft":
            target = _ranking_target(work, query, view, written, len(view.chains))
            texts.append(target.completion(view, config, opened_think=False))
            for chain in view.chains:
                texts.append(render_thought(chain, view.domain))
                thought = written[chain]
                if thought is not None:
                    texts.append("\n".join([*thought.statements, thought.one_line]))
    texts += [item.title for item in prepared.dataset.items]
    return train_tokenizer(texts, backbone.tiny.vocab_size, work.tokenizer_dir, words=names)


def _lengths(tokenizer: Tokenizer, examples: Sequence[TextExample]) -> dict[str, dict[str, int]]:
    """Median and longest prompt and completion by kind, in tokens."""
    lengths: dict[str, dict[str, int]] = {}
    for kind in dict.fromkeys(e.kind for e in examples):
        mine = [e for e in examples if e.kind == kind]
        prompts = [len(tokenizer.chat(e.prompt).ids) for e in mine]
        completions = [len(tokenizer.encode_completion(e.completion)) + 1 for e in mine]
        lengths[kind] = {"prompt_median": int(np.median(prompts)), "prompt_max": max(prompts),
                         "completion_median": int(np.median(completions)), "completion_max": max(completions)}
    return lengths
