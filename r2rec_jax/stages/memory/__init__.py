"""How much memory a run will take, kind by kind, before it touches a device (``python -m r2rec_jax.train --plan``)."""
