"""One entrance to every reader."""

from __future__ import annotations

from pathlib import Path

from r2rec_jax.config import DataConfig
from r2rec_jax.data.amazon import load_amazon
from r2rec_jax.data.interactions import Dataset
from r2rec_jax.data.movielens import load_movielens
from r2rec_jax.data.tabular import load_table


def load_dataset(config: DataConfig, path: Path | str) -> Dataset:
    """Read the data set ``config.name``.

    Args:
        config: ``data``.
        path: what :func:`~r2rec_jax.data.fetch.locate` gave: a folder, or for Amazon and tables also the
            file of events.

    Raises:
        ValueError: a file is missing or broken; the message names the file and the line or row.
    """
    if config.name == "table":
        return load_table(config, Path(path))
    if config.name.startswith("amazon"):
        return load_amazon(config, Path(path))
    return load_movielens(config.name, path, config.split_seed)
