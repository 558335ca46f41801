"""The stages of a run from data to exports, the run folder they share, and the commands built on them."""
