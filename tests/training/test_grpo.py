"""The GRPO loop: it learns from rewards, scores by the right policies, resumes bit for bit, and fails in one line."""

from __future__ import annotations

import dataclasses
import json
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.config import GrpoConfig
from r2rec_jax.models.lora import copy_lora, zeros_like_lora
from r2rec_jax.sampling.decoder import Decoder
from r2rec_jax.sampling.rollout import Rollout
from r2rec_jax.training import grpo
from r2rec_jax.training.environment import Environment, completion_texts, held_out_metrics, score_texts
from r2rec_jax.training.grpo import make_passes, make_scoring, train_grpo, with_scores
from r2rec_jax.training.metrics import JsonLines, MetricsWriter, is_look
from r2rec_jax.training.session import RewardError
from r2rec_jax.training.state import init_state, make_optimizer
from r2rec_jax.training.updates import Updates

CONFIG = GrpoConfig(epochs=6, group_size=4, prompts_per_step=2, micro_prompts=1, lr=1e-2, temperature=1.0, top_p=1.0,
                    max_new_tokens=8, beta=0.02, checkpoint_every=3)
WANTED = {str(token) for token in range(3, 25)}


def text_of(ids) -> str:
    return " ".join(map(str, ids))


def reward(texts, example_ids) -> dict[str, Any]:
    """The share of some tokens, and a second part that is logged."""
    share = np.array([np.mean([word in WANTED for word in text.split()]) if text else 0.0 for text in texts])
    return {"total": share, "rank": share, "words": np.array([len(text.split()) for text in texts])}


def fake_generate(lora, base, prompts, *, group, max_new_tokens, temperature, top_p, key, row_ids=None,
                  on_compile=None) -> Rollout:
    """Random tokens, half of the rows ended by token 2: a function of key and row ids alone."""
    shape = (len(prompts), group, max_new_tokens)
    rng = np.random.default_rng([*np.asarray(jax.random.key_data(key)).tolist(), *row_ids])
    tokens = rng.integers(3, 60, shape).astype(np.int32)
    lengths = rng.integers(1, max_new_tokens + 1, shape[:2]).astype(np.int32)
    finished = lengths < max_new_tokens
    for p, g in np.argwhere(finished):
        tokens[p, g, lengths[p, g] - 1] = 2
    real = np.arange(max_new_tokens) < lengths[:, :, None]
    return Rollout(tokens * real, lengths, np.where(real, -3.0, 0).astype(np.float32), finished)


FAKE = Environment(fake_generate, text_of, reward)


@pytest.fixture(scope="module")
def prompts(make_examples):
    return [dataclasses.replace(example, completion_ids=()) for example in make_examples(2, seed=10)]


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
    assert trees_equal(base, model.base)
    expected = {"stage", "step", "seconds", "examples", "loss", "kl", "ratio", "clip_low", "clip_high", "correction",
                "entropy", "drift", "grad_norm", "skipped", "lr", "reward", "reward_rank", "words", "reward_std",
                "zero_spread_groups", "completion_tokens", "truncated", "rollout_seconds", "reward_seconds",
                "update_seconds"}
    assert set(rows[0]) == expected
    assert list((tmp_path / "tensorboard" / "grpo").iterdir())


def run(tiny, prompts, tmp_path, checkpoints, name, config=CONFIG, environment=FAKE, held_out=()):
    model, lora = tiny
    own = checkpoints("grpo", name)
    trained = train_grpo(model, lora, prompts, config, environment, seed=1, held_out=held_out, checkpoints=own,
                         metrics=MetricsWriter(tmp_path / name, "grpo", tensorboard=False),
                         completions_log=JsonLines(tmp_path / name / "completions.jsonl"))
    state = own.restore(init_state(lora, make_optimizer(1e-2, "constant", 0, 6, 0, 1.0)))
    own.close()
    logs = [[json.loads(line) for line in (tmp_path / name / file).read_text().splitlines()]
            for file in ("metrics.jsonl", "completions.jsonl")]
    return trained, state, logs


@contextmanager
def stopped_after(monkeypatch, updates: int):
    """The run within is cut off when it begins its next update, and must be."""
    original, calls = Updates.run, []

    def stop(self, *args):
        calls.append(1)
        if len(calls) > updates:
            raise SystemExit
        return original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Updates, "run", stop)
        yield


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


@pytest.mark.parametrize("iterations", [1, 2])
def test_looks_at_held_out_prompts_change_nothing_and_go_on(tiny, prompts, make_examples, tmp_path, checkpoints,
                                                            monkeypatch, trees_equal, without_seconds, iterations):
    """The same prompts with the same noise each time, in calls of a step's shape; the training is the one without."""
    held_out = make_examples(3, seed=11)
    config = dataclasses.replace(CONFIG, iterations=iterations, eval_every=2)
    keys, shapes = {}, set()

    def spy(policy, base, asked, *, key, **kwargs):
        keys.setdefault(str(jax.random.key_data(key)), []).append([tuple(ids) for ids in asked])
        shapes.add((len(asked), kwargs["group"]))
        return fake_generate(policy, base, asked, key=key, **kwargs)

    environment = Environment(spy, text_of, reward)
    without, _, (plain, plain_texts) = run(tiny, prompts, tmp_path, checkpoints, "without", config, environment)
    rounds = len(keys)
    assert not any(name.startswith("eval_") for row in plain for name in row)
    whole = run(tiny, prompts, tmp_path, checkpoints, "whole", config, environment, held_out)
    assert trees_equal(without.params, whole[0].params) and plain_texts == whole[2][1] and shapes == {(2, 4)}
    looks = list(keys.values())[rounds:]
    assert [len(calls) for calls in looks] == [4, 4], "two calls a look: at 0, 2, 4 and 6"
    first, last = held_out[:2], held_out[2:] * 2
    for calls, asked in zip(looks, (first, last), strict=True):
        assert calls == [[tuple(example.prompt_ids) for example in asked]] * 4
    rows = [row for row in whole[2][0] if "eval_reward" in row]
    assert [row["step"] for row in whole[2][0]] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    assert [row["step"] for row in rows] == [0, 2, 4, 6] and not any("reward" in row for row in rows)
    assert len({row["eval_reward"] for row in rows}) == 1, "drawn without the policy"
    assert [row["eval_prompts"] for row in rows] == [3] * 4 and {"eval_reward_rank", "eval_words"} <= set(rows[0])

    with stopped_after(monkeypatch, 4 * iterations):
        run(tiny, prompts, tmp_path, checkpoints, "parts", config, environment, held_out)
    parts = run(tiny, prompts, tmp_path, checkpoints, "parts", config, environment, held_out)
    assert without_seconds(whole[2][0]) == without_seconds(parts[2][0])
    assert trees_equal(whole[0].params, parts[0].params)


@pytest.mark.parametrize("error", [KeyError("no such item"), KeyboardInterrupt()])
def test_what_ends_a_look_costs_the_look_alone(tiny, prompts, make_examples, tmp_path, checkpoints, trees_equal,
                                               without_seconds, error):
    """The step before it is finished, and saved though no checkpoint was due; going on, the look comes first."""
    held_out = [dataclasses.replace(example, example_id="held out") for example in make_examples(2, seed=11)]
    config = dataclasses.replace(CONFIG, eval_every=2)
    whole = run(tiny, prompts, tmp_path, checkpoints, "whole", config, FAKE, held_out)
    looks = []

    def failing(texts, example_ids):
        looks.extend(["a look"] * (example_ids[0] == "held out" and len(texts) > 1))
        if len(looks) == 3 and example_ids[0] == "held out":
            raise error
        return reward(texts, example_ids)

    environment = Environment(fake_generate, text_of, failing)
    with pytest.raises(RewardError if isinstance(error, KeyError) else KeyboardInterrupt):
        run(tiny, prompts, tmp_path, checkpoints, "parts", config, environment, held_out)
    saved = checkpoints("grpo", "parts")
    assert saved.latest_step == 4
    saved.close()
    parts = run(tiny, prompts, tmp_path, checkpoints, "parts", config, FAKE, held_out)
    assert without_seconds(whole[2][0]) == without_seconds(parts[2][0])
    assert trees_equal(whole[0].params, parts[0].params)


def test_held_out_rewards_are_means_over_their_own_completions(tiny, prompts):
    """By hand, of one full call and one that has a prompt too few."""
    model, lora = tiny
    asked = [dataclasses.replace(prompts[0], example_id=name) for name in "abc"]
    seen = []

    def by_name(texts, example_ids):
        seen.extend(example_ids)
        return {"total": np.array([" abc".index(name) for name in example_ids], float),
                "part": np.array([np.nan if name == "a" else 1.0 for name in example_ids])}

    found = held_out_metrics(lora, model, asked, CONFIG, Environment(fake_generate, text_of, by_name), seed=0)
    assert seen == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert found["eval_reward"] == pytest.approx(2) and found["eval_part"] == 1 and found["eval_prompts"] == 3
    assert 1 <= found["eval_completion_tokens"] <= CONFIG.max_new_tokens and 0 <= found["eval_truncated"] <= 1


def test_rollouts_follow_the_updated_adapter(tiny, prompts, trees_equal):
    model, lora = tiny
    seen = []

    def spy(policy, base, *args, **kwargs):
        seen.append(copy_lora(policy))
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
    for tree in (copy_lora(lora), zeros_like_lora(lora)):
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


@pytest.mark.parametrize("changes", [{"loss": "dapo", "scale_rewards": "none"}, {"loss": "dr_grpo", "beta": 0.0},
                                     {"loss": "bnpo", "scale_rewards": "batch"},
                                     {"importance": "sequence", "sampler_cap": 2.0, "iterations": 2},
                                     {"mask_truncated": True, "epsilon_high": 0.3, "micro_prompts": 2}])
def test_every_option_runs_and_changes_the_result(tiny, prompts, tmp_path, checkpoints, trees_equal, changes):
    plain = run(tiny, prompts, tmp_path, checkpoints, "plain", dataclasses.replace(CONFIG, steps=1))[0]
    other = run(tiny, prompts, tmp_path, checkpoints, "other", dataclasses.replace(CONFIG, steps=1, **changes))[0]
    assert not trees_equal(plain.params, other.params)
    assert other.skipped == 0


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
