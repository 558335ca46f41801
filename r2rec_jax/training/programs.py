"""Compiled steps: a function that is compiled once for each set of shapes that it is called with.

On a mesh, arguments and results lie where the table of :mod:`r2rec_jax.parallel.sharding` puts them, so the results of
one program are the arguments of the next as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from r2rec_jax.parallel.compiling import Compiled, Report, silent
from r2rec_jax.parallel.sharding import place


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
        self.what, self.function, self.report = what, function, report
        self._donate = tuple(donate)
        self._compiled = Compiled(mesh)

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return len(self._compiled)

    def __call__(self, *args: Any) -> Any:
        """Run on these arguments, compiling first where their shapes are new."""
        args = place(args, self._compiled.mesh)
        leaves, treedef = jax.tree.flatten(args)
        signature = (treedef, *((leaf.shape, leaf.dtype) for leaf in leaves))
        return self._compiled.run(signature, self.what, self.function, args, donate=self._donate, report=self.report)
