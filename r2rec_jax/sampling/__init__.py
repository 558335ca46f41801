"""sampling (see ARCHITECTURE.md)."""
