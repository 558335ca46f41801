"""The ``endpoint`` teacher of a run, and the store of the thoughts that it was paid for.

Those thoughts outlive ``--overwrite``: they lie in ``thoughts.store`` (``<run>/endpoint``), keyed by content, beside
what was rejected and a journal of all requests.

    <store>/thoughts.jsonl, rejected.jsonl, requests.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2rec_jax.files import held
from r2rec_jax.sampling.endpoint import Endpoint
from r2rec_jax.sampling.spending import read_requests, spending_of
from r2rec_jax.thoughts.remote import RemoteTeacher

if TYPE_CHECKING:
    from r2rec_jax.stages.workspace import Workspace

GO_ON = "run the same command again to go on"


def store_folder(work: Workspace) -> Path:
    """Where the thoughts of the ``endpoint`` teacher lie: beside the stages, so that none of them deletes it."""
    given = work.config.thoughts.store
    return Path(given).expanduser() if given else work.run.path / "endpoint"


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Make a folder of paid answers and hold it; a second process would pay for the same ones again.

    Raises:
        ValueError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / "endpoint.lock", str(folder), "wait for it, or choose another folder"):
        yield folder


def make_remote_teacher(work: Workspace, domain: str) -> RemoteTeacher:
    """The ``endpoint`` teacher over the run's store; its folder must be held."""
    c = work.config.thoughts
    endpoint = Endpoint(c.endpoint, store_folder(work) / "requests.jsonl", setting="thoughts.endpoint")
    return RemoteTeacher(endpoint, domain, attempts=c.attempts, max_new_tokens=c.max_new_tokens,
                         temperature=c.temperature)


def spent(work: Workspace) -> dict[str, Any]:
    """What the run's store of thoughts has cost."""
    return asdict(spending_of(read_requests(store_folder(work) / "requests.jsonl").rows))
