"""Pretraining: rows of a token stream, all parameters trained, resumed bit for bit."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.config import PretrainConfig
from r2rec_jax.training.pretrain import Text, pack_texts, pretrain_graphdef, row_batch, train_pretrain
from r2rec_jax.training.updates import Updates

CONFIG = PretrainConfig(steps=6, batch_size=2, max_tokens=16, lr=1e-2, checkpoint_every=3)


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=8), st.integers(2, 10))
def test_rows_hold_every_token_once_and_cut_only_what_is_longer_than_a_row(texts, length):
    rows = pack_texts([Text.whole(text) for text in texts], length, seed=0)
    assert sorted(t for row in rows for part in row for t in part.ids) == sorted(t for text in texts for t in text)
    assert all(sum(len(part.ids) for part in row) <= length for row in rows)
    parts = sorted(part.ids for row in rows for part in row)
    assert parts == sorted(tuple(text[i:i + length]) for text in texts for i in range(0, len(text), length))


def test_worked_example():
    batch = row_batch([[Text.whole([5, 6, 7]), Text.whole([8, 9])]], 2, 6)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 0], [0] * 6]
    assert batch.segments.tolist()[0] == [1, 1, 1, 2, 2, 0]
    assert batch.positions.tolist()[0] == [0, 1, 2, 0, 1, 0]
    assert batch.target_index.tolist()[0][:3] == [0, 1, 3]
    assert batch.target_tokens.tolist()[0][:3] == [6, 7, 9]
    assert batch.target_weights.tolist() == [[1, 1, 1, 0, 0, 0], [0] * 6]


def test_what_is_not_trained_is_read_only():
    batch = row_batch([[Text.whole([1, 2]), Text((5, 6, 7, 8), (True, False, False, True))]], 1, 7)
    assert batch.tokens.tolist()[0] == [1, 2, 5, 6, 7, 8, 0]
    assert batch.target_index.tolist()[0][:2] == [0, 4] and batch.target_tokens.tolist()[0][:2] == [2, 8]
    assert batch.target_weights.tolist()[0] == [1, 1, 0, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="an entry a token; got 1 for 2 tokens"):
        Text((1, 2), (True,))


@pytest.fixture
def texts():
    rng = np.random.default_rng(0)
    return [Text.whole((np.arange(rng.integers(5, 30)) % 5 + 10).tolist()) for _ in range(20)]


def test_it_learns_and_resumes_bit_for_bit(tiny, llama_config, texts, checkpoints, monkeypatch, trees_equal):
    model, base = replace(tiny[0], graphdef=pretrain_graphdef(llama_config)), jax.device_get(tiny[0].base)
    losses, original = [], Updates.run

    def run(name, stop=None):
        own = checkpoints("pretrain", name, lora=None)

        def wrapped(self, *args):
            if len(losses) == stop:
                raise SystemExit
            state, values = original(self, *args)
            losses.append(values["loss"])
            return state, values

        monkeypatch.setattr(Updates, "run", wrapped)
        try:
            return train_pretrain(model, [texts[:5], texts[5:]], CONFIG, seed=0, checkpoints=own)
        finally:
            own.close()

    whole = run("whole")
    assert losses[-1] < 0.5 * losses[0], losses
    assert trees_equal(base, model.base) and not trees_equal(base, whole.params)
    losses.clear()
    with pytest.raises(SystemExit):
        run("parts", stop=4)
    assert trees_equal(whole.params, run("parts").params)
    assert len(losses) == 4 + 3, "resumed after step 3"
