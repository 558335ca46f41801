"""prompts (see ARCHITECTURE.md)."""
