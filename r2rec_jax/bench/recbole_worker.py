"""RecBole's side of :mod:`r2rec_jax.bench.recbole`, in a process of RecBole's own Python.

Run by path and isolated (``python -I``), so it imports nothing of this package. It reads one JSON request a line and
answers each with one line:

    {"op": "load", ...}         make the model of a :class:`~r2rec_jax.bench.recbole_batches.Work`; {"versions": ...}
    {"op": "steps", "n": 5}     that many training steps; {"seconds": for all of them, "loss": of the last one}

A step is what RecBole's trainer does with a batch: gradients to zero, loss, its value, backward pass, optimiser. The
models are RecBole's classes, unaltered; GraphSAGE, which RecBole lacks, is written out in plain PyTorch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import numpy as np


class DataSet:
    """What RecBole's models ask of a data set: numbers of users and items, and the matrix of training edges."""

    def __init__(self, request: dict[str, Any], arrays: dict[str, Any]) -> None:
        self.user_num, self.item_num, self.arrays = request["n_users"], request["n_items"], arrays

    def num(self, field: str) -> int:
        """How many there are, padding included."""
        return self.user_num if field == "user_id" else self.item_num

    def inter_matrix(self, form: str) -> Any:
        """Users by items, ones at the training edges."""
        from scipy.sparse import coo_matrix

        users, items = self.arrays["edge_users"], self.arrays["edge_items"]
        return coo_matrix((np.ones(len(users)), (users, items)), shape=(self.user_num, self.item_num))


class PlainGraphSAGE:
    """Our GraphSAGE in plain PyTorch: mean aggregator over sparse products, id embeddings, BPR with L2.

    Args:
        settings: dim, layers, l2.
        data: numbers of users and items, edges.
        weights: starting values by name; None draws them.
    """

    def __init__(self, settings: dict[str, Any], data: DataSet, weights: dict[str, Any] | None = None) -> None:
        import torch

        self.torch, self.l2 = torch, settings["l2"]
        layers, dim = settings["layers"], settings["dim"]
        self.n_users, nodes = data.user_num, data.user_num + data.item_num
        shapes = {"users": (data.user_num, dim), "items": (data.item_num, dim), "own": (layers, dim, dim),
                  "neighbours": (layers, dim, dim), "bias": (layers, dim)}
        drawn = {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()} if weights is None else {
            name: torch.tensor(weights[name]) for name in shapes}
        self.weights = {name: value.requires_grad_() for name, value in drawn.items()}
        users, items = data.arrays["edge_users"], data.arrays["edge_items"] + data.user_num
        at = torch.tensor(np.stack([np.append(users, items), np.append(items, users)]).astype(np.int64))
        degree = torch.bincount(at[0], minlength=nodes).clamp(min=1)
        self.mean = torch.sparse_coo_tensor(at, 1.0 / degree[at[0]], (nodes, nodes),
                                            check_invariants=True).coalesce()

    def parameters(self) -> list[Any]:
        """What is learned."""
        return list(self.weights.values())

    def calculate_loss(self, batch: dict[str, Any]) -> Any:
        """BPR over final rows, plus l2 times half the squared norms of the embeddings of the batch and the weights."""
        torch, w = self.torch, self.weights
        rows = torch.cat([w["users"], w["items"]])
        for layer in range(len(w["own"])):
            received = torch.sparse.mm(self.mean, rows)
            rows = rows @ w["own"][layer] + received @ w["neighbours"][layer] + w["bias"][layer]
            if layer + 1 < len(w["own"]):
                rows = torch.relu(rows)
        user, positive, negative = (batch[name] for name in ("user_id", "item_id", "neg_item_id"))
        own, items = rows[user], rows[self.n_users:]
        difference = (own * items[positive]).sum(-1) - (own * items[negative]).sum(-1)
        norms = w["users"][user].square().sum() + w["items"][positive].square().sum() + w[
            "items"][negative].square().sum()
        weights = sum(w[name].square().sum() for name in ("own", "neighbours", "bias"))
        bpr = torch.nn.functional.softplus(-difference).mean()
        return bpr + self.l2 * 0.5 * (norms / len(user) + weights)


def recbole_model(request: dict[str, Any], data: DataSet) -> Any:
    """RecBole's model of a name under the settings given."""
    from recbole.config import Config  # pyright: ignore[reportMissingImports]
    from recbole.utils import get_model  # pyright: ignore[reportMissingImports]

    config = Config(model=request["model"], dataset="given", config_dict=request["settings"] | {"use_gpu": False})
    model = get_model(request["model"])(config, data)
    model.train()
    return model


class Trainee:
    """A model, its optimiser and its batch."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(request["threads"])
        torch.manual_seed(0)
        with np.load(request["arrays"]) as file:
            arrays = dict(file)
        data = DataSet(request, arrays)
        own = request["model"] == "GraphSAGE"
        self.model: Any = PlainGraphSAGE(request["settings"], data) if own else recbole_model(request, data)
        self.batch = {name: torch.tensor(value) for name, value in arrays.items() if not name.startswith("edge_")}
        if "asked" in self.batch:
            # RecBole asks each row at its last place; here every place that has a target is asked.
            asked = self.batch.pop("asked")
            self.model.gather_indexes = lambda output, last: output[asked]
        kind = torch.optim.AdamW if request["weight_decay"] else torch.optim.Adam
        self.optimizer = kind(self.model.parameters(), lr=request["lr"], weight_decay=request["weight_decay"])

    def steps(self, n: int) -> dict[str, float]:
        """``n`` training steps, and how long they took."""
        loss = float("nan")
        started = time.perf_counter()
        for _ in range(n):
            self.optimizer.zero_grad()
            value = self.model.calculate_loss(self.batch)
            loss = value.item()
            value.backward()
            self.optimizer.step()
        return {"seconds": time.perf_counter() - started, "loss": loss}


def versions() -> dict[str, str]:
    """Versions of what computes here."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("recbole", "torch", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Serve until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    trainee: Trainee | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["op"] == "load":
                trainee = Trainee(request)
                reply: dict[str, Any] = {"versions": versions()}
            else:
                assert trainee is not None, "load comes first"
                reply = trainee.steps(request["n"])
        except Exception as error:  # told to the other side, which stops
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    main()
