"""The options of SFT and GRPO arrive where they are used: one a case, and no model is run for it."""

from __future__ import annotations

from dataclasses import replace
from inspect import signature

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.config import GrpoConfig, SftConfig
from r2rec_jax.training import grpo, sft
from r2rec_jax.training.environment import Environment
from r2rec_jax.training.grpo import make_grpo_loss, make_passes, train_grpo
from r2rec_jax.training.losses import completion_weights, group_advantages, grpo_loss
from r2rec_jax.training.rollouts import GroupBatch
from r2rec_jax.training.sft import train_sft
from r2rec_jax.training.state import make_optimizer
from tests.grpo import CONFIG, FAKE, fake_generate, text_of

OLD = jnp.full((1, 4), -1.0)
POLICY = OLD + jnp.log(jnp.array([[1.3, 0.9, 0.7, 1.1]]))
SAMPLED = OLD - jnp.log(jnp.array([[2.0, 0.5, 1.0, 1.2]]))
REFERENCE = jnp.array([[-2.0, -0.5, -1.0, -3.0]])
ADVANTAGES = jnp.array([[1.0, 1.0, -1.0, -1.0]])
WEIGHTS = jnp.array([[0.1, 0.2, 0.3, 0.4]])
COMPLETIONS = jnp.array([[0, 0, 1, 1]])


class Scores:
    """In place of a model: these log-probabilities, whatever it is asked."""

    def score(self, lora, base, rows, temperature):
        return POLICY / temperature, jnp.zeros_like(POLICY)


class Arrived(Exception):
    """Ends a training where what was asked for has arrived; holds what has."""


@pytest.mark.parametrize(("changes", "given"), [
    ({"epsilon": 0.4}, {"epsilon": 0.4, "epsilon_high": 0.4}), ({"epsilon_high": 0.4}, {"epsilon_high": 0.4}),
    ({"beta": 0.3}, {"beta": 0.3}), ({"temperature": 0.8}, {"logprobs": POLICY / 0.8}),
    ({"importance": "sequence"}, {"completions": COMPLETIONS, "group": 2}),
    ({"sampler_cap": 1.5}, {"sampled_logprobs": SAMPLED, "sampler_cap": 1.5})])
def test_options_of_the_loss(changes, given):
    plain = {"logprobs": POLICY, "old_logprobs": OLD, "reference_logprobs": REFERENCE, "advantages": ADVANTAGES,
             "weights": WEIGHTS, "epsilon": 0.2, "epsilon_high": 0.2, "beta": 0.1}
    config = replace(GrpoConfig(group_size=2, epsilon=0.2, beta=0.1, temperature=1.0), **changes)
    group = GroupBatch(None, ADVANTAGES, WEIGHTS, SAMPLED, COMPLETIONS, OLD, REFERENCE)
    found, sums = make_grpo_loss(Scores(), config)(None, None, group)
    expected, expected_sums = grpo_loss(**plain | given)
    assert found == expected != grpo_loss(**plain)[0]
    assert {name: sums[name] for name in expected_sums} == expected_sums


@pytest.mark.parametrize("changes", [{"loss": "dr_grpo"}, {"loss": "dapo"}, {"loss": "bnpo"},
                                     {"loss": "bnpo", "micro_prompts": 2}, {"mask_truncated": True}])
def test_options_of_the_weights(prompts, changes):
    config = replace(CONFIG, **changes)
    rollout = fake_generate(None, None, prompts, group=4, max_new_tokens=8, temperature=1.0, top_p=1.0,
                            key=jax.random.key(1), row_ids=range(8))
    everything = np.ones_like(rollout.finished)
    expected = completion_weights(rollout.lengths, rollout.finished if config.mask_truncated else everything,
                                  config.loss, 8, config.micro_prompts)
    assert not np.array_equal(expected, completion_weights(rollout.lengths, everything, "grpo", 8))
    columns = np.concatenate([group.weights for group in make_passes(prompts, rollout, config, 12, 0)])
    for row, weights, lengths in zip(columns, expected, rollout.lengths, strict=True):
        np.testing.assert_array_equal(row[:lengths.sum()], np.repeat(weights, lengths))


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_scale_of_the_rewards(tiny, prompts, monkeypatch, scale):
    def arrive(passes, advantages):
        raise Arrived(advantages)

    monkeypatch.setattr(grpo, "with_advantages", arrive)
    rewards = np.array([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 0.5, 0.0]])
    environment = Environment(fake_generate, text_of, lambda texts, ids: {"total": rewards.reshape(-1)})
    with pytest.raises(Arrived) as arrived:
        train_grpo(*tiny, prompts, replace(CONFIG, beta=0.0, scale_rewards=scale), environment, seed=0)
    np.testing.assert_array_equal(arrived.value.args[0], group_advantages(rewards, scale))


@pytest.mark.parametrize(("module", "total"), [(sft, 6), (grpo, 12)], ids=["sft", "grpo"])
def test_options_of_the_optimiser(tiny, prompts, make_examples, monkeypatch, module, total):
    """Six updates of SFT, three times two; twelve of GRPO, two in each of six steps."""
    def arrive(*args, **kwargs):
        raise Arrived(signature(make_optimizer).bind(*args, **kwargs).arguments)

    monkeypatch.setattr(module, "make_optimizer", arrive)
    asked = {"lr": 0.5, "schedule": "cosine", "warmup": 0.25, "weight_decay": 0.125, "max_grad_norm": 0.75}
    with pytest.raises(Arrived) as arrived:
        if module is sft:
            train_sft(*tiny, make_examples(8), SftConfig(epochs=3, batch_size=4, **asked), seed=0)
        else:
            train_grpo(*tiny, prompts, replace(CONFIG, iterations=2, **asked), FAKE, seed=0)
    assert arrived.value.args[0] == asked | {"total": total}
