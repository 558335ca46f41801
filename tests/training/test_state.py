"""The guarded update, the schedules, and the compiled programs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from r2rec_jax.training.programs import Program
from r2rec_jax.training.state import (
    apply_or_skip,
    check_progress,
    init_state,
    learning_rate,
    make_optimizer,
    make_schedule,
    stream_key,
)
from r2rec_jax.training.updates import Updates, signal_and_noise


def numpy_adamw(w, grads, lr, decay, limit):
    m = v = np.zeros_like(w)
    for t, g in enumerate(grads, start=1):
        g = g * min(1.0, limit / np.linalg.norm(g))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        w = w - lr * ((m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + decay * w)
    return w


def test_adamw_with_clipping_is_the_textbook_one():
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=5), rng.normal(size=(4, 5)) * 3
    optimizer = make_optimizer(0.1, "constant", 0, 4, 0.01, 2.0)
    state = init_state({"w": jnp.asarray(start, jnp.float32)}, optimizer)
    for g in grads:
        state, values = apply_or_skip(state, {"w": jnp.asarray(g, jnp.float32)}, jnp.float32(1), optimizer)
        np.testing.assert_allclose(values["grad_norm"], np.linalg.norm(g), rtol=1e-5)
    np.testing.assert_allclose(state.params["w"], numpy_adamw(start, grads, 0.1, 0.01, 2.0), rtol=1e-5)


def test_schedules():
    def rates(*args, **kwargs):
        schedule = make_schedule(*args, **kwargs)
        return [float(schedule(i)) for i in range(args[3])]

    np.testing.assert_allclose(rates(1.0, "linear", 0.4, 5), [0.5, 1, 1, 2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(rates(2.0, "constant", 0.0, 3), [2, 2, 2])
    cosine = rates(1.0, "cosine", 0.0, 4, final=0.1)
    np.testing.assert_allclose(cosine, [0.1 + 0.9 * (1 + np.cos(np.pi * i / 4)) / 2 for i in range(4)], rtol=1e-6)
    with pytest.raises(ValueError, match="the schedule must be"):
        make_schedule(1.0, "step", 0.0, 3)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("loss", "gradient"), [(np.nan, 1.0), (1.0, np.inf), (1.0, np.nan)])
def test_an_update_that_is_not_finite_changes_nothing_but_the_counts(loss, gradient, trees_equal):
    optimizer = make_optimizer(0.1, "linear", 0, 10, 0.0, 1.0)
    state = init_state({"w": jnp.ones(3)}, optimizer)
    state, _ = apply_or_skip(state, {"w": jnp.ones(3)}, jnp.float32(1), optimizer)
    after, _ = apply_or_skip(state, {"w": jnp.array([0, gradient, 0])}, jnp.float32(loss), optimizer)
    assert trees_equal((state.params, state.opt_state), (after.params, after.opt_state))
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (2, 1, 1)
    schedule = make_schedule(0.1, "linear", 0, 10)
    assert learning_rate(schedule, after) == learning_rate(schedule, state) == pytest.approx(0.09)
    good, _ = apply_or_skip(after, {"w": jnp.ones(3)}, jnp.float32(1), optimizer)
    assert (int(good.skipped), int(good.skipped_in_a_row)) == (1, 0)
    assert not trees_equal(good.params, after.params)


def test_three_skips_in_a_row_stop_the_run_and_name_the_examples():
    check_progress("sft", 9, 2, ["a"])
    with pytest.raises(RuntimeError, match=r"sft stopped.* 3 updates in a row.* step 9 with examples a, b;") as error:
        check_progress("sft", 9, 3, ["a", "b", "a"])
    assert "\n" not in str(error.value)


def test_the_callers_tree_survives():
    start = {"w": jnp.ones(3)}
    optimizer = make_optimizer(0.1, "constant", 0, 10, 0.0, 1.0)
    updates = Updates(lambda params, frozen, x: (jnp.sum(params["w"] * x * frozen), {}), (), optimizer)
    state = init_state(start, optimizer)
    state, values = updates.run(state, jnp.float32(2), [(jnp.ones(3),), (jnp.ones(3),)])
    np.testing.assert_array_equal(start["w"], np.ones(3))
    assert values["loss"] == 12 and values["grad_norm"] == pytest.approx(4 * 3**0.5)


def test_the_squared_norms_of_the_passes_are_summed_where_they_are_asked_for():
    optimizer = make_optimizer(0.1, "constant", 0, 10, 0.0, 1.0)
    updates = Updates(lambda params, frozen, x: (jnp.sum(params["w"] * x), {}), (), optimizer, pass_squares=True)
    state, passes = init_state({"w": jnp.ones(2)}, optimizer), [(jnp.array([3.0, 0]),), (jnp.array([0, 4.0]),)]
    values = updates.run(state, None, passes)[1]
    assert values["pass_squares"] == pytest.approx(25) and values["grad_norm"] == pytest.approx(5)
    assert signal_and_noise(values["grad_norm"], values["pass_squares"], [1, 1]) == pytest.approx((0, 25))


def test_signal_and_noise_are_what_the_gradients_were_drawn_from():
    """Twelve vectors of a known mean and variance, in passes of unequal size, many times."""
    rng, counts, mean = np.random.default_rng(0), (5, 4, 3), np.array([0.3, -0.4, 0.0])
    ends = np.cumsum(counts)[:-1]
    draws = rng.normal(mean, 2.0, (20_000, sum(counts), 3))
    found = []
    for draw in draws:
        passes = [part.sum(axis=0) for part in np.split(draw, ends)]
        found.append(signal_and_noise(np.linalg.norm(sum(passes)), sum(p @ p for p in passes), counts))
    signal, noise = np.mean(found, axis=0)
    assert signal == pytest.approx(12**2 * 0.25, rel=0.05)
    assert noise == pytest.approx(12 * 3 * 2.0**2, rel=0.02)


@pytest.mark.parametrize(("norm", "squares", "counts"), [(5.0, 25.0, [2]), (0.0, 0.0, []), (np.inf, 1.0, [1, 1])])
def test_one_pass_alone_tells_no_signal_from_noise(norm, squares, counts):
    assert signal_and_noise(norm, squares, counts) is None


def test_a_program_compiles_once_a_shape_and_reports_it():
    told = []
    program = Program("sum", lambda x: x.sum(), report=lambda what, seconds: told.append((what, seconds > 0)))
    for size in (3, 3, 4, 3):
        assert float(program(np.ones(size, np.float32))) == size
    assert program.compilations == 2 and told == [("sum", True)] * 2


def test_streams_differ_by_name_step_and_seed_and_repeat():
    def draw(*args):
        return int(jax.random.bits(stream_key(*args)))

    values = {draw(seed, name, step) for seed in (0, 1) for name in ("rollout", "order") for step in (1, 2)}
    assert len(values) == 8
    assert draw(0, "rollout", 1) == draw(0, "rollout", 1)
