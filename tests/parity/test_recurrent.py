"""What the sequence baselines compute: GRUs against PyTorch, the catalogue loss against its plain form, causality."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r2rec_jax.baselines.classical import config_class, make_model
from r2rec_jax.baselines.classical.gru4rec import run_gru
from r2rec_jax.baselines.classical.softmax import catalogue_loss
from r2rec_jax.baselines.events import Events

torch = pytest.importorskip("torch")


def test_gru_equals_torch_forward_and_backward():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 7, 5)).astype(np.float32)
    cotangent = rng.normal(size=(3, 7, 4)).astype(np.float32)
    theirs = torch.nn.GRU(5, 4, batch_first=True)
    weights = {name: value.detach().numpy() for name, value in theirs.named_parameters()}
    inputs = torch.tensor(x, requires_grad=True)
    states, _ = theirs(inputs)
    states.backward(torch.tensor(cotangent))

    def ours(x, weight, bias):
        gates = x @ weights["weight_ih_l0"].T + weights["bias_ih_l0"]
        return run_gru(gates, jnp.arange(7)[None] == jnp.zeros((3, 1), int), weight, bias)

    recurrent = jnp.asarray(weights["weight_hh_l0"].T), jnp.asarray(weights["bias_hh_l0"])
    got, pull = jax.vjp(ours, jnp.asarray(x), *recurrent)
    np.testing.assert_allclose(got, states.detach().numpy(), atol=1e-5)
    d_x, d_weight, d_bias = pull(jnp.asarray(cotangent))
    np.testing.assert_allclose(d_x, inputs.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(d_weight, theirs.weight_hh_l0.grad.numpy().T, atol=1e-4)
    np.testing.assert_allclose(d_bias, theirs.bias_hh_l0.grad.numpy(), atol=1e-4)


@pytest.mark.parametrize("count", [0, 5, 9])
def test_catalogue_loss_equals_the_plain_form(count):
    rng = np.random.default_rng(count)
    hidden, table, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((9, 6), (13, 6), (13,)))
    targets = jnp.asarray(rng.integers(0, 13, 9))

    def plain(hidden, table, bias):
        chosen = jnp.take_along_axis(jax.nn.log_softmax(hidden @ table.T + bias), targets[:, None], 1)[:, 0]
        return -jnp.sum(jnp.where(jnp.arange(9) < count, chosen, 0)) / max(count, 1)

    def ours(hidden, table, bias):
        return catalogue_loss(hidden, targets, jnp.asarray(count), table, bias)

    expected = jax.value_and_grad(plain, argnums=(0, 1, 2))(hidden, table, bias)
    got = jax.value_and_grad(ours, argnums=(0, 1, 2))(hidden, table, bias)
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_a_future_item_changes_no_earlier_state_and_windows_do_not_see_each_other(name):
    histories = [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    offsets = np.array([0, 6, 9])
    events = Events(2, 12, offsets, np.concatenate(histories).astype(np.int32), np.ones(9, bool))
    model = make_model(name, config_class(name)(max_events=10), events)
    params = model.init(key=jax.random.key(0))
    (rows,) = model.batches(seed=0, epoch=0)

    def states(items):
        return np.asarray(nnx.merge(model.graphdef, params).hidden(rows._replace(items=jnp.asarray(items)), None))

    before = states(rows.items)
    row, column = next((r, c) for r, c in np.ndindex(rows.items.shape)
                       if rows.segments[r, c] > 0 and rows.positions[r, c] == 2)
    changed = np.array(rows.items)
    changed[row, column] = 11
    after = states(changed)
    same = rows.segments[row] == rows.segments[row, column]
    later = same & (rows.positions[row] >= 2)
    real = rows.segments[row] > 0
    np.testing.assert_allclose(after[row][real & ~later], before[row][real & ~later], atol=1e-6)
    assert np.abs(after[row][later] - before[row][later]).max() > 1e-6
