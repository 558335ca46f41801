"""tokens (see ARCHITECTURE.md)."""
