"""Measurements against other implementations: the one place of the package that may import PyTorch, and only lazily."""
