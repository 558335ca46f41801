from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from r2rec_jax.evaluation.generation import ANSWER_STRIDE, policy_generate
from r2rec_jax.sampling.rollout import Rollout

END = 9


class RecordingDecoder:
    """Two prompts: the first answer ends after three tokens, the second hits the limit of four."""

    def generate(self, lora, base, prompts, *, on_compile, on_progress, **settings) -> Rollout:
        self.settings = {"lora": lora, "base": base, "prompts": prompts, **settings}
        on_compile("prefill", 1.5)
        on_compile("segment", 0.5)
        on_progress(7)
        return Rollout(tokens=np.array([[[5, 6, END, 0]], [[5, 5, 7, 7]]]), lengths=np.array([[3], [4]]),
                       logprobs=np.zeros((2, 1, 4)), finished=np.array([[True], [False]]))


class LetterTokenizer:
    def decode(self, ids) -> str:
        return "".join("abcdefghij"[i] for i in ids)


def test_one_completion_a_prompt_without_its_end_token():
    decoder, counted = RecordingDecoder(), []
    generate = policy_generate(decoder, "lora", "base", LetterTokenizer(), max_new_tokens=4, temperature=0.6, top_p=0.9,
                               key="key")
    got = generate([31, 7], [(1, 2), (3,)], counted.append)
    assert got.texts == ("fg", "ffhh")
    assert got.tokens == (3, 4)
    assert got.truncated == (False, True)
    assert got.compile_s == pytest.approx(2.0)
    assert counted == [7]
    assert decoder.settings == {
        "lora": "lora", "base": "base", "prompts": [(1, 2), (3,)], "group": 1, "max_new_tokens": 4,
        "temperature": 0.6, "top_p": 0.9, "key": "key", "row_ids": [31, 7]}


def test_answers_of_a_prompt_stand_together_and_have_streams_of_their_own():
    class Pair(RecordingDecoder):
        def generate(self, lora, base, prompts, **settings) -> Rollout:
            rollout = super().generate(lora, base, prompts, **settings)
            return replace(rollout, tokens=rollout.tokens.reshape(1, 2, 4), lengths=rollout.lengths.reshape(1, 2),
                           logprobs=rollout.logprobs.reshape(1, 2, 4), finished=rollout.finished.reshape(1, 2))

    decoder = Pair()
    got = policy_generate(decoder, "lora", "base", LetterTokenizer(), max_new_tokens=4, temperature=0.6, top_p=0.9,
                          key="key", answers=2)([31], [(1, 2)], lambda count: None)
    assert (got.texts, got.tokens, got.truncated) == (("fg", "ffhh"), (3, 4), (False, True))
    assert (decoder.settings["group"], decoder.settings["row_ids"]) == (2, [31, 31 + ANSWER_STRIDE])
