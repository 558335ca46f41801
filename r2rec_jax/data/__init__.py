"""Interactions and what is drawn from them: readers, downloads, users, queries and candidates."""
