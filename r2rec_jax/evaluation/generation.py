"""A policy as the ``generate`` that :func:`~r2rec_jax.evaluation.protocol.evaluate_system` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from r2rec_jax.evaluation.protocol import Completions, Generate, OnTokens

if TYPE_CHECKING:
    from flax import nnx
    from jaxtyping import Array, Key

    from r2rec_jax.sampling.decoder import Decoder
    from r2rec_jax.tokens.tokenizer import Tokenizer

ANSWER_STRIDE = 2 ** 20
"""Between the random streams of a query's answers: more than there are queries."""


def policy_generate(
    decoder: Decoder, lora: nnx.State, base: nnx.State, tokenizer: Tokenizer, *, max_new_tokens: int,
    temperature: float, top_p: float, key: Key[Array, ""], answers: int = 1,
) -> Generate:
    """Completions from the policy ``lora`` over ``base``.

    Args:
        decoder: of the backbone.
        lora, base: the policy.
        tokenizer: decodes; its end tokens are cut off.
        max_new_tokens: completion limit in tokens, the end token included.
        temperature: 0 is greedy.
        top_p: in (0, 1].
        key: of the evaluation; each row folds in its own place. The same key for every system gives them common noise.
        answers: completions a prompt. The first ones are the same whatever their number.
    """

    def generate(rows: Sequence[int], prompts: Sequence[Sequence[int]], on_tokens: OnTokens) -> Completions:
        compiled: list[float] = []
        rollout = decoder.generate(
            lora, base, prompts, group=answers, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p,
            key=key, row_ids=[row + i * ANSWER_STRIDE for row in rows for i in range(answers)],
            on_compile=lambda _, seconds: compiled.append(seconds), on_progress=on_tokens)
        lengths, finished = rollout.lengths.reshape(-1), rollout.finished.reshape(-1)
        tokens = rollout.tokens.reshape(len(lengths), -1)
        texts = tuple(
            tokenizer.decode(tokens[i, :length - bool(done)].tolist())
            for i, (length, done) in enumerate(zip(lengths.tolist(), finished.tolist(), strict=True)))
        return Completions(texts, tuple(lengths.tolist()), tuple(not done for done in finished.tolist()),
                           compile_s=sum(compiled))

    return generate
