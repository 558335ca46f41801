"""Rewards of GRPO (Eq. 5-7): text in, floats out."""
