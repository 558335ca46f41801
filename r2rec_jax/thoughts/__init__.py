"""Interaction-of-thoughts (Eq. 2): teachers, their validator, the store, and the ranking targets built from them."""
