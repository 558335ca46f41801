"""A trained recommender as one safetensors file that says what it is.

The header holds the model's name, its settings and the numbers of users and items it was made for; the arrays are its
parameters by path. Nothing is pickled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from r2rec_jax.baselines.classical import config_class, make_model
from r2rec_jax.baselines.events import Events
from r2rec_jax.baselines.model import Params, Recommender
from r2rec_jax.checkpoints import flatten, unflatten
from r2rec_jax.config import as_plain
from r2rec_jax.files import replaced

PARAMS_FILE = "params.safetensors"


def save_model(path: str | Path, model: Recommender, params: Params) -> None:
    """Write the file, which appears whole or not at all; the folder is made when missing."""
    header = {"model": model.name, "config": json.dumps(as_plain(model.config), sort_keys=True),
              "n_users": str(model.events.n_users), "n_items": str(model.events.n_items)}
    arrays = {name: np.ascontiguousarray(value) for name, value in flatten(jax.device_get(params)).items()}
    with replaced(path) as temporary:
        save_file(arrays, temporary, metadata=header)


def load_model(path: str | Path, events: Events) -> tuple[Recommender, Params]:
    """The model and its parameters, bit for bit.

    Args:
        path: a file of :func:`save_model`.
        events: the training edges that it was made from; only their sizes can be checked.

    Raises:
        ValueError: no such file, one of something else, or arrays that this model does not have or lacks (named).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"the parameters of a baseline must be in {path}; the file is missing; train the model first")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} must be a safetensors file; {error}; train the model again") from None
    if "model" not in header:
        raise ValueError(f"{path} must hold a baseline; its header names no model; give another file")
    made_for = [int(header["n_users"]), int(header["n_items"])]
    if made_for != [events.n_users, events.n_items]:
        raise ValueError(f"{path} was made for {made_for[0]} users and {made_for[1]} items; got events of "
                         f"{events.n_users} users and {events.n_items} items; give the data that it was trained on")
    name = header["model"]
    model = make_model(name, config_class(name)(**json.loads(header["config"])), events)
    if model.epochs == 0:
        return model, flat
    return model, _shaped(path, model, flat)


def _shaped(path: Path, model: Recommender, flat: dict[str, Any]) -> Params:
    """``flat`` in the structure of the model's own parameters."""
    template = model.init(key=jax.random.key(0))
    own = {name: tuple(x.shape) for name, x in flatten(template).items()}
    stored = {name: tuple(x.shape) for name, x in flat.items()}
    if own != stored:
        odd = sorted(name for name in own.keys() | stored.keys() if own.get(name) != stored.get(name))
        raise ValueError(f"{path} must hold the arrays of {model.name}; {', '.join(odd[:5])} differ: "
                         f"{odd[0]} is {stored.get(odd[0])} there and {own.get(odd[0])} here; train the model again")
    return unflatten(template, {name: jnp.asarray(value) for name, value in flat.items()})
