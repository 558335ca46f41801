"""Three clipped AdamW steps on an adapter against torch.optim.AdamW on peft's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from r2rec_jax.config import LoraConfig
from r2rec_jax.models.huggingface import load_backbone
from r2rec_jax.models.llama import merge_llama
from r2rec_jax.models.logprobs import row_logprobs
from r2rec_jax.models.peft import load_adapter, save_adapter
from r2rec_jax.training.state import make_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft asks for it
LR, DECAY, CLIP, STEPS = 1e-2, 0.1, 0.5, 3


@pytest.mark.slow
def test_steps_equal_torch(make_reference, tmp_path) -> None:
    from peft import PeftModel

    model, folder = make_reference()
    config = LoraConfig(rank=4, alpha=8.0)
    backbone = load_backbone(folder, config, "float32")
    leaves, treedef = jax.tree.flatten(backbone.lora)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    lora = jax.tree.unflatten(treedef, [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    save_adapter(lora, config, backbone, tmp_path / "start")
    tokens = np.random.default_rng(0).integers(0, 97, (2, 17))

    optimizer = make_optimizer(LR, "constant", 0.0, STEPS, DECAY, CLIP)

    def loss_of(lora, base):
        llama = merge_llama(backbone.graphdef, lora, base)
        row = jnp.asarray(tokens)
        positions = jnp.broadcast_to(jnp.arange(row.shape[1]), row.shape)
        hidden = llama.hidden_states(row, positions, jnp.ones_like(row), jnp.zeros_like(row), remat=True)
        return -jnp.mean(row_logprobs(hidden, positions[:, :-1], row[:, 1:], llama.head(), chunk=8)[0])

    @jax.jit
    def step(lora, state, base):
        loss, grads = jax.value_and_grad(loss_of)(lora, base)
        updates, state = optimizer.update(grads, state, lora)
        return optax.apply_updates(lora, updates), state, loss

    adapted = PeftModel.from_pretrained(model, str(tmp_path / "start"), is_trainable=True)
    trained = [weight for name, weight in adapted.named_parameters() if "lora_" in name]
    reference = torch.optim.AdamW(trained, lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
    state, row = optimizer.init(lora), torch.tensor(tokens)
    for _ in range(STEPS):
        lora, state, loss = step(lora, state, backbone.base)
        reference.zero_grad()
        expected = adapted(row, labels=row).loss
        expected.backward()
        assert torch.nn.utils.clip_grad_norm_(trained, CLIP) > CLIP, "clipping must take part in the test"
        reference.step()
        np.testing.assert_allclose(float(loss), float(expected.detach()), rtol=1e-4)

    adapted.save_pretrained(tmp_path / "end")
    theirs, _ = load_adapter(tmp_path / "end", backbone)
    for ours, other in zip(jax.tree.leaves(lora), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(ours, other, atol=LR * 5e-3)
        assert np.median(np.abs(np.asarray(ours) - np.asarray(other))) < 1e-6
