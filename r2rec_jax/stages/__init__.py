"""stages (see ARCHITECTURE.md)."""
