"""rewards (see ARCHITECTURE.md)."""
