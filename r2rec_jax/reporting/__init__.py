"""reporting (see ARCHITECTURE.md)."""
