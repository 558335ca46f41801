"""The plain PyTorch GraphSAGE that ours is timed against is the same model: loss and gradients, in float32."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from r2rec_jax.baselines.classical.graphsage import GraphSAGE
from r2rec_jax.baselines.events import Events
from r2rec_jax.bench.recbole_batches import graph_work
from r2rec_jax.bench.recbole_worker import DataSet, PlainGraphSAGE
from r2rec_jax.config.baselines import GraphSAGEConfig

torch = pytest.importorskip("torch")


def test_loss_and_gradients_equal_ours() -> None:
    rng = np.random.default_rng(0)
    counts = [4, 0, 6, 3, 5]
    items = np.concatenate([rng.permutation(11)[:count] for count in counts]).astype(np.int32)
    events = Events(5, 11, np.concatenate([[0], np.cumsum(counts)]), items, np.ones(len(items), bool))
    model = GraphSAGE(GraphSAGEConfig(dim=6, l2=0.05), events)
    params = model.init(key=jax.random.key(3))
    (batch,) = model.batches(seed=0, epoch=0)
    run = jax.jit(jax.value_and_grad(lambda p, graph: model.loss(p, batch, constants=graph, key=jax.random.key(0))))
    loss, grads = run(params, model.constants)

    work = graph_work(model, batch)
    ours = {path[0]: np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(params)}
    theirs = PlainGraphSAGE(work.settings, DataSet({"n_users": work.n_users, "n_items": work.n_items}, work.arrays),
                            ours)
    value = theirs.calculate_loss({name: torch.tensor(array) for name, array in work.arrays.items()})
    value.backward()
    np.testing.assert_allclose(float(loss), value.item(), atol=1e-5)
    for path, grad in nnx.to_flat_state(grads):
        np.testing.assert_allclose(grad[...], theirs.weights[path[0]].grad.numpy(), atol=1e-5, err_msg=path[0])
