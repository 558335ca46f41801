"""training (see ARCHITECTURE.md)."""
