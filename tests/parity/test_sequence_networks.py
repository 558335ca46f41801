"""SASRec, GRU4Rec and Caser against PyTorch modules with the same weights, in float32: states, loss and gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from r2rec_jax.baselines.classical import make_model
from r2rec_jax.baselines.classical.caser import Caser
from r2rec_jax.baselines.events import Events
from r2rec_jax.config.baselines import CaserConfig, GRU4RecConfig, SASRecConfig

torch = pytest.importorskip("torch")

N_ITEMS, WIDTH = 23, 8
LENGTHS = (9, 4, 3, 7, 2, 14, 1)
CONFIGS = {
    "sasrec": SASRecConfig(max_events=10, width=WIDTH, heads=2, feed_forward=12, dropout=0.0, batch_size=5),
    "gru4rec": GRU4RecConfig(max_events=10, width=WIDTH, hidden=6, layers=2, dropout=0.0, batch_size=5),
}


def _events() -> Events:
    rng = np.random.default_rng(1)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    items = np.concatenate([rng.permutation(N_ITEMS)[:count] for count in LENGTHS]).astype(np.int32)
    return Events(len(LENGTHS), N_ITEMS, offsets, items, rng.random(len(items)) < 0.7)


def _drawn(params: Any) -> Any:
    """Parameters of the same structure without zeros, so that no bias goes unnoticed."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(2)
    return jax.tree.unflatten(structure, [jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32) for leaf in leaves])


def _tensors(params: Any) -> dict[str, Any]:
    """Path -> tensor that collects a gradient, kernels as they are in Flax."""
    flat = nnx.to_flat_state(params)
    return {"/".join(map(str, path)): torch.tensor(np.asarray(leaf[...]), requires_grad=True) for path, leaf in flat}


def _load(module: Any, weights: Mapping[str, Any]) -> Callable[..., Any]:
    """The module as a function of its input under these weights, through which gradients reach them."""
    assert {name: tuple(value.shape) for name, value in module.named_parameters()} == {
        name: tuple(value.shape) for name, value in weights.items()}
    return lambda *args, **named: torch.func.functional_call(module, dict(weights), args, named)


def _sasrec_states(config: SASRecConfig, own: Mapping[str, Any]) -> Callable[[Any], Any]:
    blocks = []
    for index in range(config.layers):
        at = f"blocks/{index}/"
        blocks.append(_load(
            torch.nn.TransformerEncoderLayer(config.width, config.heads, config.feed_forward, 0.0, "relu",
                                             batch_first=True, norm_first=True),
            {"self_attn.in_proj_weight": own[at + "qkv/kernel"].T, "self_attn.in_proj_bias": own[at + "qkv/bias"],
             "self_attn.out_proj.weight": own[at + "out/kernel"].T, "self_attn.out_proj.bias": own[at + "out/bias"],
             "linear1.weight": own[at + "up/kernel"].T, "linear1.bias": own[at + "up/bias"],
             "linear2.weight": own[at + "down/kernel"].T, "linear2.bias": own[at + "down/bias"],
             "norm1.weight": own[at + "attention_norm/scale"], "norm1.bias": own[at + "attention_norm/bias"],
             "norm2.weight": own[at + "feed_norm/scale"], "norm2.bias": own[at + "feed_norm/bias"]}))

    def states(x: Any) -> Any:
        length = x.shape[1]
        hidden = x + own["places"][:length]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(length)
        for block in blocks:
            hidden = block(hidden, src_mask=mask, is_causal=True)
        return torch.nn.functional.layer_norm(hidden, (config.width,), own["norm/scale"], own["norm/bias"], 1e-5)

    return states


def _gru4rec_states(config: GRU4RecConfig, own: Mapping[str, Any]) -> Callable[[Any], Any]:
    weights = {}
    for index in range(config.layers):
        at = f"layers/{index}/"
        weights |= {f"weight_ih_l{index}": own[at + "inputs/kernel"].T, f"bias_ih_l{index}": own[at + "inputs/bias"],
                    f"weight_hh_l{index}": own[at + "recurrent"].T, f"bias_hh_l{index}": own[at + "bias"]}
    gru = _load(torch.nn.GRU(config.width, config.hidden, config.layers, batch_first=True), weights)
    return lambda x: gru(x)[0] @ own["out/kernel"] + own["out/bias"]


def _ours(model: Any, params: Any, batch: Any) -> tuple[np.ndarray, float, Any]:
    """States without dropout, the loss, and its gradients."""
    def run(params: Any) -> Any:
        loss = jax.value_and_grad(model.loss)(params, batch, constants={}, key=jax.random.key(0))
        return model.merge(params).hidden(batch, None), *loss

    hidden, loss, grads = jax.jit(run)(params)
    return np.asarray(hidden), float(loss), grads


STATES = {"sasrec": _sasrec_states, "gru4rec": _gru4rec_states}


def _assert_same_gradients(ours: Any, theirs: Mapping[str, Any]) -> None:
    grads = nnx.to_flat_state(ours)
    assert {"/".join(map(str, path)) for path, _ in grads} == set(theirs)
    for path, grad in grads:
        name = "/".join(map(str, path))
        np.testing.assert_allclose(grad[...], theirs[name].grad.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("seen", ["liked", "all"])
@pytest.mark.parametrize("name", ["sasrec", "gru4rec"])
def test_packed_rows_give_what_pytorch_gives_for_each_history_alone(name: str, seen: Any) -> None:
    config = replace(CONFIGS[name], events=seen)
    model: Any = make_model(name, config, _events())
    params = _drawn(model.init(key=jax.random.key(0)))
    (rows,) = model.batches(seed=0, epoch=0)
    assert max(row.max() for row in rows.segments) >= 3, "no row holds several histories"

    hidden, loss, grads = _ours(model, params, rows)

    own = _tensors(params)
    states = STATES[name](config, own)
    asked = dict(zip(rows.places[:rows.count].tolist(), rows.targets[:rows.count].tolist(), strict=True))
    losses = []
    for row, segments in enumerate(rows.segments):
        for window in range(1, segments.max() + 1):
            columns = np.flatnonzero(segments == window)
            x = own["table"][torch.tensor(rows.items[row, columns])]
            if seen == "all":
                x = x + torch.tensor(~rows.liked[row, columns])[:, None] * own["disliked"]
            alone = states(x[None])[0]
            np.testing.assert_allclose(hidden[row, columns], alone.detach().numpy(), atol=1e-5)
            scores = alone @ own["table"][:-1].T
            for place, column in enumerate(columns):
                target = asked.pop(row * segments.shape[0] + int(column), None)
                if target is not None:
                    losses.append(-torch.log_softmax(scores[place], -1)[target])
    assert not asked and len(losses) == rows.count
    total = torch.stack(losses).mean()
    np.testing.assert_allclose(loss, total.item(), atol=1e-5)
    total.backward()
    _assert_same_gradients(grads, own)


@pytest.mark.parametrize("seen", ["liked", "all"])
def test_caser_equals_two_dimensional_convolutions(seen: Any) -> None:
    config = CaserConfig(events=seen, max_events=4, width=WIDTH, horizontal=3, vertical=2, dropout=0.0, batch_size=64)
    model = Caser(config, _events())
    params = _drawn(model.init(key=jax.random.key(0)))
    (batch,) = model.batches(seed=0, epoch=0)
    batch = batch._replace(users=np.where(np.arange(64) % 5 == 0, len(LENGTHS), batch.users).astype(np.int32))
    hidden, loss, grads = _ours(model, params, batch)

    own = _tensors(params)
    image = own["items"][torch.tensor(batch.items)]
    if seen == "all":
        image = image + torch.tensor(~batch.liked)[..., None] * own["disliked"]
    image = image[:, None]
    found = []
    for height in range(1, 5):
        kernel = own[f"horizontal/{height - 1}/kernel"].T.reshape(3, 1, height, WIDTH)
        layer = _load(torch.nn.Conv2d(1, 3, (height, WIDTH)),
                      {"weight": kernel, "bias": own[f"horizontal/{height - 1}/bias"]})
        found.append(torch.relu(layer(image)).amax(dim=(2, 3)))
    down = _load(torch.nn.Conv2d(1, 2, (4, 1), bias=False), {"weight": own["vertical"].T[:, None, :, None]})
    features = torch.cat([*found, down(image).flatten(1)], dim=1)
    z = torch.relu(features @ own["full/kernel"] + own["full/bias"])
    users = torch.cat([own["users"], torch.zeros(1, WIDTH)])[torch.tensor(batch.users)]
    state = torch.cat([z, users], dim=1)
    np.testing.assert_allclose(hidden, state.detach().numpy(), atol=1e-5)

    count = int(batch.count)
    assert 0 < count < len(batch.targets), "the last batch should be padded"
    scores = state[:count] @ own["table"].T + own["bias"]
    total = torch.nn.functional.cross_entropy(scores, torch.tensor(batch.targets[:count]).long())
    np.testing.assert_allclose(loss, total.item(), atol=1e-5)
    total.backward()
    _assert_same_gradients(grads, own)
