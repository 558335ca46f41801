"""The bipartite training graph and the interaction chains drawn from it."""
