"""Batches of examples in an order that depends on the seed alone, by Grain.

source -> seed -> shuffle -> repeat -> batch: each epoch is shuffled anew. Batches run on across epochs, so that only
the very last one of a run may be short: n examples for e epochs give ceil(n * e / batch_size) updates. The state of
the iterator is one number and some facts that it must fit; a loader that takes it over gives exactly the batches that
were still to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Loader(Generic[T]):
    """An iterator of lists of examples whose place can be saved and restored.

    Five examples, batch_size=4 and epochs=2 give batches of 4, 4 and 2, the second one holding the last example of the
    first epoch and three of the second.
    """

    def __init__(self, examples: Sequence[T], batch_size: int, epochs: int | None, seed: int, *,
                 shuffle: bool = True) -> None:
        """Batches of ``batch_size`` examples for a number of epochs (None: without end).

        Args:
            examples: anything; batches are plain lists of them.
            batch_size: examples a batch.
            epochs: passes over the examples.
            seed: gives the order, and nothing else does.
            shuffle: False keeps the given order.

        Raises:
            ValueError: when there are no examples or a number is out of range.
        """
        if not examples:
            raise ValueError("a loader must have at least one example; got none")
        if batch_size < 1 or (epochs is not None and epochs < 1):
            raise ValueError(f"batch_size must be >= 1 and epochs >= 1 or None; got {batch_size} and {epochs}")
        if not 0 <= seed < 2**32:
            raise ValueError(f"a loader's seed must be in [0, 2**32); got {seed}")
        self._facts = {"examples": len(examples), "batch_size": batch_size, "epochs": epochs, "seed": seed,
                       "shuffle": shuffle}
        self._batches: int | None = None if epochs is None else -(-len(examples) * epochs // batch_size)
        self._iterator = _grain_iterator(examples, batch_size, epochs, seed, shuffle)

    def __iter__(self) -> Iterator[list[T]]:
        """The loader itself."""
        return self

    def __next__(self) -> list[T]:
        """The next batch."""
        return next(self._iterator)

    def __len__(self) -> int:
        """Batches of the whole run, those already given included."""
        if self._batches is None:
            raise ValueError("an endless loader must not be asked for its length; got epochs=None")
        return self._batches

    def get_state(self) -> dict[str, Any]:
        """The place of the iterator as JSON-ready values."""
        return {"grain": self._iterator.get_state(), **self._facts}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go to a saved place.

        Raises:
            ValueError: when the state is of a loader with other examples, batch size, epochs or seed.
        """
        facts = {name: state.get(name) for name in self._facts}
        if facts != self._facts:
            raise ValueError(f"a loader's state must come from the same settings {self._facts}; got {facts}; "
                             "resume with the configuration that the run began with")
        self._iterator.set_state(state["grain"])


def _grain_iterator(examples: Sequence[Any], batch_size: int, epochs: int | None, seed: int, shuffle: bool) -> Any:
    import grain  # slow to import

    dataset = grain.MapDataset.source(list(examples)).seed(seed)
    if shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.repeat(epochs).batch(batch_size, drop_remainder=False, batch_fn=list)
    # No threads: examples are in memory, and the state then counts only batches that were handed out.
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
