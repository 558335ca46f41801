"""evaluation (see ARCHITECTURE.md)."""
