"""The device programs of the decoder: plain functions of arrays that :class:`r2rec_jax.sampling.decoder.Decoder`
compiles for each bucket.

Slots and steps, for a prompt of 3 tokens and completion tokens a b c:

    step before a segment         1             2             3
    tokens                        a . .         a b .         a b c
    keys and values in suffix     -             a             a b
    one turn: read token[step - 1], write its K/V to slot step - 1 (RoPE position 3 + step - 1), draw token[step]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from r2rec_jax.models.attention import AttentionBackend, attend_segments, resolve_backend
from r2rec_jax.models.llama import Llama, LlamaConfig, merge_llama
from r2rec_jax.models.products import multiply
from r2rec_jax.sampling.sampler import row_keys, sample
from r2rec_jax.sampling.step import Cache, MergedLayer, Place, merged_step, stored_step


@dataclass(frozen=True)
class Sampling:
    """What is decided when a program is compiled; temperature and top-p themselves are arguments.

    Attributes:
        greedy: take the largest logit.
        cut: apply top-p.
        end_ids, pad_id: as in the decoder.
    """

    greedy: bool
    cut: bool
    end_ids: tuple[int, ...]
    pad_id: int


@struct.dataclass
class DecodeState:
    """Everything that a call carries from segment to segment.

    Attributes:
        step: tokens drawn so far.
        row_ids: what each row's noise is folded from.
        prompt_lengths: true length of each prompt.
        done: the row has ended (filling rows from the start).
        lengths: tokens of each row, the end token included.
        tokens, logprobs: what was drawn; pad and 0 elsewhere.
        caches: one a layer.
    """

    step: Int[Array, ""]
    row_ids: Int[Array, "P G"]
    prompt_lengths: Int[Array, " P"]
    done: Bool[Array, "P G"]
    lengths: Int[Array, "P G"]
    tokens: Int[Array, "P G T"]
    logprobs: Float[Array, "P G T"]
    caches: tuple[Cache, ...]


def empty_caches(config: LlamaConfig, prompts: int, group: int, slots: int, capacity: int, dtype: Any
                 ) -> tuple[Cache, ...]:
    """Room for prompts of up to ``slots`` tokens and completions of up to ``capacity``; not jitted."""
    batch, width = prompts * config.kv_heads, config.head_dim
    shapes = ((batch, width, slots), (batch, slots, width), (batch * group, width, capacity),
              (batch * group, capacity, width))
    return tuple(Cache(*(jnp.zeros(shape, dtype) for shape in shapes)) for _ in range(config.layers))


@struct.dataclass
class Prefilled:
    """What :func:`prefill` computes of some prompts.

    Attributes:
        keys, values: of every layer, as :class:`r2rec_jax.sampling.step.Cache` holds them.
        last: the final normalised hidden state at each prompt's last token.
    """

    keys: Float[Array, "L CK H S"]
    values: Float[Array, "L CK S H"]
    last: Float[Array, "C D"]


def prefill(
    graphdef: Any, attention: AttentionBackend, lora: nnx.State, base: nnx.State, tokens: Int[Array, "C S"],
    lengths: Int[Array, " C"],
) -> Prefilled:
    """Run some prompts, right-padded to S tokens."""
    model = merge_llama(graphdef, lora, base)
    rows, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), (rows, width))
    real = (positions < lengths[:, None]).astype(jnp.int32)
    parents = jnp.zeros_like(real)
    cos, sin = model.rope(positions)
    layer_def, stack = model.layer_stack()
    backend = resolve_backend(attention, model.embed[...].dtype, model.config.head_dim)

    def block(x: Float[Array, "C S D"], weights: nnx.State) -> tuple[Float[Array, "C S D"], tuple[Array, Array]]:
        layer = nnx.merge(layer_def, weights)
        q, k, v = layer.qkv(x, cos, sin)
        attended = attend_segments(q, k, v, real, parents, backend)
        return layer.finish(x, attended), (k.transpose(0, 2, 3, 1), v.swapaxes(1, 2))

    x, (keys, values) = lax.scan(block, model.embedded(tokens), stack)

    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
    keys, values = (y.reshape(y.shape[0], -1, *y.shape[3:]) for y in (keys, values))
    return Prefilled(keys, values, model.norm(last))


def place_layer(shards: int, cache: Cache, keys: Float[Array, "L CK H S"], values: Float[Array, "L CK S H"],
                layer: Int[Array, ""], at: Int[Array, ""]) -> Cache:
    """Write one layer of a prefill into its cache (donated), from batch row ``at`` = prompt x K of each shard on.

    A program of its own, called once a layer: sixty writes inside the prefill triple its compile time.

    Args:
        shards: parts that the prompts are split into; a pass holds as many prompts of each.
        cache, keys, values, layer, at: what is written where.
    """
    def write(old: Array, new: Array) -> Array:
        split = lambda x: x.reshape(shards, -1, *x.shape[1:])  # noqa: E731
        one = lax.dynamic_index_in_dim(new, layer, keepdims=False)
        return lax.dynamic_update_slice(split(old), split(one), (0, at, 0, 0)).reshape(old.shape)

    return replace(cache, prefix_k=write(cache.prefix_k, keys), prefix_v=write(cache.prefix_v, values))


def join_last(shards: int, starts: tuple[int, ...], parts: tuple[Float[Array, "C D"], ...]) -> dict[str, Array]:
    """The last hidden states of all prompts, from the passes of a prefill.

    Args:
        shards: parts that the prompts are split into.
        starts: how many prompts of each shard a pass repeats from the one before.
        parts: of the passes.
    """
    split = [part.reshape(shards, -1, part.shape[-1])[:, start:] for start, part in zip(starts, parts, strict=True)]
    return {"last": jnp.concatenate(split, axis=1).reshape(-1, parts[0].shape[-1])}


def logits_of(model: Llama, hidden: Float[Array, "B D"]) -> Float[Array, "B V"]:
    """Float32 logits of normalised hidden states."""
    weight, vocab_first = model.stored_head()
    return multiply(model.matmul_dtype or weight.dtype, hidden, weight, turn=vocab_first)


def _draw(rule: Sampling, logits: Float[Array, "B V"], state: DecodeState, key: Key[Array, ""],
          temperature: Float[Array, ""], top_p: Float[Array, ""]) -> DecodeState:
    """Draw token[step] of every row, write it and its log-probability, and move on."""
    shape = state.done.shape
    keys = row_keys(key, state.row_ids.reshape(-1), state.step)
    tokens, logprobs = sample(logits, keys, 0 if rule.greedy else temperature, top_p if rule.cut else 1)
    running = ~state.done
    tokens = jnp.where(running, tokens.reshape(shape), rule.pad_id)
    logprobs = jnp.where(running, logprobs.reshape(shape), 0.0)
    ended = jnp.any(tokens[..., None] == jnp.asarray(rule.end_ids, jnp.int32), axis=-1)
    return replace(
        state,
        step=state.step + 1, done=state.done | ended, lengths=state.lengths + running,
        tokens=lax.dynamic_update_slice_in_dim(state.tokens, tokens[..., None], state.step, axis=2),
        logprobs=lax.dynamic_update_slice_in_dim(state.logprobs, logprobs[..., None], state.step, axis=2))


def first_tokens(
    graphdef: Any, rule: Sampling, capacity: int, lora: nnx.State, base: nnx.State, hidden: Float[Array, "P D"],
    prompt_lengths: Int[Array, " P"], alive: Bool[Array, " P"], row_ids: Int[Array, "P G"], key: Key[Array, ""],
    temperature: Float[Array, ""], top_p: Float[Array, ""],
) -> DecodeState:
    """Draw the first token of every row from the prompts' last hidden states; the state comes without caches.

    Args:
        graphdef: of the model.
        rule: what the program is compiled for.
        capacity: slots of the suffix caches.
        lora, base: the policy.
        hidden: from :func:`prefill`.
        prompt_lengths: true lengths.
        alive: False for prompts that only fill up the bucket; their rows are done from the start.
        row_ids: what each row's noise is folded from.
        key, temperature, top_p: of the draws.
    """
    logits = logits_of(merge_llama(graphdef, lora, base), hidden)
    shape = row_ids.shape
    state = DecodeState(
        step=jnp.int32(0), row_ids=row_ids, prompt_lengths=prompt_lengths,
        done=jnp.broadcast_to(~alive[:, None], shape), lengths=jnp.zeros(shape, jnp.int32),
        tokens=jnp.full((*shape, capacity), rule.pad_id, jnp.int32),
        logprobs=jnp.zeros((*shape, capacity), jnp.float32), caches=())
    return _draw(rule, jnp.repeat(logits, shape[1], axis=0), state, key, temperature, top_p)


def segment(
    graphdef: Any, rule: Sampling, merged: tuple[MergedLayer, ...] | None, lora: nnx.State, base: nnx.State,
    state: DecodeState, key: Key[Array, ""], stop: Int[Array, ""], temperature: Float[Array, ""],
    top_p: Float[Array, ""],
) -> DecodeState:
    """Draw tokens until ``state.step == stop`` or every row has ended.

    Args:
        graphdef: of the model.
        rule: what the program is compiled for.
        merged: merged layers, or None for the ``stored`` layout.
        lora, base: the policy (``lora`` is not read when the layers are merged).
        state: from :func:`first_tokens` or an earlier segment; donated.
        key: of the call.
        stop: at most the suffix capacity.
        temperature, top_p: of the draws.
    """
    model = merge_llama(graphdef, lora, base)
    layer_def, stack = model.layer_stack()
    # Sliced here, outside the loop: inside, XLA would copy every layer's weights once a token.
    layers = merged or tuple(
        nnx.merge(layer_def, jax.tree.map(lambda x: x[i], stack)) for i in range(model.config.layers))  # noqa: B023
    slots, capacity = state.caches[0].prefix_k.shape[2], state.tokens.shape[2]
    prefix_seen = jnp.arange(slots) < state.prompt_lengths[:, None]

    def turn(state: DecodeState) -> DecodeState:
        slot = state.step - 1
        cos, sin = model.rope(state.prompt_lengths + slot)
        place = Place(slot, cos, sin, prefix_seen, jnp.arange(capacity) <= slot)
        x = model.embedded(lax.dynamic_index_in_dim(state.tokens, slot, axis=2, keepdims=False))
        if merged is None:
            x, caches = stored_step(layers, x, state.caches, place)
        else:
            x, caches = merged_step(model.config, layers, x, state.caches, place)
        logits = logits_of(model, model.norm(x).reshape(-1, x.shape[-1]))
        return _draw(rule, logits, replace(state, caches=caches), key, temperature, top_p)

    return lax.while_loop(lambda s: (s.step < stop) & ~jnp.all(s.done), turn, state)


def reshape_rows(capacity: int, pad_id: int, state: DecodeState, keep: Int[Array, "shards P"]) -> DecodeState:
    """Keep some prompts of each shard and make room for ``capacity`` tokens; the caches follow by
    :func:`reshape_cache`."""
    def longer(x: Array, fill: int) -> Array:
        return jnp.pad(_pick(x, keep), ((0, 0), (0, 0), (0, capacity - x.shape[2])), constant_values=fill)

    return DecodeState(
        step=state.step, row_ids=_pick(state.row_ids, keep), prompt_lengths=_pick(state.prompt_lengths, keep),
        done=_pick(state.done, keep), lengths=_pick(state.lengths, keep), tokens=longer(state.tokens, pad_id),
        logprobs=longer(state.logprobs, 0), caches=())


def reshape_cache(capacity: int, prompts: int, cache: Cache, keep: Int[Array, "shards P"]) -> Cache:
    """The same for one layer's cache of ``prompts`` prompts."""
    def pick(x: Array) -> Array:
        return _pick(x.reshape(prompts, -1, *x.shape[1:]), keep).reshape(-1, *x.shape[1:])

    more = capacity - cache.suffix_k.shape[2]
    return Cache(pick(cache.prefix_k), pick(cache.prefix_v), jnp.pad(pick(cache.suffix_k), ((0, 0), (0, 0), (0, more))),
                 jnp.pad(pick(cache.suffix_v), ((0, 0), (0, more), (0, 0))))


def _pick(x: Array, keep: Int[Array, "shards P"]) -> Array:
    """Some rows of each shard, none of which leaves it: places [[1], [0]] of rows a b | c d give b | c."""
    shards = keep.shape[0]
    split = x.reshape(shards, -1, *x.shape[1:])
    return jax.vmap(lambda rows, places: rows[places])(split, keep).reshape(-1, *x.shape[1:])
