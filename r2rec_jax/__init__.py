"""R2Rec in JAX and Flax: interaction chains, interaction-of-thoughts, LoRA SFT and GRPO for recommendation."""

__version__ = "0.1.0"
