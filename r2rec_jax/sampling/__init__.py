"""Completions: the KV-cache decoder with exact top-p and log-probabilities, and the client of chat endpoints."""
