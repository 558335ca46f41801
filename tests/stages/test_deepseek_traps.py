"""DeepSeek-R1-Distill's traps, end to end with its tokenizer on a small Llama of its vocabulary.

Pad is the end token; the generation prompt already opens ``<think>``; the template drops the reasoning of assistant
messages. What is exported must serve as it was trained.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

from r2rec_jax.config import GrpoConfig, LoraConfig, RewardConfig
from r2rec_jax.models.backbone import Backbone, random_backbone
from r2rec_jax.models.lora import init_lora
from r2rec_jax.models.shapes import DEEPSEEK_8B, KNOWN
from r2rec_jax.rewards.steps import Band
from r2rec_jax.rewards.total import compute
from r2rec_jax.sampling.decoder import Decoder
from r2rec_jax.sampling.rollout import Rollout
from r2rec_jax.stages.export import export_merged, export_peft
from r2rec_jax.tokens.examples import Example, Limits, make_example, pack
from r2rec_jax.tokens.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

LORA = LoraConfig(rank=2, alpha=4.0)
BOS, END, USER, ASSISTANT, THINK, UNTHINK = 128000, 128001, 128011, 128012, 128013, 128014
PROMPT = "Candidates:\n1. Heat (1995)\n2. Big (1988)\n"
COMPLETION = "<think>\nThe user liked Alien.\nHeat is close to it.\n</think>\n<answer>1, 2</answer>"
SHAPE = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 8}


@pytest.fixture(scope="module")
def tokenizer(deepseek_tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.load(deepseek_tokenizer_dir)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone({**KNOWN[DEEPSEEK_8B], **SHAPE}, LORA, "float32")


@pytest.fixture(scope="module")
def example(tokenizer: Tokenizer) -> Example:
    return make_example(tokenizer, "a", PROMPT, COMPLETION, Limits(256, 64))


@pytest.fixture(scope="module")
def served(backbone: Backbone, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_merged(backbone, init_lora(backbone.lora, jax.random.key(0)), tokenizer, GrpoConfig(),
                         tmp_path_factory.mktemp("served") / "merged")


def test_the_trained_sequence_has_every_mark_once(example: Example) -> None:
    ids = [*example.prompt_ids, *example.completion_ids]
    assert [ids.count(token) for token in (BOS, USER, ASSISTANT, THINK, UNTHINK, END)] == [1] * 6
    assert ids[-1] == END and example.prompt_ids[-2] == THINK


def test_packed_rows_whose_padding_is_the_end_token_train_each_end_once(example: Example) -> None:
    batch = pack([example, example], 1, 2 * example.length + 32, 2 * len(example.completion_ids) + 8, pad_id=END)
    trained = np.asarray(batch.target_tokens)[np.asarray(batch.target_weights) > 0]
    assert (trained == END).sum() == 2
    assert (np.asarray(batch.tokens)[np.asarray(batch.segments) == 0] == END).sum() == 32


def test_the_template_loses_the_reasoning_that_we_train(served: Path, tokenizer: Tokenizer, example: Example) -> None:
    """Whoever renders the target as an assistant message trains on the answer alone."""
    import transformers

    auto = transformers.AutoTokenizer.from_pretrained(served)
    messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": COMPLETION}]
    rendered = auto.apply_chat_template(messages, tokenize=False)
    assert "liked Alien" not in rendered and "<answer>1, 2</answer>" in rendered
    ours = tokenizer.decode([*example.prompt_ids, *example.completion_ids])
    assert "liked Alien" in ours and ours.endswith(COMPLETION)


def test_rewards_count_the_reasoning_behind_a_think_of_the_prompt(tokenizer: Tokenizer, example: Example) -> None:
    text = tokenizer.decode(example.completion_ids)
    titles = ("Heat (1995)", "Big (1988)")

    def rewards(opened: bool) -> float:
        return float(compute([text], [0], [titles], RewardConfig(), Band(2, 2), opened_think=opened).step[0])

    assert tokenizer.chat(PROMPT).opened_think and rewards(True) == 1
    assert rewards(False) < 1


def test_an_end_that_is_also_the_padding_is_kept_and_counted_once(backbone: Backbone, tokenizer: Tokenizer) -> None:
    """Whatever token plays both parts, a row is as long as what came up to the first one, and is finished by it."""
    def greedy(end: int) -> Rollout:
        decoder = Decoder(backbone.graphdef, backbone.config, (end,), end)
        return decoder.generate(backbone.lora, backbone.base, [tokenizer.chat("Heat?").ids], group=1, max_new_tokens=6,
                                temperature=0, top_p=1, key=jax.random.key(0))

    free = greedy(END)
    tokens = free.tokens[0, 0].tolist()
    assert END not in tokens and not free.finished.any()
    place = next(i for i in range(1, 6) if tokens[i] not in tokens[:i])
    stopped = greedy(tokens[place])
    assert stopped.finished.all() and stopped.lengths.tolist() == [[place + 1]]
    assert stopped.tokens[0, 0].tolist() == [*tokens[:place], *[tokens[place]] * (6 - place)]
    np.testing.assert_allclose(stopped.logprobs[0, 0, :place + 1], free.logprobs[0, 0, :place + 1], atol=1e-5)


def test_the_exported_folder_serves_as_trained(served: Path, tokenizer: Tokenizer, example: Example) -> None:
    import transformers

    auto = transformers.AutoTokenizer.from_pretrained(served)
    ids = auto.apply_chat_template([{"role": "user", "content": PROMPT}], add_generation_prompt=True, tokenize=True,
                                   return_dict=False)
    assert tuple(ids) == example.prompt_ids
    assert (auto.eos_token_id, auto.pad_token_id, auto.bos_token_id) == (END, END, BOS)
    assert auto.decode(example.completion_ids, skip_special_tokens=True) == COMPLETION.removeprefix("<think>\n")
    generation = transformers.GenerationConfig.from_pretrained(served)
    assert (generation.eos_token_id, generation.pad_token_id, generation.bos_token_id) == (END, END, BOS)
    assert (generation.do_sample, generation.temperature, generation.top_p, generation.top_k) == (True, 0.6, 0.9, 0)
    generation.validate(strict=True)
    assert Tokenizer.load(served).fingerprint == tokenizer.fingerprint


def test_both_exports_carry_the_same_serving_files(served: Path, backbone: Backbone, tokenizer: Tokenizer, tmp_path
                                                   ) -> None:
    adapter = export_peft(backbone, backbone.lora, LORA, tokenizer, GrpoConfig(), tmp_path / "peft")
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (adapter / name).read_bytes() == (served / name).read_bytes()
