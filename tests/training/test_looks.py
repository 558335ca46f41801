"""Looks at held-out prompts between GRPO's steps: they change nothing, and going on is as if nothing had stopped."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from r2rec_jax.training.environment import Environment, held_out_metrics
from r2rec_jax.training.session import RewardError
from tests.grpo import CONFIG, FAKE, fake_generate, reward, run, stopped_after, text_of


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


@pytest.mark.parametrize(("earned", "kept"), [((1, 5, 3, 2), 2), ((0.7, 0.7, 0.7, 0.7), 0), ((1, 2, 3, 4), 6)])
def test_the_adapter_of_the_best_look_is_kept(tiny, prompts, make_examples, tmp_path, checkpoints, monkeypatch,
                                              trees_equal, without_seconds, earned, kept):
    """Of looks at 0, 2, 4 and 6, the first of equal ones; a run that was cut off goes on with the best so far."""
    held_out = [dataclasses.replace(example, example_id="held out") for example in make_examples(2, seed=11)]
    config = dataclasses.replace(CONFIG, eval_every=2, keep="best")
    looks = []

    def scripted(texts, example_ids):
        if example_ids[0] != "held out":
            return reward(texts, example_ids)
        looks.append(earned[len(looks)])
        return {"total": np.full(len(texts), float(looks[-1]))}

    environment = Environment(fake_generate, text_of, scripted)
    whole, _, (rows, _) = run(tiny, prompts, tmp_path, checkpoints, "whole", config, environment, held_out)
    assert [row["eval_reward"] for row in rows if "eval_reward" in row] == list(earned)
    assert (whole.steps, whole.kept) == (6, kept)
    last = run(tiny, prompts, tmp_path, checkpoints, "last", dataclasses.replace(config, keep="last", eval_every=0))
    same = tiny[1] if kept == 0 else run(tiny, prompts, tmp_path, checkpoints, "same",
                                         dataclasses.replace(CONFIG, steps=kept))[0].params
    assert last[0].kept == 6 and trees_equal(whole.params, same)
    assert trees_equal(whole.params, last[0].params) == (kept == 6)

    looks.clear()
    with stopped_after(monkeypatch, 4):
        run(tiny, prompts, tmp_path, checkpoints, "parts", config, environment, held_out)
    del looks[2:]  # what was seen after step 4 is lost: the checkpoint is of step 3
    parts, _, (again, _) = run(tiny, prompts, tmp_path, checkpoints, "parts", config, environment, held_out)
    assert parts.kept == kept and trees_equal(whole.params, parts.params)
    assert without_seconds(rows) == without_seconds(again)


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
