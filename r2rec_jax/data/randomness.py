"""Stateless randomness for data: every draw is a function of the seed and of what it is drawn for.

A generator that is shared between queries makes each result depend on which others were asked for, and in which
order. Here a draw is a hash (SplitMix64, Steele et al. 2014) of seed, purpose, raw ids and a counter, so a query gets
the same ties, candidates and chains alone, in any batch and on any machine. Python's ``hash`` of strings differs from
process to process and is never used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

_HASHED_AT_ONCE = 1 << 18
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def digest(text: str) -> int:
    """First 64 bits of BLAKE2b of ``text``: the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def id_keys(ids: Sequence[str] | pa.Array) -> NDArray[np.uint64]:
    """A 64-bit key (:func:`digest`) for each raw id, independent of the index that the id happens to have.

    Arrow arrays of strings are hashed piece by piece, so millions of ids never become Python strings at once.
    """
    column: pa.Array = ids if isinstance(ids, pa.Array) else pa.array(ids, pa.large_string())
    keys = np.empty(len(column), dtype=np.uint64)
    for start in range(0, len(column), _HASHED_AT_ONCE):
        raw = column.slice(start, _HASHED_AT_ONCE).cast(pa.large_binary()).to_pylist()
        hashes = b"".join([hashlib.blake2b(text, digest_size=8).digest() for text in raw])
        keys[start: start + len(raw)] = np.frombuffer(hashes, dtype="<u8")
    return keys


def mix(values: ArrayLike) -> NDArray[np.uint64]:
    """The SplitMix64 finaliser: a bijection of 64-bit words whose output bits look independent."""
    z = np.asarray(values, dtype=np.uint64)
    with np.errstate(over="ignore"):
        z = z + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        return np.asarray(z ^ (z >> np.uint64(31)))


def fold(key: ArrayLike, value: ArrayLike) -> NDArray[np.uint64]:
    """A new key from ``key`` and ``value`` (broadcast), as ``jax.random.fold_in`` does it."""
    return mix(np.asarray(key, dtype=np.uint64) ^ mix(value))


def root_key(seed: int, purpose: str) -> NDArray[np.uint64]:
    """The key of one stream: ``seed`` (any integer) and what it is for."""
    return fold(np.uint64(seed % 2**64), np.uint64(digest(purpose)))


def uniform_index(key: ArrayLike, size: ArrayLike) -> NDArray[np.int64]:
    """An index in ``[0, size)`` from the upper 53 bits of each key (bias below size / 2**53).

    Example:
        >>> uniform_index(root_key(0, "example"), 1)
        array(0)
    """
    unit = (np.asarray(key, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(unit * np.asarray(size)).astype(np.int64)


def generator(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """A NumPy generator of its own for one purpose (and one query, given the keys of its user and item)."""
    return np.random.Generator(np.random.PCG64([seed % 2**64, digest(purpose), *keys]))
