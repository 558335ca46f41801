"""thoughts (see ARCHITECTURE.md)."""
