"""Judging a recommender: ranking metrics, the protocol over frozen candidate lists, significance, tables."""
