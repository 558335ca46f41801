"""The GRPO loop: it learns from rewards, scores by the right policies, resumes bit for bit, and fails in one line."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.models.lora import copy_tree, zeros_like_lora
from r2rec_jax.sampling.decoder import Decoder
from r2rec_jax.sampling.rollout import Rollout
from r2rec_jax.training import grpo
from r2rec_jax.training.environment import Environment, completion_texts, score_texts
from r2rec_jax.training.grpo import make_passes, make_scoring, train_grpo, with_scores
from r2rec_jax.training.metrics import MetricsWriter, is_look
from r2rec_jax.training.session import RewardError
from r2rec_jax.training.updates import Updates
from tests.grpo import CONFIG, FAKE, fake_generate, reward, run, stopped_after, text_of


@pytest.mark.slow
def test_it_raises_a_planted_reward_with_the_real_decoder(tiny, llama_config, prompts, tmp_path, trees_equal):
    """Rollouts follow the updated adapter, the sampler's log-probabilities are the trainer's, the base stays."""
    model, lora = tiny
    base = jax.device_get(model.base)
    decoder = Decoder(model.graphdef, llama_config, (2,), 0)
    config = dataclasses.replace(CONFIG, epochs=30, temperature=0.9, eval_every=15)
    trained = train_grpo(model, lora, prompts, config, Environment(decoder.generate, text_of, reward), seed=0,
                         held_out=prompts[:1], metrics=MetricsWriter(tmp_path, "grpo"))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    looks, rows = [row for row in rows if is_look(row)], [row for row in rows if not is_look(row)]
    assert len(rows) == 30 and trained.steps == 30
    held_out = [row["eval_reward"] for row in looks]
    assert held_out[2] > held_out[0] + 0.2, held_out
    assert decoder.compilations == 5, "prefill, place, first token, merge, decode: looks need no others"
    rewards = [row["reward"] for row in rows]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:3]) + 0.3, rewards
    assert max(row["drift"] for row in rows) < 1e-3, [row["drift"] for row in rows]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6) and rows[-1]["kl"] > 1e-3
    assert all(abs(row["ratio"] - 1) < 1e-6 for row in rows)
    assert all(row["grad_signal"] + row["grad_noise"] == pytest.approx(row["grad_norm"]**2) for row in rows)
    assert trees_equal(base, model.base)
    expected = {"stage", "step", "seconds", "examples", "loss", "kl", "ratio", "clip_low", "clip_high", "correction",
                "entropy", "drift", "grad_norm", "grad_signal", "grad_noise", "grad_groups", "skipped", "lr", "reward",
                "reward_rank", "words", "reward_std", "zero_spread_groups", "completion_tokens", "truncated",
                "rollout_seconds", "reward_seconds", "update_seconds"}
    assert set(rows[0]) == expected
    assert list((tmp_path / "tensorboard" / "grpo").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("iterations", [1, 2])
def test_a_resumed_run_is_the_run_that_never_stopped(tiny, prompts, tmp_path, checkpoints, monkeypatch, trees_equal,
                                                     without_seconds, iterations):
    config = dataclasses.replace(CONFIG, iterations=iterations)
    whole = run(tiny, prompts, tmp_path, checkpoints, "whole", config)
    with stopped_after(monkeypatch, 4 * iterations):
        run(tiny, prompts, tmp_path, checkpoints, "parts", config)
    parts = run(tiny, prompts, tmp_path, checkpoints, "parts", config)
    assert trees_equal(whole[0].params, parts[0].params)
    assert trees_equal(whole[1].state, parts[1].state) and whole[1].loader_state == parts[1].loader_state
    assert int(parts[1].state.step) == 6 * iterations
    assert without_seconds(whole[2][0]) == without_seconds(parts[2][0])
    assert whole[2][1] == parts[2][1] and [row["step"] for row in parts[2][1]] == [1, 2, 3, 4, 5, 6]


def test_rollout_noise_differs_from_step_to_step(tiny, prompts, tmp_path, checkpoints):
    _, _, (rows, completions) = run(tiny, prompts, tmp_path, checkpoints, "noise")
    assert len({str(row["completions"]) for row in completions}) == 6
    assert len({row["reward"] for row in rows}) > 3


def test_rollouts_follow_the_updated_adapter(tiny, prompts, trees_equal):
    model, lora = tiny
    seen = []

    def spy(policy, base, *args, **kwargs):
        seen.append(copy_tree(policy))
        return fake_generate(policy, base, *args, **kwargs)

    trained = train_grpo(model, lora, prompts, dataclasses.replace(CONFIG, steps=3), Environment(spy, text_of, reward),
                         seed=0)
    assert trees_equal(seen[0], lora)
    assert not any(trees_equal(a, b) for a, b in zip(seen, [*seen[1:], trained.params], strict=True))


@pytest.fixture(scope="module")
def score(tiny):
    return make_scoring(tiny[0], CONFIG.temperature)


def one_pass(prompts, config=CONFIG):
    rollout = fake_generate(None, None, [p.prompt_ids for p in prompts], group=4, max_new_tokens=8, temperature=1.0,
                            top_p=1.0, key=jax.random.key(0), row_ids=range(8))
    return make_passes(prompts, rollout, config, 12, 0)[0]


def test_reference_scores_come_from_the_reference_tree(tiny, prompts, score):
    model, lora = tiny
    group = one_pass(prompts)
    for tree in (copy_tree(lora), zeros_like_lora(lora)):
        scored = with_scores(group, score, jax.tree.map(lambda x: 2 * x, lora), tree, model.base, CONFIG)
        np.testing.assert_array_equal(scored.reference, score(tree, model.base, group.rows)["logprobs"])
        assert scored.old is None
    assert not np.allclose(scored.reference, score(lora, model.base, group.rows)["logprobs"], atol=1e-3)
    without = with_scores(group, score, lora, lora, model.base, dataclasses.replace(CONFIG, beta=0.0, iterations=2))
    assert without.reference is None
    np.testing.assert_array_equal(without.old, score(lora, model.base, group.rows)["logprobs"])


def test_the_device_is_given_the_scoring_before_the_host_rewards(tiny, prompts, monkeypatch):
    order = []

    def spy(*args):
        order.append("scoring")
        return with_scores(*args)

    def rewarding(texts, example_ids):
        order.append("rewards")
        return reward(texts, example_ids)

    monkeypatch.setattr(grpo, "with_scores", spy)
    environment = Environment(fake_generate, text_of, rewarding)
    train_grpo(*tiny, prompts, dataclasses.replace(CONFIG, steps=2), environment, seed=0)
    assert order == ["scoring", "scoring", "rewards"] * 2


@pytest.mark.parametrize("iterations", [1, 2])
def test_without_a_kl_term_groups_without_spread_are_left_out(tiny, prompts, monkeypatch, iterations):
    """As with a KL term too small to be seen, which keeps them. The mean of three numbers .1 is not .1 in float."""
    dull, counts, original = prompts[0].example_id, [], Updates.run

    def rewarding(texts, example_ids):
        return {"total": np.where(np.array(example_ids) == dull, 0.1, reward(texts, example_ids)["total"])}

    def spy(self, state, base, passes):
        counts.append(len(passes))
        return original(self, state, base, passes)

    monkeypatch.setattr(Updates, "run", spy)
    environment = Environment(fake_generate, text_of, rewarding)
    trained = []
    for beta in (0.0, 1e-30):
        config = dataclasses.replace(CONFIG, beta=beta, iterations=iterations, steps=3, group_size=3)
        trained.append(train_grpo(*tiny, prompts, config, environment, seed=0).params)
    fewer, whole = counts[:3 * iterations], counts[3 * iterations:]
    assert set(whole) == {2} and max(fewer) == 1
    for ours, whole, start in zip(*map(jax.tree.leaves, (*trained, tiny[1])), strict=True):
        np.testing.assert_allclose(ours, whole, atol=2e-5)
        assert np.abs(ours - start).max() > 1e-3


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_groups_without_spread_may_be_dropped_with_a_kl_term_too(tiny, prompts, tmp_path, checkpoints, trees_equal,
                                                                 beta):
    """Then a step without any spread has no gradient at all; kept, it follows the KL term."""
    environment = Environment(fake_generate, text_of, lambda texts, ids: {"total": np.ones(len(texts))})
    moved = {}
    for choice in ("keep", "drop"):
        config = dataclasses.replace(CONFIG, beta=beta, epochs=1, uniform_groups=choice, reference="base")
        trained = run(tiny, prompts, tmp_path, checkpoints, f"{choice}-{beta}", config, environment)[0]
        moved[choice] = not trees_equal(trained.params, tiny[1])
    assert moved == {"keep": beta > 0, "drop": False}


def test_a_step_that_teaches_nothing_leaves_the_adapter_and_tells_no_entropy(tiny, prompts, tmp_path, checkpoints,
                                                                             trees_equal):
    environment = Environment(fake_generate, text_of, lambda texts, ids: {"total": np.ones(len(texts))})
    config = dataclasses.replace(CONFIG, beta=0.0, epochs=1)
    trained, _, (rows, _) = run(tiny, prompts, tmp_path, checkpoints, "dull", config, environment)
    assert trees_equal(trained.params, tiny[1]) and trained.steps == 1 and trained.skipped == 0
    assert rows[0]["zero_spread_groups"] == 1 and rows[0]["grad_norm"] == 0
    assert not {"entropy", "kl", "ratio", "drift"} & set(rows[0])


@pytest.mark.parametrize(("reference", "start"), [("sft", "sft"), ("base", "sft"), ("base", "base")])
def test_the_first_kl_is_that_of_the_chosen_reference(tiny, prompts, tmp_path, checkpoints, reference, start):
    """Zero against a copy of the adapter GRPO starts from, and not against the base; the copy survives donation."""
    model, lora = tiny
    tiny = (model, zeros_like_lora(lora)) if start == "base" else tiny
    config = dataclasses.replace(CONFIG, reference=reference, steps=2)
    _, _, (rows, _) = run(tiny, prompts, tmp_path, checkpoints, "kl", config)
    assert len(rows) == 2
    if reference == start:
        assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    else:
        assert rows[0]["kl"] > 1e-3


def test_without_a_reference_no_kl_is_told(tiny, prompts, tmp_path, checkpoints):
    """The policy moves away from where it began, and nobody has measured how far."""
    config = dataclasses.replace(CONFIG, beta=0.0, steps=3)
    trained, _, (rows, _) = run(tiny, prompts, tmp_path, checkpoints, "free", config)
    assert trained.steps == len(rows) == 3 and all(row["grad_norm"] > 0 for row in rows)
    assert all("entropy" in row and "kl" not in row for row in rows)


@pytest.mark.parametrize("changes", [{"loss": "bnpo", "scale_rewards": "batch", "mask_truncated": True},
                                     {"importance": "sequence", "sampler_cap": 2.0, "iterations": 2}])
def test_a_step_takes_options_together(tiny, prompts, tmp_path, checkpoints, changes):
    """What each does is in test_options.py. With bnpo a group's weight depends on its pass, so no signal is told."""
    config = dataclasses.replace(CONFIG, steps=1, **changes)
    trained, _, (rows, _) = run(tiny, prompts, tmp_path, checkpoints, "together", config)
    assert trained.skipped == 0 and rows[0]["grad_norm"] > 0
    assert ("grad_signal" in rows[0]) == ("loss" not in changes)


def test_micro_batches_of_prompts_are_one_update(tiny, prompts, tmp_path, checkpoints):
    results = [run(tiny, prompts, tmp_path, checkpoints, f"micro{n}",
                   dataclasses.replace(CONFIG, steps=1, micro_prompts=n)) for n in (1, 2)]
    first, second = (r[2][0][0] for r in results)
    for name in ("loss", "kl", "grad_norm", "entropy", "drift"):
        assert first[name] == pytest.approx(second[name], rel=1e-4, abs=1e-6), name


def test_groups_without_spread_teach_nothing_and_are_counted(tiny, prompts, tmp_path, checkpoints, trees_equal):
    flat = Environment(fake_generate, text_of, lambda texts, ids: {"total": np.ones(len(texts))})
    config = dataclasses.replace(CONFIG, steps=2, beta=0.0)
    trained, _, (rows, _) = run(tiny, prompts, tmp_path, checkpoints, "flat", config, flat)
    assert [row["zero_spread_groups"] for row in rows] == [1, 1]
    assert [row["grad_norm"] for row in rows] == [0, 0]
    assert trees_equal(trained.params, tiny[1])


def test_texts_leave_the_end_token_out():
    rollout = Rollout(np.array([[[5, 6, 2], [5, 6, 7]]]), np.array([[3, 3]]), np.zeros((1, 2, 3)),
                      np.array([[True, False]]))
    assert completion_texts(rollout, text_of) == ["5 6", "5 6 7"]


def test_a_reward_that_raises_names_the_completion_and_keeps_the_steps(tiny, prompts, tmp_path, checkpoints):
    seen = []

    def bad(texts, example_ids):
        if len(texts) > 1:
            seen.append(1)
        if len(seen) == 3 and (len(texts) > 1 or texts[0] == marked[0]):
            marked[:] = marked or [texts[5]]
            raise KeyError("no such\nitem")
        return reward(texts, example_ids)

    marked: list[str] = []
    with pytest.raises(RewardError, match=r"completion 1 of example 'example-\d': KeyError: .*no such") as error:
        run(tiny, prompts, tmp_path, checkpoints, "bad", environment=Environment(fake_generate, text_of, bad))
    assert "\n" not in str(error.value)
    saved = checkpoints("grpo", "bad")
    assert saved.latest_step == 2
    saved.close()


@pytest.mark.parametrize(("parts", "message"), [
    ({"total": np.array([1.0, np.nan])}, r"a reward must be finite; got nan for completion 1 of example 'a'"),
    ({"rank": np.ones(2)}, r"must return 'total' and parts of shape \(2,\)"),
    ({"total": np.ones(3)}, r"must return 'total' and parts of shape \(2,\)"),
])
def test_rewards_are_checked(parts, message):
    with pytest.raises(RewardError, match=message):
        score_texts(lambda texts, ids: parts, ["x", "y"], ["a"], 2)


def test_updates_that_are_not_finite_stop_the_run(tiny, prompts, checkpoints):
    model, lora = tiny
    broken = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.inf), lora)
    with pytest.raises(RuntimeError, match=r"grpo stopped: .* examples example-"):
        train_grpo(model, broken, prompts, CONFIG, FAKE, seed=0)
