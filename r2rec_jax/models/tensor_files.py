"""Safetensors files, read and written one tensor at a time.

The library maps a whole file and its ``save_file`` wants every tensor of a file in memory at once. Pages of a map that
have been read count as this process's memory until the map is closed, so every read here maps the file anew; and the
writer knows the header before it has the tensors, since shapes say everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from r2rec_jax.models.weights import TensorSource, first_names

READABLE = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16), np.dtype(np.float64))

WRITABLE = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}
"""Types that we write, and what the format calls them."""


def open_safetensors(where: str, files: Mapping[Path, tuple[str, ...] | None]) -> TensorSource:
    """Tensors of one or several safetensors files, in the order in which they lie there; nothing is read yet.

    Args:
        where: what to call them in messages.
        files: each file and the tensors expected in it by the index, or None when there is no index.

    Raises:
        ValueError: a file is missing, truncated or not safetensors, or is not what the index says.
    """
    from safetensors import SafetensorError, safe_open

    place: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path, expected in files.items():
        if not path.is_file():
            raise ValueError(f"{where}: {path.name} is missing; fetch the folder again")
        try:
            with safe_open(str(path), framework="np") as file:
                found = {name: tuple(file.get_slice(name).get_shape()) for name in file.offset_keys()}
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"{path} is truncated or not a safetensors file ({error}); fetch it again, or "
                             "delete the folder, where a run made it, and start the run again") from None
        lost = [name for name in expected or () if name not in found]
        if lost:
            raise ValueError(f"{path} lacks {len(lost)} tensors that the index puts there: {first_names(lost)}")
        twice = [name for name in found if name in shapes]
        if twice:
            raise ValueError(f"{where}: {len(twice)} tensors are in two files: {first_names(twice)}")
        shapes |= found
        place |= dict.fromkeys(found, path)

    def read(name: str) -> np.ndarray:
        with safe_open(str(place[name]), framework="np") as file:
            tensor = file.get_tensor(name)
        if tensor.dtype not in READABLE:
            raise ValueError(f"{where}: {name} must be float32, float16 or bfloat16; got {tensor.dtype} "
                             "(quantised checkpoints are not read; take the full one, or a GGUF file)")
        return tensor

    return TensorSource(where, shapes, read)


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors file says of a tensor before its values."""

    name: str
    shape: tuple[int, ...]
    dtype: Any


def write_safetensors(path: Path, headers: Sequence[TensorHeader], tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write a file of tensors, each let go before the next is asked for.

    Args:
        path: the file.
        headers: all of its tensors, in order.
        tensors: (name, values) in the same order.

    Raises:
        ValueError: a type that is not written, or tensors that are not those of the headers.
    """
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for header in headers:
        dtype = np.dtype(header.dtype)
        if dtype not in WRITABLE:
            raise ValueError(f"a tensor to write must be float32, float16 or bfloat16; {header.name} is {dtype}")
        start, end = end, end + int(np.prod(header.shape)) * dtype.itemsize
        table[header.name] = {"dtype": WRITABLE[dtype], "shape": list(header.shape), "data_offsets": [start, end]}
    blob = json.dumps(table, separators=(",", ":")).encode()
    blob += b" " * (-len(blob) % 8)
    with path.open("wb") as file:
        file.write(len(blob).to_bytes(8, "little") + blob)
        for header, (name, tensor) in zip(headers, tensors, strict=True):
            if (name, tensor.shape, tensor.dtype) != (header.name, header.shape, np.dtype(header.dtype)):
                raise ValueError(f"the next tensor must be {header}; got {name}, {tensor.shape}, {tensor.dtype}")
            file.write(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)
