"""The ``local`` teacher of a run: its own backbone behind the masked progressive prompt."""

from __future__ import annotations

import hashlib

from r2rec_jax.config import as_plain, fingerprint
from r2rec_jax.progress import say
from r2rec_jax.stages.workspace import Workspace
from r2rec_jax.thoughts.local import LocalTeacher

BATCH = 8


def make_local_teacher(work: Workspace, domain: str) -> LocalTeacher:
    """A teacher that asks the run's backbone, without adapter: as it comes where the run trains it further.

    Raises:
        ValueError: the backbone is ``tiny``, which is not trained yet when thoughts are written.
    """
    if work.is_tiny:
        raise ValueError("thoughts.teacher 'local' needs a pretrained backbone; got backbone.source 'tiny', which is "
                         "trained from scratch after the thoughts; use thoughts.teacher: template")
    import jax

    config = work.config.thoughts
    tokenizer = work.source_tokenizer()
    from r2rec_jax.sampling.decoder import Decoder

    backbone = work.load_source(work.config.backbone.quantize) if work.config.pretrain.adapt else work.backbone
    pad_id = tokenizer.pad_within(backbone.config.vocab_size)
    decoder = Decoder(backbone.graphdef, backbone.config, tokenizer.end_ids, pad_id,
                      attention=work.config.backbone.attention, mesh=work.mesh)
    key = jax.random.fold_in(jax.random.key(work.config.train_seed), _number("local teacher"))

    def generate(prompts: list[str], keys: list[str]) -> list[str]:
        texts: list[str] = []
        for start in range(0, len(prompts), BATCH):
            part = slice(start, start + BATCH)
            names = [f"{k}/{p}" for k, p in zip(keys[part], prompts[part], strict=True)]
            rollout = decoder.generate(
                backbone.lora, backbone.base, [tokenizer.chat(p).ids for p in prompts[part]], group=1,
                max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=0.95, key=key,
                row_ids=distinct_numbers(names),
                on_compile=lambda what, seconds: say(f"thoughts: compiled {what} in {seconds:.1f}s"))
            texts += [tokenizer.decode(rollout.tokens[i, 0, :rollout.lengths[i, 0]])
                      for i in range(len(prompts[part]))]
        return texts

    narrow = () if backbone.matmul_dtype is None else (str(backbone.matmul_dtype),)  # a store may serve several runs
    model = fingerprint(backbone.sha256, as_plain(config), *narrow)[:16]
    return LocalTeacher(generate, domain, model=model, attempts=config.attempts,
                        opened_think=tokenizer.chat("").opened_think)


def distinct_numbers(names: list[str]) -> list[int]:
    """A stable 31-bit number of each name; of two that collide (or are the same) the later one is moved on.

    Example:
        >>> first, second, third = distinct_numbers(["a", "b", "a"])
        >>> first != second and third == first + 1
        True
    """
    found: list[int] = []
    for name in names:
        number = _number(name)
        while number in found:
            number = (number + 1) % 2**31
        found.append(number)
    return found


def _number(text: str) -> int:
    """A stable 31-bit number of a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1
