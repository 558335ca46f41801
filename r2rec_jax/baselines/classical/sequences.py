"""Histories as packed rows, and what the models that read them in order share.

A user with events e1 .. en asks n questions: [start] -> e1, [start, e1] -> e2, and so on, so the input tokens are
start, e1, .., e(n-1). Histories longer than a row are cut into windows at places that move from epoch to epoch. Windows
are laid, longest first, into rows of one static length: a token knows its window (``segments``) and its place in it
(``positions``), and nothing is inferred from an id. Padding is below a percent on MovieLens, and a step compiles once.

Example, rows of 6 tokens, users a (events 5, 2, 9) and b (events 7, 1), start token S:

    items      S  5  2 | S  7 | .        segments   1  1  1  2  2  0
    targets    5  2  9 | 7  1 | .        positions  0  1  2  0  1  0
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from numpy.typing import NDArray

from r2rec_jax.baselines.classical.softmax import catalogue_loss
from r2rec_jax.baselines.events import Contexts, Events
from r2rec_jax.baselines.model import NetworkModel

SCORE_ROWS = 16
"""Packed rows a scoring pass."""


class Rows(NamedTuple):
    """Packed rows of windows; NumPy on the host, arrays under ``jit``.

    Attributes:
        items: int32 [B, T]; the start token is I.
        liked: bool [B, T], whether the user liked the item; true at the start token.
        segments: int32 [B, T], 1-based window of the row; 0 is padding.
        positions: int32 [B, T], place in the window.
        places: int32 [B*T], flat indices b*T + t that something is asked at first, any others behind them.
        targets: int32 [B*T], the item that follows at ``places``.
        count: int32 [], how many of ``places`` are asked at.
    """

    items: Any
    liked: Any
    segments: Any
    positions: Any
    places: Any
    targets: Any
    count: Any


class Windows(NamedTuple):
    """Slices of a stream of tokens: window w is ``starts[w] : starts[w] + lengths[w]``, both int64 [W]."""

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


class Stream(NamedTuple):
    """Tokens of many histories end to end, and what each is asked.

    Attributes:
        items: int32 [N], the start token is I.   liked: bool [N].
        targets: int32 [N], the item that follows, -1 where nothing is asked.
        offsets: int64 [U+1], history u is ``offsets[u]:offsets[u+1]``.
    """

    items: NDArray[np.int32]
    liked: NDArray[np.bool_]
    targets: NDArray[np.int32]
    offsets: NDArray[np.int64]


def training_stream(events: Events) -> Stream:
    """Every user's start token and events, the last one left out of the input; only likes are targets.

    Users without events have no tokens. A position whose next event was not liked asks nothing.
    """
    counts = np.diff(events.offsets)
    items = np.empty(len(events), np.int32)
    liked = np.empty(len(events), np.bool_)
    items[1:], liked[1:] = events.items[:-1], events.liked[:-1]
    first = events.offsets[:-1][counts > 0]
    items[first], liked[first] = events.n_items, True
    return Stream(items, liked, np.where(events.liked, events.items, -1).astype(np.int32), events.offsets)


def context_stream(contexts: Contexts, n_items: int, length: int) -> Stream:
    """The tokens that predict after each context: the latest ``length`` of the start token and the events.

    The last token of each is asked for (target 0, which nobody reads). Every context has at least one token.
    """
    counts = np.diff(contexts.offsets)
    kept = np.minimum(counts + 1, length)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    back = np.repeat(offsets[1:], kept) - np.arange(offsets[-1])
    starts = back > np.repeat(counts, kept)
    rows = np.where(starts, 0, np.repeat(contexts.offsets[1:], kept) - back)
    if len(contexts.items):
        items, liked = np.where(starts, n_items, contexts.items[rows]), starts | contexts.liked[rows]
    else:
        items, liked = np.full(len(rows), n_items), np.ones(len(rows), np.bool_)
    targets = np.full(len(rows), -1, np.int32)
    targets[offsets[1:] - 1] = 0
    return Stream(items.astype(np.int32), liked, targets, offsets)


def cut_windows(offsets: NDArray[np.int64], length: int, rng: np.random.Generator) -> Windows:
    """Cut histories into windows of at most ``length`` tokens.

    One that fits stays whole. A longer one is cut every ``length`` tokens from a first cut drawn in 1..length, so that
    over the epochs every event is predicted from histories of every length.

    Example: 7 tokens under length 3 with a first cut of 2 give windows of 2, 3 and 2.
    """
    counts = np.diff(offsets)
    first = np.where(counts > length, rng.integers(1, length + 1, len(counts)), np.minimum(counts, length))
    pieces = np.where(counts > 0, 1 + -(-(counts - first) // length), 0)
    users = np.repeat(np.arange(len(counts)), pieces)
    index = np.arange(len(users)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    begin = np.where(index == 0, 0, first[users] + (index - 1) * length)
    end = np.minimum(first[users] + index * length, counts[users])
    return Windows(offsets[users] + begin, end - begin)


def place_windows(lengths: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Best fit, longest first: (row of each window, its first column, number of rows).

    Windows of equal length keep their order, so shuffling them first changes who shares a row.
    """
    row = np.empty(len(lengths), np.int64)
    column = np.empty(len(lengths), np.int64)
    room: dict[int, list[int]] = {}
    sizes: list[int] = []
    rows = 0
    for window in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[window])
        at = bisect.bisect_left(sizes, need)
        if at == len(sizes):
            free, here, rows = length, rows, rows + 1
        else:
            free = sizes[at]
            here = room[free].pop()
            if not room[free]:
                del room[free], sizes[at]
        row[window], column[window] = here, length - free
        left = free - need
        if left:
            if left not in room:
                room[left] = []
                bisect.insort(sizes, left)
            room[left].append(here)
    return row, column, rows


def lay_rows(stream: Stream, windows: Windows, length: int, batch: int, rng: np.random.Generator | None = None,
             ) -> Iterator[tuple[Rows, NDArray[np.int64]]]:
    """Pack windows into batches of ``batch`` rows of ``length`` tokens; the last batch has empty rows.

    Args:
        rng: shuffles which windows share a row and the order of rows; None keeps both.

    Yields:
        A batch, and int64 [count]: the place in the stream of each token that something is asked at.
    """
    if rng is not None:
        order = rng.permutation(len(windows.starts))
        windows = Windows(windows.starts[order], windows.lengths[order])
    row, column, n_rows = place_windows(windows.lengths, length)
    if rng is not None:
        row = rng.permutation(n_rows)[row]
    batches = -(-n_rows // batch)
    source = np.full(batches * batch * length, -1, np.int64)
    position = np.zeros(len(source), np.int32)
    segment = np.zeros(len(source), np.int32)
    within = np.arange(windows.lengths.sum()) - np.repeat(np.cumsum(windows.lengths) - windows.lengths, windows.lengths)
    cells = np.repeat(row * length + column, windows.lengths) + within
    source[cells] = np.repeat(windows.starts, windows.lengths) + within
    position[cells] = within
    opens = np.zeros(len(source), np.int32)
    opens[row * length + column] = 1
    running = np.cumsum(opens.reshape(-1, length), axis=1, dtype=np.int32).reshape(-1)
    segment[cells] = running[cells]
    shape = (batch, length)
    for flat in np.arange(len(source)).reshape(batches, batch * length):
        tokens = source[flat]
        filled = tokens >= 0
        asked = np.where(filled, stream.targets[tokens], -1)
        places = np.argsort(asked < 0, kind="stable").astype(np.int32)
        count = int((asked >= 0).sum())
        yield Rows(np.where(filled, stream.items[tokens], 0).astype(np.int32).reshape(shape),
                   (filled & stream.liked[tokens]).reshape(shape), segment[flat].reshape(shape),
                   position[flat].reshape(shape), places, np.maximum(asked[places], 0).astype(np.int32),
                   np.int32(count)), tokens[places[:count]]


def drop(x: Float[Array, "... D"], rate: float, key: Array | None) -> Float[Array, "... D"]:
    """Dropout in steps of 1/256, kept values scaled by the exact inverse; none without a key or below half a step.

    Four decisions come from one 32-bit draw: a quarter of the cost of ``jax.random.bernoulli``.
    """
    threshold = round(rate * 256)
    if key is None or threshold == 0:
        return x
    words = jax.random.bits(key, (-(-x.size // 4),), "uint32")
    draws = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[:x.size].reshape(x.shape)
    return jnp.where(draws >= threshold, x * (256.0 / (256 - threshold)), 0.0)


class SequenceModel(NetworkModel):
    """SASRec and GRU4Rec but for their networks: packed rows in, full-softmax cross-entropy, tied item embeddings.

    A network has ``table`` (nnx.Param [I+1, D], the start token last) and ``hidden(rows, key) -> [B, T, D]``.
    """

    name: ClassVar[str]

    def optimizer(self) -> optax.GradientTransformation:
        """Adam; with weight decay where configured."""
        return optax.adamw(self.config.lr, b2=0.98, weight_decay=self.config.weight_decay)

    @cached_property
    def stream(self) -> Stream:
        """The training tokens."""
        return training_stream(self.history)

    def batches(self, *, seed: int, epoch: int) -> Iterator[Rows]:
        """Packed rows of one epoch: every training position once."""
        rng = np.random.default_rng((seed, epoch))
        windows = cut_windows(self.stream.offsets, self.config.max_events, rng)
        for rows, _ in lay_rows(self.stream, windows, self.config.max_events, self.config.batch_size, rng):
            yield rows

    def loss(self, params: Any, batch: Rows, *, constants: Any, key: Array) -> Float[Array, ""]:
        """Mean cross-entropy over the catalogue at the positions that ask for an item."""
        net = self.merge(params)
        hidden = net.hidden(batch, key)
        asked = hidden.reshape(-1, hidden.shape[-1])[batch.places]
        return catalogue_loss(asked, batch.targets, batch.count, net.table[...][:-1])

    def score(self, params: Any, contexts: Contexts) -> NDArray[np.float32]:
        """Scores of the catalogue after each context, float32 [Q, I]."""
        n_items, length = self.events.n_items, self.config.max_events
        stream = context_stream(self.visible(contexts), n_items, length)
        scores = np.zeros((len(contexts), n_items), np.float32)
        windows = Windows(stream.offsets[:-1], np.diff(stream.offsets))
        for rows, tokens in lay_rows(stream, windows, length, SCORE_ROWS):
            states = np.asarray(self._states(params, rows))[:len(tokens)]
            queries = np.searchsorted(stream.offsets, tokens, side="right") - 1
            scores[queries] = self._scores(params, states)
        return scores

    @partial(jax.jit, static_argnums=0)
    def _states(self, params: Any, rows: Rows) -> Float[Array, "M D"]:
        hidden = self.merge(params).hidden(rows, None)
        return hidden.reshape(-1, hidden.shape[-1])[rows.places]

    def _scores(self, params: Any, states: NDArray[np.float32]) -> NDArray[np.float32]:
        table = np.asarray(self.merge(params).table[...])[:-1]
        return states @ table.T
