"""The three training loops (pretraining, SFT of Eq. 3, GRPO of Eq. 4) and their state, updates and checkpoints."""
