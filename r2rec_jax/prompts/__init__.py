"""Text that the model reads and writes: verbalised items and chains, the two prompts, the answer and its parser."""
