"""Lists of experiments: run, evaluated and gathered into one result file (``python -m r2rec_jax.experiments``)."""
