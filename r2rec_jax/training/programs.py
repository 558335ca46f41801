"""Compiled steps: one program a shape, compiled ahead of its first use and timed apart.

``jax.jit`` compiles inside the first call and hides the time in it. A :class:`Program` lowers and compiles by hand, so
that a progress bar can report compilation apart and a test can count programs.

On a mesh, arguments and results lie where the table of :mod:`r2rec_jax.parallel.sharding` puts them, so the results of
one program are the arguments of the next as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from r2rec_jax.parallel.compiling import compile_placed
from r2rec_jax.parallel.sharding import place

Report = Callable[[str, float], None]
"""Told what was compiled and in how many seconds."""


def silent(what: str, seconds: float) -> None:
    """A report that says nothing."""


class Program:
    """A pure function, jitted with donation, with its compilations in the open.

    Args:
        what: name in reports.
        function: pure, arrays in and arrays out.
        donate: positions of donated arguments.
        report: called after each compilation.
        mesh: where arguments are placed; None leaves them where they are.

    Example:
        >>> import jax.numpy as jnp
        >>> double = Program("double", lambda x: 2 * x)
        >>> double(jnp.ones(3)).sum().item(), double(jnp.zeros(3)).sum().item(), double.compilations
        (6.0, 0.0, 1)
    """

    def __init__(self, what: str, function: Callable[..., Any], donate: Sequence[int] = (),
                 report: Report = silent, mesh: Mesh | None = None) -> None:
        self.what, self.function, self.report, self.mesh = what, function, report, mesh
        self._donate = tuple(donate)
        self._compiled: dict[Any, Any] = {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return len(self._compiled)

    def __call__(self, *args: Any) -> Any:
        """Run on these arguments, compiling first where their shapes are new."""
        args = place(args, self.mesh)
        leaves, treedef = jax.tree.flatten(args)
        signature = (treedef, *((leaf.shape, leaf.dtype) for leaf in leaves))
        program = self._compiled.get(signature)
        if program is None:
            started = time.monotonic()
            program = self._compiled[signature] = compile_placed(self.function, args, self._donate, self.mesh)
            self.report(self.what, time.monotonic() - started)
        return program(*args)
