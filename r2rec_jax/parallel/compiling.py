"""Compilation ahead of time: each program compiled before its first use and timed apart, its results laid by the table.

``jax.jit`` compiles inside the first call and hides the time in it. Here lowering and compiling are steps of their own,
so that a progress bar can report them apart and a test can count programs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from r2rec_jax.parallel.distributed import several, wait
from r2rec_jax.parallel.sharding import shardings

Report = Callable[[str, float], None]
"""Told what was compiled and in how many seconds."""


def silent(what: str, seconds: float) -> None:
    """A report that says nothing."""


class Compiled:
    """Programs compiled so far, by a key that says which and for which shapes.

    Args:
        mesh: where their arguments and results lie; None for a single device.
    """

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh = mesh
        self._programs: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._programs)

    def run(self, key: Hashable, what: str, function: Callable[..., Any], args: Sequence[Any], *,
            donate: Sequence[int] = (), report: Report = silent) -> Any:
        """``function(*args)``, compiled first where the key is new; ``report`` is then told of it under ``what``."""
        program = self._programs.get(key)
        if program is None:
            started = time.monotonic()
            program = self._programs[key] = compile_placed(function, args, donate, self.mesh)
            report(what, time.monotonic() - started)
        return program(*args)


def compile_placed(function: Callable[..., Any], args: Sequence[Any], donate: Sequence[int], mesh: Mesh | None) -> Any:
    """``function`` compiled for these arguments.

    Args:
        function: pure, arrays in and arrays out.
        args: placed already; the program takes no others.
        donate: positions of donated arguments.
        mesh: the results lie on it by the table, so that they can be the arguments of the next program as they are;
            None leaves all to jax.
    """
    if mesh is None:
        return jax.jit(function, donate_argnums=tuple(donate)).lower(*args).compile()
    with jax.set_mesh(mesh):
        out = shardings(jax.eval_shape(function, *args), mesh)
        program = jax.jit(function, donate_argnums=tuple(donate), out_shardings=out).lower(*args).compile()
    if several():
        wait()  # one host compiles faster than another, and the first collective is not patient
    return program
