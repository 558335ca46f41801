"""Greedy grouped decoding against transformers' own ``generate``, float32, prompts of different lengths."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch

from r2rec_jax.config import LoraConfig
from r2rec_jax.models.huggingface import load_backbone
from r2rec_jax.sampling.decoder import Buckets, Decoder

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [20, 21], [90, 3, 90, 3, 90, 3, 90, 3, 90, 3, 90, 3]]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8}


@pytest.mark.parametrize("layout", ["stored", "merged"])
@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": True, "rope_parameters": LLAMA3}],
                         ids=["untied", "tied, llama3"])
def test_greedy_equals_generate(make_reference, overrides, layout) -> None:
    model, folder = make_reference(**overrides)
    end, limit = 2, 20
    expected, scores = [], []
    for prompt in PROMPTS:
        with torch.no_grad():
            out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                                 do_sample=False, max_new_tokens=limit, eos_token_id=end, pad_token_id=0,
                                 output_logits=True, return_dict_in_generate=True)
        tokens = out.sequences[0, len(prompt):].tolist()
        expected.append(tokens)
        scores.append([torch.log_softmax(z[0].double(), -1)[t].item() for z, t in zip(out.logits, tokens, strict=True)])
    backbone = load_backbone(folder, LoraConfig(rank=2, alpha=4.0), "float32")
    decoder = Decoder(backbone.graphdef, backbone.config, (end,), 0, layout=layout,
                      buckets=Buckets(prompt_tokens=8, look_every=6))
    rollout = decoder.generate(backbone.lora, backbone.base, PROMPTS, group=2, max_new_tokens=limit, temperature=0.0,
                               top_p=1.0, key=jax.random.key(0))
    for p, (tokens, logprobs) in enumerate(zip(expected, scores, strict=True)):
        for g in range(2):
            length = rollout.lengths[p, g]
            assert rollout.tokens[p, g, :length].tolist() == tokens
            assert rollout.finished[p, g] == (tokens[-1] == end)
            np.testing.assert_allclose(rollout.logprobs[p, g, :length], logprobs, atol=1e-4)
