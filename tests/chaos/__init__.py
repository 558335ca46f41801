"""Fault harness: training processes killed at seeded moments (see ``__main__``)."""
