"""Grouped decoding: each prompt is prefilled once for its whole group, then tokens are drawn inside one jitted loop.

    prompts --prefill--> prefix K/V per prompt, last hidden state --> first token of every row
            --segments--> a while loop over tokens: layers, head, top-p, until all rows ended or the segment is full

- The first end token is kept and scored; rows that ended emit the pad id and are no cost to the result. A row that
  reaches ``max_new_tokens`` without an end token is returned with ``finished`` False.
- The noise of a row is ``fold_in(fold_in(key, row_id), token index)``: it does not depend on the other rows, on
  padding or on compaction.
- Shapes come from buckets, so a second call in the same bucket compiles nothing. Between segments the host looks at
  what ended: it reports progress, enlarges the suffix cache when it is full, and drops prompts that are complete.
- SmolLM2-135M in float32, 8 samples of a 512-token prompt, 64 new tokens, CPU seconds on two shared cores: decoding 4.4
  with ``merged`` layers and 5.7 with ``stored`` ones (its matrix products alone 3.7), prefill 1.4, merging 0.25
  (merged layers took activations of another layout then).
- On a mesh the prompts are dealt out to its row shards, longest last, and stay there: a prefill pass takes as many
  prompts of each shard, and compaction drops them within a shard. Bucket sizes then count for one shard.
- The adapter and the backbone are arguments of every jitted function, never constants in it: a changed adapter
  changes the next rollout without a new compile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Key

from r2rec_jax.models.attention import AttentionBackend
from r2rec_jax.models.llama import LlamaConfig
from r2rec_jax.parallel.compiling import Compiled, Report, silent
from r2rec_jax.parallel.mesh import row_shards
from r2rec_jax.parallel.sharding import place_rows, replicate
from r2rec_jax.sampling.program import (
    DecodeState,
    Sampling,
    empty_caches,
    first_tokens,
    join_last,
    place_layer,
    prefill,
    reshape_cache,
    reshape_rows,
    segment,
)
from r2rec_jax.sampling.rollout import OnProgress, Rollout, Rows
from r2rec_jax.sampling.sampler import check_sampling
from r2rec_jax.sampling.step import Cache, MergedLayer, merge_layer


@dataclass(frozen=True)
class Buckets:
    """Sizes that shapes are rounded up to.

    Attributes:
        prompt_tokens: prefill rows are padded to a multiple of this.
        prefill_tokens: padded prompt tokens of one prefill pass (at least one prompt).
        segment: first size of the suffix cache; it doubles when it is full.
        look_every: tokens between two looks of the host.
        compact_rows: prompts that ended are dropped, down to half the batch or less, only while more rows than this are
            decoded. SmolLM2-135M on a CPU, 8 prompts x 4 of which two outlast the others (128 tokens against 21-48):
            16.9 s of CPU against 22.5 s without, for one more compile of 3.6 s; the MLP products of 64 rows cost 3.2
            times those of 8, and those of 8 only 1.5 times those of one.
    """

    prompt_tokens: int = 128
    prefill_tokens: int = 4096
    segment: int = 256
    look_every: int = 64
    compact_rows: int = 16


def usual_buckets() -> Buckets:
    """On a CPU every row costs time, elsewhere every shape does: a step takes as long as reading the weights, a compile
    that of hundreds of steps. So there caches begin larger, and rows that ended stay (not measured: no device was to be
    had)."""
    return Buckets() if jax.default_backend() == "cpu" else Buckets(segment=512, compact_rows=2 ** 31)


def size_bucket(count: int, smallest: int = 1) -> int:
    """The least of smallest x (1, 2, 3, 4, 6, 8, 12, 16, ...) that is >= count.

    Example:
        >>> [size_bucket(n) for n in (1, 3, 5, 7, 9, 13)], size_bucket(400, 64)
        ([1, 3, 6, 8, 12, 16], 512)
    """
    power = 1
    while smallest * power < count:
        if power >= 2 and smallest * power * 3 // 2 >= count:
            return smallest * power * 3 // 2
        power *= 2
    return smallest * power


class Decoder:
    """Draws groups of completions; see the module's docstring.

    Args:
        graphdef: of :func:`r2rec_jax.models.llama.split_llama`.
        config: the backbone's shape.
        end_ids: tokens that end a row; with none, every row has exactly ``max_new_tokens``.
        pad_id: written after the end.
        layout: how the layers' weights are read (:mod:`r2rec_jax.sampling.step`); ``auto`` is ``merged`` in float32 on
            a CPU and ``stored`` elsewhere.
        attention: backend of the prefill.
        buckets: sizes; :func:`usual_buckets` when not given.
        mesh: where ``lora`` and ``base`` are placed; None for a single device.
    """

    def __init__(
        self, graphdef: Any, config: LlamaConfig, end_ids: Sequence[int], pad_id: int, *,
        layout: Literal["auto", "stored", "merged"] = "auto", attention: AttentionBackend = "auto",
        buckets: Buckets | None = None, mesh: Mesh | None = None,
    ) -> None:
        bad = [i for i in (*end_ids, pad_id) if not 0 <= i < config.vocab_size]
        if bad:
            raise ValueError(f"end_ids and pad_id must be in 0..{config.vocab_size - 1}; "
                             f"got end_ids {tuple(end_ids)}, pad_id {pad_id}")
        self.graphdef, self.config = graphdef, config
        self.end_ids, self.pad_id = tuple(end_ids), pad_id
        self.layout, self.attention = layout, attention
        self.buckets = buckets or usual_buckets()
        self.mesh, self.shards = mesh, row_shards(mesh)
        self._compiled = Compiled(mesh)
        self._on_compile: Report = silent

    @property
    def compilations(self) -> int:
        """How many programs have been compiled so far."""
        return len(self._compiled)

    def generate(
        self, lora: nnx.State, base: nnx.State, prompts: Sequence[Sequence[int]], *, group: int, max_new_tokens: int,
        temperature: float, top_p: float, key: Key[Array, ""], row_ids: np.ndarray | Sequence[int] | None = None,
        on_compile: Report = silent, on_progress: OnProgress | None = None,
    ) -> Rollout:
        """Draw ``group`` completions of every prompt.

        Args:
            lora, base: the policy.
            prompts: token ids, each at least one.
            group: G, rows a prompt.
            max_new_tokens: T, the limit in tokens, the end token included.
            temperature: >= 0; 0 is greedy.
            top_p: in (0, 1].
            key: typed PRNG key of this call.
            row_ids: P x G distinct integers that the rows' noise is folded from; 0, 1, 2, ... when not given. Give ids
                of your own when the same key serves several calls.
            on_compile: told (program, seconds) after each compilation.
            on_progress: told how many tokens came since the last time it was called.

        Raises:
            ValueError: an empty prompt, a token outside the vocabulary, a row longer than the model's positions, or a
                number out of range.
        """
        self._check(prompts, group, max_new_tokens, temperature, top_p)
        self._on_compile = on_compile
        ids = np.arange(len(prompts) * group) if row_ids is None else np.asarray(row_ids)
        if ids.size != len(prompts) * group or len(np.unique(ids)) != ids.size or ids.min() < 0 or ids.max() >= 2**31:
            raise ValueError(f"row_ids must be {len(prompts)} x {group} distinct integers in 0..2**31 - 1; got shape "
                             f"{ids.shape}, {len(np.unique(ids))} distinct in {ids.min()}..{ids.max()}")
        rule = Sampling(greedy=temperature == 0, cut=top_p < 1, end_ids=self.end_ids, pad_id=self.pad_id)
        numbers = (np.float32(temperature), np.float32(top_p))
        key = replicate(key, self.mesh)
        places = self._places([len(p) for p in prompts])
        filled = [prompts[i] if i >= 0 else [self.pad_id] for i in places]
        filled_ids = np.where(places[:, None] >= 0, ids.reshape(-1, group)[places], 0).astype(np.int32)
        state = self._start(lora, base, filled, filled_ids, places >= 0, max_new_tokens, rule, key, numbers)
        rows = Rows(places, len(prompts), group, max_new_tokens, self.pad_id)
        merged = self._merged(lora, base)
        self._decode(merged, lora, base, state, rows, rule, key, numbers, on_progress)
        return rows.rollout()

    def _check(self, prompts: Sequence[Sequence[int]], group: int, limit: int, temperature: float, top_p: float
               ) -> None:
        check_sampling(temperature, top_p)
        if group < 1 or limit < 1 or not prompts:
            raise ValueError("group, max_new_tokens and the number of prompts must be >= 1; "
                             f"got {group}, {limit}, {len(prompts)}")
        for i, prompt in enumerate(prompts):
            if not len(prompt) or min(prompt) < 0 or max(prompt) >= self.config.vocab_size:
                raise ValueError(f"every prompt must hold token ids in 0..{self.config.vocab_size - 1}, at least one; "
                                 f"got {len(prompt)} tokens in prompt {i}")
        longest = max(len(p) for p in prompts) + limit
        if longest > self.config.max_positions:
            raise ValueError(f"prompt and completion must fit the backbone's {self.config.max_positions} positions; "
                             f"got {longest}: lower max_new_tokens or the prompt limit")

    def _places(self, lengths: Sequence[int]) -> np.ndarray:
        """Which prompt each row of the device batch holds, -1 for none: by length, dealt out to the shards.

        Example: lengths 5 1 3 in two shards give rows [-1, 2 | 1, 0].
        """
        count = self.shards * size_bucket(-(-len(lengths) // self.shards))
        order = np.concatenate([np.full(count - len(lengths), -1), np.argsort(lengths, kind="stable")])
        return order.reshape(-1, self.shards).T.reshape(-1)

    def _start(
        self, lora: nnx.State, base: nnx.State, prompts: Sequence[Sequence[int]], row_ids: np.ndarray,
        alive: np.ndarray, limit: int, rule: Sampling, key: Array, numbers: tuple[Any, Any],
    ) -> DecodeState:
        """Prefill the prompts and draw every row's first token."""
        count, group = row_ids.shape
        lengths = np.array([len(p) for p in prompts], np.int32)
        capacity = min(self.buckets.segment, -(-limit // 32) * 32)
        slots = size_bucket(int(lengths.max()), self.buckets.prompt_tokens)
        sizes = (self.config, count, group, slots, capacity, jax.tree.leaves(base)[0].dtype)
        caches = empty_caches(*sizes) if self.mesh is None else self._call(
            "empty caches", empty_caches, sizes, (), key=sizes[1:])
        caches, hidden = self._prefill(lora, base, prompts, caches)
        rows = [place_rows(x, self.mesh) for x in (lengths, alive, row_ids)]
        state = self._call(
            "first token", first_tokens, (self.graphdef, rule, capacity), (lora, base, hidden, *rows, key, *numbers),
            key=(count, group, capacity, rule))
        return replace(state, caches=caches)

    def _prefill(
        self, lora: nnx.State, base: nnx.State, prompts: Sequence[Sequence[int]], caches: tuple[Cache, ...],
    ) -> tuple[tuple[Cache, ...], Array]:
        """Keys, values and last hidden states of all prompts (sorted by length in each shard), a few a pass."""
        unit, count, kv_heads = self.buckets.prompt_tokens, len(prompts) // self.shards, self.config.kv_heads
        slots = caches[0].prefix_k.shape[2]
        starts, hidden = [], []
        rows = max(1, min(count, self.buckets.prefill_tokens // slots))
        for begin in range(0, count, rows):
            at = min(begin, count - rows)  # the last pass may repeat some prompts of the one before
            chosen = [prompts[shard * count + at + i] for shard in range(self.shards) for i in range(rows)]
            lengths = np.array([len(p) for p in chosen], np.int32)
            width = -(-int(lengths.max()) // unit) * unit
            tokens = np.full((len(chosen), width), self.pad_id, np.int32)
            for row, prompt in zip(tokens, chosen, strict=True):
                row[:len(prompt)] = prompt
            inputs = [place_rows(x, self.mesh) for x in (tokens, lengths)]
            done = self._call("prefill", prefill, (self.graphdef, self.attention), (lora, base, *inputs),
                              key=(len(chosen), width))
            starts.append(begin - at)
            hidden.append(done.last)
            place = np.int32(at * kv_heads)
            caches = tuple(
                self._call("place", place_layer, (self.shards,),
                           (cache, done.keys, done.values, np.int32(layer), place),
                           key=(*cache.suffix_k.shape, count, slots, rows, width), donate=(0,))
                for layer, cache in enumerate(caches))
        if len(hidden) == 1:
            return caches, hidden[0]
        joined = self._call("join", join_last, (self.shards, tuple(starts)), (tuple(hidden),), key=(count, *starts))
        return caches, joined["last"]

    def _merged(self, lora: nnx.State, base: nnx.State) -> tuple[MergedLayer, ...] | None:
        layout = self.layout
        if layout == "auto":
            plain = jax.default_backend() == "cpu" and all(x.dtype == jnp.float32 for x in jax.tree.leaves(base))
            layout = "merged" if plain else "stored"
        if layout == "stored":
            return None
        return tuple(self._call("merge", merge_layer, (self.graphdef,), (lora, base, np.int32(i)), key=())
                     for i in range(self.config.layers))

    def _decode(
        self, merged: tuple[MergedLayer, ...] | None, lora: nnx.State, base: nnx.State, state: DecodeState,
        rows: Rows, rule: Sampling, key: Array, numbers: tuple[Any, Any], on_progress: OnProgress | None,
    ) -> None:
        """Run segments until every row has ended; finished prompts leave at the boundaries."""
        sizes = self.buckets
        while True:
            alive = rows.collect(state, on_progress)
            step = int(state.step)
            if not alive.any() or step >= rows.limit:
                return
            _, group, capacity = state.tokens.shape
            alive = alive.reshape(self.shards, -1)
            held = alive.shape[1]
            wanted, room = size_bucket(int(alive.sum(axis=1).max())), capacity
            few = held * group <= sizes.compact_rows or rows.limit - step <= sizes.look_every
            if wanted * 2 > held or few:
                wanted = held
            if step == capacity:
                room = min(2 * capacity, -(-rows.limit // 32) * 32)
            if wanted != held or room != capacity:
                keep = np.argsort(~alive, axis=1, kind="stable")[:, :wanted].astype(np.int32)
                rows.keep((np.arange(self.shards)[:, None] * held + keep).reshape(-1))
                state = self._reshape(state, keep, room)
            stop = np.int32(min(step + sizes.look_every, room, rows.limit))
            state = self._call("decode", segment, (self.graphdef, rule),
                               (merged, lora, base, state, key, stop, *numbers),
                               key=(*_shape(state), rule), donate=(3,))

    def _reshape(self, state: DecodeState, keep: np.ndarray, capacity: int) -> DecodeState:
        """The state with these prompts of each shard and this suffix capacity; the caches of the old one are gone."""
        prompts, key = len(state.done), (*_shape(state), keep.size, capacity)
        caches = []
        for cache in state.caches:
            caches.append(self._call("reshape cache", reshape_cache, (capacity, prompts), (cache, keep), key=key))
            for old in jax.tree.leaves(cache):  # one layer's at a time lie side by side, not the whole model's
                old.delete()
        rows = self._call("reshape", reshape_rows, (capacity, self.pad_id), (replace(state, caches=()), keep), key=key)
        return replace(rows, caches=tuple(caches))

    def _call(self, what: str, function: Callable[..., Any], static: tuple[Any, ...], args: tuple[Any, ...], *,
              key: tuple[Any, ...], donate: tuple[int, ...] = ()) -> Any:
        """Run ``function(*static, *args)``, compiled once for each (what, key)."""
        name = f"{what} {'x'.join(str(k) for k in key if isinstance(k, int))}".strip()
        return self._compiled.run((what, key), name, lambda *a: function(*static, *a), args, donate=donate,
                                  report=self._on_compile)


def _shape(state: DecodeState) -> tuple[int, int, int, int]:
    prompts, group, capacity = state.tokens.shape
    return prompts, group, state.caches[0].prefix_k.shape[2], capacity
