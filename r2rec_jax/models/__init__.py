"""Llama with LoRA in JAX: attention, log-probabilities, int8 linears, and checkpoints in HF's format."""
