"""templates (see ARCHITECTURE.md)."""
