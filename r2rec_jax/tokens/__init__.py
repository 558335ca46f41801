"""Text to token ids and back, examples, batches, and the order they come in."""
