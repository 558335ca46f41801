"""models (see ARCHITECTURE.md)."""
