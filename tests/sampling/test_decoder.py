"""Grouped decoding against the full forward: tokens, log-probabilities, padding, endings, compiles, adapters."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.config import LoraConfig
from r2rec_jax.models.llama import LlamaConfig, build_llama, merge_llama, split_llama
from r2rec_jax.models.logprobs import row_logprobs
from r2rec_jax.sampling.decoder import Buckets, Decoder, size_bucket
from r2rec_jax.sampling.rollout import Rollout

CONFIG = LlamaConfig(vocab_size=97, hidden_size=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8, rms_eps=1e-5,
                     rope_theta=10000.0, rope_scaling=None, tied=True, max_positions=256)
BUCKETS = Buckets(prompt_tokens=8, segment=32, look_every=8)
PROMPTS = [[5, 6, 7], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21], [30]]
LAYOUTS = ["stored", "merged"]


class Policy:
    """A tiny random model with an adapter that matters, and decoders over it."""

    def __init__(self, config: LlamaConfig = CONFIG, sharpness: float = 6.0) -> None:
        model = build_llama(config, LoraConfig(rank=4, alpha=8.0), jnp.float32, seed=3)
        self.config = config
        self.graphdef, lora, base = split_llama(model)
        leaves, tree = jax.tree.flatten(lora)
        noise = jax.random.split(jax.random.key(9), len(leaves))
        self.lora = jax.tree.unflatten(tree, [x + 0.3 * jax.random.normal(k, x.shape)
                                              for x, k in zip(leaves, noise, strict=True)])
        self.base = jax.tree.map(lambda x: x * sharpness if x.shape == (config.vocab_size, config.hidden_size) else x,
                                 base)

        self.decoders: dict[Any, Decoder] = {}

    def decoder(self, layout: Any = "merged", end_ids: tuple[int, ...] = (2,), buckets: Buckets = BUCKETS) -> Decoder:
        """One decoder for each setting, so that tests share what it compiled."""
        key = (layout, end_ids, buckets)
        if key not in self.decoders:
            self.decoders[key] = Decoder(self.graphdef, self.config, end_ids, 0, layout=layout, buckets=buckets)
        return self.decoders[key]

    def generate(self, decoder: Decoder, prompts: list[list[int]] = PROMPTS, **kwargs: Any) -> Rollout:
        settings = {"group": 3, "max_new_tokens": 12, "temperature": 0.6, "top_p": 0.9, "key": jax.random.key(0)}
        return decoder.generate(self.lora, self.base, prompts, **{**settings, **kwargs})

    def forward(self, rows: list[list[int]]) -> jax.Array:
        """Hidden states of whole rows by the uncached model, right-padded to one length."""
        tokens = np.zeros((len(rows), -(-max(map(len, rows)) // 64) * 64), np.int32)
        for out, row in zip(tokens, rows, strict=True):
            out[: len(row)] = row
        lengths = np.array([len(row) for row in rows])
        return _forward(self.graphdef, self.lora, self.base, tokens, lengths)

    def scores(self, prompts: list[list[int]], rollout: Rollout, temperature: float) -> np.ndarray:
        """Log-probabilities of the rollout's tokens by the full forward over prompt + completion."""
        shape = rollout.tokens.shape
        rows = [[*prompts[p], *rollout.tokens[p, g, : rollout.lengths[p, g]].tolist()]
                for p, g in np.ndindex(shape[:2])]
        starts = np.repeat([len(p) - 1 for p in prompts], shape[1])
        index = np.minimum(starts[:, None] + np.arange(shape[2]), [[len(row) - 1] for row in rows])
        head = merge_llama(self.graphdef, self.lora, self.base).head()
        flat = rollout.tokens.reshape(-1, shape[2])
        found = np.asarray(row_logprobs(self.forward(rows), index, flat, head, temperature)[0]).reshape(shape)
        return np.where(np.arange(shape[2]) < rollout.lengths[..., None], found, 0)


@partial(jax.jit, static_argnums=0)
def _forward(graphdef: Any, lora: Any, base: Any, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    real = (places < lengths[:, None]).astype(jnp.int32)
    return merge_llama(graphdef, lora, base).hidden_states(tokens, places, real, 0 * real, attention="xla")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy()


SHAPES = {"tied": CONFIG, "untied, H != D/N": replace(CONFIG, tied=False, head_dim=12),
          "no GQA": replace(CONFIG, kv_heads=4)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logprobs_equal_the_full_forward(shape: str, layout: str) -> None:
    policy = Policy(SHAPES[shape])
    rollout = policy.generate(policy.decoder(layout))
    assert rollout.lengths.min() >= 1
    np.testing.assert_allclose(rollout.logprobs, policy.scores(PROMPTS, rollout, 0.6), atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_greedy_equals_the_full_forward(policy: Policy, layout: str) -> None:
    rollout = policy.generate(policy.decoder(layout), temperature=0.0, group=2)
    np.testing.assert_allclose(rollout.logprobs, policy.scores(PROMPTS, rollout, 1.0), atol=1e-4)
    assert (rollout.tokens[:, 0] == rollout.tokens[:, 1]).all()
    rows = [[*prompt, *rollout.tokens[p, 0, : rollout.lengths[p, 0]].tolist()] for p, prompt in enumerate(PROMPTS)]
    head = merge_llama(policy.graphdef, policy.lora, policy.base).head()
    best = np.asarray(jnp.argmax(policy.forward(rows) @ head, axis=-1))
    for row, prompt, found in zip(rows, PROMPTS, best, strict=True):
        assert found[len(prompt) - 1 : len(row) - 1].tolist() == row[len(prompt) :]


def test_noise_differs_between_rows_and_calls(policy: Policy) -> None:
    decoder = policy.decoder()
    first = policy.generate(decoder, temperature=1.5, top_p=1.0)
    again = policy.generate(decoder, temperature=1.5, top_p=1.0)
    other = policy.generate(decoder, temperature=1.5, top_p=1.0, key=jax.random.key(1))
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).any(axis=-1).all()
    assert len({tuple(row) for row in first.tokens.reshape(9, -1).tolist()}) == 9
    assert len(set(first.tokens[0, 0].tolist())) > 3, "the noise must not repeat from token to token"


def test_a_row_does_not_depend_on_its_batch(policy: Policy) -> None:
    decoder = policy.decoder()
    together = policy.generate(decoder)
    alone = policy.generate(decoder, [PROMPTS[1]], row_ids=[3, 4, 5])
    np.testing.assert_array_equal(alone.tokens[0], together.tokens[1])
    turned = policy.generate(decoder, PROMPTS[::-1], row_ids=[6, 7, 8, 3, 4, 5, 0, 1, 2])
    np.testing.assert_array_equal(turned.tokens[::-1], together.tokens)
    np.testing.assert_array_equal(turned.finished[::-1], together.finished)


@pytest.mark.parametrize("buckets", [
    replace(BUCKETS, prompt_tokens=64), replace(BUCKETS, prefill_tokens=1), replace(BUCKETS, prefill_tokens=40)],
    ids=["long bucket", "one a pass", "two a pass"])
def test_buckets_change_nothing(policy: Policy, buckets: Buckets) -> None:
    plain, other = policy.generate(policy.decoder()), policy.generate(policy.decoder(buckets=buckets))
    np.testing.assert_array_equal(plain.tokens, other.tokens)
    np.testing.assert_array_equal(plain.lengths, other.lengths)
    np.testing.assert_allclose(plain.logprobs, other.logprobs, atol=1e-5)


def test_prompt_padding_is_never_attended_to(policy: Policy) -> None:
    """The pad id is a token like any other: with another one written into the padding, nothing may change."""
    a = policy.generate(policy.decoder())
    other = Decoder(policy.graphdef, CONFIG, (2,), 77, layout="merged", buckets=BUCKETS)
    b = policy.generate(other)
    np.testing.assert_array_equal(a.logprobs, b.logprobs)
    np.testing.assert_array_equal(a.lengths, b.lengths)
    assert (b.tokens == np.where(np.arange(12) < a.lengths[..., None], a.tokens, 77)).all()


def test_the_end_token_is_kept_and_scored_and_nothing_follows(policy: Policy) -> None:
    free = policy.generate(policy.decoder())
    end = int(free.tokens[0, 0, 4])
    cut = policy.generate(policy.decoder(end_ids=(2, end)))
    length = int(np.argmax(free.tokens[0, 0] == end)) + 1
    assert cut.lengths[0, 0] == length
    assert cut.finished[0, 0]
    assert cut.tokens[0, 0, length - 1] == end
    np.testing.assert_array_equal(cut.tokens[0, 0, :length], free.tokens[0, 0, :length])
    np.testing.assert_allclose(cut.logprobs[0, 0, :length], free.logprobs[0, 0, :length], atol=1e-5)
    assert (cut.tokens[0, 0, length:] == 0).all()
    assert (cut.logprobs[0, 0, length:] == 0).all()


def test_rows_at_the_limit_are_not_finished_unless_they_end_there(policy: Policy) -> None:
    rollout = policy.generate(policy.decoder(), max_new_tokens=5)
    assert rollout.tokens.shape == (3, 3, 5)
    ends = rollout.tokens[np.arange(3)[:, None], np.arange(3), rollout.lengths - 1] == 2
    np.testing.assert_array_equal(rollout.finished, ends)
    assert (rollout.lengths[~ends] == 5).all()
    assert not ends.all()
    p, g = np.argwhere(rollout.lengths == 5)[0]
    ended = policy.generate(policy.decoder(end_ids=(2, int(rollout.tokens[p, g, 4]))), max_new_tokens=5)
    assert ended.finished[p, g]


def test_decoding_stops_when_all_rows_have_ended(policy: Policy) -> None:
    looks: list[int] = []
    every = tuple(range(97))
    rollout = policy.generate(policy.decoder(end_ids=every), max_new_tokens=200, on_progress=looks.append)
    assert (rollout.lengths == 1).all()
    assert rollout.finished.all()
    assert looks == [9]


def test_long_completions_grow_the_suffix_and_drop_finished_prompts(policy: Policy, monkeypatch: pytest.MonkeyPatch
                                                                    ) -> None:
    """Four growths and two compactions against one segment of full size."""
    ends = tuple(range(90, 97))
    plain = policy.decoder(end_ids=ends, buckets=replace(BUCKETS, segment=256))
    grown = policy.decoder(end_ids=ends, buckets=replace(BUCKETS, segment=32, look_every=16, compact_rows=0))
    kwargs = {"max_new_tokens": 150, "temperature": 1.0, "top_p": 1.0, "group": 1, "prompts": [*PROMPTS, [8, 9]]}
    told: list[str] = []
    gone: list[bool] = []

    def reshape(state: Any, *rest: Any) -> Any:
        found = Decoder._reshape(grown, state, *rest)
        gone.extend(x.is_deleted() for x in jax.tree.leaves(state.caches))
        return found

    monkeypatch.setattr(grown, "_reshape", reshape)
    a = policy.generate(plain, **kwargs)
    b = policy.generate(grown, **kwargs, on_compile=lambda what, _: told.append(what))
    assert len(set(a.lengths.ravel().tolist())) > 2
    np.testing.assert_array_equal(a.tokens, b.tokens)
    np.testing.assert_array_equal(a.lengths, b.lengths)
    np.testing.assert_array_equal(a.finished, b.finished)
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
    assert any(what.startswith("reshape") for what in told)
    assert gone and all(gone), "old and new caches lie side by side"


def test_a_device_that_pays_for_compiles_gets_fewer_shapes(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(jax, "default_backend", lambda: "gpu")
        decoder, told = Decoder(policy.graphdef, CONFIG, tuple(range(90, 97)), 0), []
    policy.generate(decoder, PROMPTS * 8, max_new_tokens=100, temperature=1.0, top_p=1.0, group=1,
                    on_compile=lambda what, _: told.append(what.split()[0]))
    assert told.count("decode") == 1 and "reshape" not in told


def test_one_compile_a_bucket(policy: Policy) -> None:
    decoder, told = Decoder(policy.graphdef, CONFIG, (2,), 0, buckets=BUCKETS), []
    policy.generate(decoder, on_compile=lambda what, seconds: told.append((what, seconds)))
    assert decoder.compilations == len(told) and all(seconds > 0 for _, seconds in told)
    policy.generate(decoder, [[40] * 7, [50] * 9, [1, 2]], temperature=0.9, top_p=0.5, max_new_tokens=11,
                    key=jax.random.key(5), on_compile=lambda what, seconds: told.append((what, seconds)))
    assert decoder.compilations == len(told)
    before = len(told)
    policy.generate(decoder, [[40] * 30], on_compile=lambda what, seconds: told.append((what, seconds)))
    assert len(told) > before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rollouts_follow_the_adapter_without_a_compile(policy: Policy, layout: str) -> None:
    decoder = policy.decoder(layout)
    before = policy.generate(decoder, temperature=0.0)
    compiled = decoder.compilations
    other = Policy()
    # With both factors negated the product would be the same: negate one.
    other.lora = jax.tree_util.tree_map_with_path(
        lambda path, x: x if "lora_a" in jax.tree_util.keystr(path) else -x, policy.lora)
    after = other.generate(decoder, temperature=0.0)
    assert decoder.compilations == compiled
    assert (before.tokens != after.tokens).any()
    np.testing.assert_allclose(after.logprobs, other.scores(PROMPTS, after, 1.0), atol=1e-4)


@pytest.mark.parametrize(("change", "message"), [
    ({"prompts": [[1], []]}, "at least one; got 0 tokens in prompt 1"), ({"prompts": [[97]]}, "in 0..96"),
    ({"prompts": []}, ">= 1"), ({"group": 0}, ">= 1"), ({"max_new_tokens": 0}, ">= 1"), ({"top_p": 0.0}, "top_p"),
    ({"max_new_tokens": 250}, "256 positions"), ({"row_ids": [0, 1, 1, 2, 3, 4, 5, 6, 7]}, "distinct")])
def test_bad_input_is_named(policy: Policy, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy.generate(policy.decoder(), **change)


def test_size_buckets() -> None:
    sizes = [size_bucket(n) for n in range(1, 40)]
    assert all(n <= s <= max(n * 1.5, n + 1) for n, s in enumerate(sizes, 1))
    assert [size_bucket(n, 128) for n in (1, 128, 129, 300, 400, 700)] == [128, 128, 256, 384, 512, 768]
