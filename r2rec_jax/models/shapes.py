"""config.json of published Llamas by hub id: what a memory plan or a random checkpoint needs, without a download."""

from __future__ import annotations

from typing import Any

DEEPSEEK_8B = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
SMOLLM2_135M = "HuggingFaceTB/SmolLM2-135M-Instruct"

KNOWN: dict[str, dict[str, Any]] = {
    DEEPSEEK_8B: {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 131072,
        "rope_theta": 500000.0, "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192},
        "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "initializer_range": 0.02,
        "bos_token_id": 128000, "eos_token_id": 128001, "dtype": "bfloat16",
    },
    SMOLLM2_135M: {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 49152, "hidden_size": 576,
        "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "head_dim": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
        "rope_theta": 100000.0, "rope_scaling": None, "tie_word_embeddings": True, "attention_bias": False,
        "mlp_bias": False, "initializer_range": 0.041666666666666664, "bos_token_id": 1, "eos_token_id": 2,
        "pad_token_id": 2, "dtype": "bfloat16",
    },
}
"""hub id -> what its config.json says of shape, constants and special tokens."""
