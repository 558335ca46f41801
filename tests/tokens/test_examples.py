"""Examples from text: the end is trained, limits are kept, chains go before candidates do."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r2rec_jax.tokens.examples import Example, Limits, check_fit, fit_prompt, make_example, pad
from r2rec_jax.tokens.tokenizer import Tokenizer

LIMITS = Limits(prompt_tokens=512, completion_tokens=64)
COMPLETION = "<think>\nBoth liked Heat.\n</think>\n<answer>7, 3</answer>"


def test_the_end_token_is_trained_even_as_pad_token(tokenizer: Tokenizer) -> None:
    """Masks inferred from the pad id would drop it where pad equals end (DeepSeek-R1-Distill, Llama 2)."""
    example = make_example(tokenizer, "a", "Which one?", COMPLETION, LIMITS)
    assert example.completion_ids[-1] == tokenizer.end_id
    assert example.completion_ids.count(tokenizer.end_id) == 1
    batch = pad([example], 600, 64, pad_id=tokenizer.end_id)
    last = len(example.completion_ids) - 1
    assert batch.target_tokens[0, last] == tokenizer.end_id and batch.target_weights[0, last] == 1
    assert batch.target_weights.sum() == len(example.completion_ids)


def test_prompt_and_completion_join_to_one_conversation(tokenizer: Tokenizer) -> None:
    example = make_example(tokenizer, "a", "Which one?", COMPLETION, LIMITS)
    assert example.prompt_ids == tokenizer.chat("Which one?").ids
    text = tokenizer.decode(example.prompt_ids + example.completion_ids)
    assert text.endswith(COMPLETION) and text.count("<think>") == 1


def test_a_think_opened_by_the_template_is_not_opened_again(deepseek: Tokenizer) -> None:
    example = make_example(deepseek, "a", "Which one?", COMPLETION, LIMITS)
    assert deepseek.decode(example.completion_ids).startswith("Both liked")
    assert example.prompt_ids[-2:] == (128013, 198) and 128013 not in example.completion_ids
    assert example == make_example(deepseek, "a", "Which one?", COMPLETION.removeprefix("<think>\n"), LIMITS)


def test_limits_are_errors_that_name_the_example(tiny: Tokenizer) -> None:
    example = make_example(tiny, "q-9", "Which one?", COMPLETION, LIMITS)
    exact = Limits(len(example.prompt_ids), len(example.completion_ids))
    assert make_example(tiny, "q-9", "Which one?", COMPLETION, exact) == example
    for limits, part in (
        (dataclasses.replace(exact, prompt_tokens=exact.prompt_tokens - 1), "prompt"),
        (dataclasses.replace(exact, completion_tokens=exact.completion_tokens - 1), "completion"),
    ):
        with pytest.raises(ValueError, match=f"a {part} must have at most .* 'q-9'"):
            make_example(tiny, "q-9", "Which one?", COMPLETION, limits)
    with pytest.raises(ValueError, match=r"at least one token.*'q-9'"):
        make_example(tiny, "q-9", "Which one?", "", LIMITS)


def test_what_a_backbone_cannot_read_is_refused_before_training() -> None:
    examples = [Example("a", (1, 2), (3,)), Example("b", (4, 5, 6), (7, 8))]
    check_fit(examples, 5, 9, 0, "x")
    check_fit(examples, 8, 9, 3, "x")
    with pytest.raises(ValueError, match=r"fit the 7 positions .* 'b' has 5 tokens and 3 to be written; lower x"):
        check_fit(examples, 7, 9, 3, "x")
    with pytest.raises(ValueError, match=r"fit the 4 positions .* 'b' has 5 tokens; lower x"):
        check_fit(examples, 4, 9, 0, "x")
    with pytest.raises(ValueError, match=r"below 8, the rows .* 'b' has 8; give"):
        check_fit(examples, 5, 8, 0, "x")


def _render(chains: int) -> str:
    return "core " * 3 + "chain " * chains


@given(n_chains=st.integers(0, 20), limit=st.integers(3, 30))
def test_fit_prompt_keeps_as_many_chains_as_fit(n_chains: int, limit: int) -> None:
    fitted = fit_prompt(_render, lambda text: len(text.split()), n_chains, limit)
    kept = n_chains - fitted.dropped
    assert fitted.text == _render(kept) and 3 + kept <= limit
    assert fitted.dropped == 0 or 3 + kept + 1 > limit


def test_fit_prompt_never_cuts() -> None:
    with pytest.raises(ValueError, match=r"at most 2 tokens .*got 3 for query q-1 without any chain"):
        fit_prompt(_render, lambda text: len(text.split()), 5, 2, name="query q-1")
