"""Compiled steps: one program a shape, compiled ahead of its first use and timed apart.

``jax.jit`` compiles inside the first call and hides the time in it. A :class:`Program` lowers and compiles by hand, so
that a progress bar can report compilation apart and a test can count programs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

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

    Example:
        >>> import jax.numpy as jnp
        >>> double = Program("double", lambda x: 2 * x)
        >>> double(jnp.ones(3)).sum().item(), double(jnp.zeros(3)).sum().item(), double.compilations
        (6.0, 0.0, 1)
    """

    def __init__(self, what: str, function: Callable[..., Any], donate: Sequence[int] = (),
                 report: Report = silent) -> None:
        self.what, self.function, self.report = what, function, report
        self._jitted = jax.jit(function, donate_argnums=tuple(donate))
        self._compiled: dict[Any, Any] = {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return len(self._compiled)

    def __call__(self, *args: Any) -> Any:
        """Run on these arguments, compiling first where their shapes are new."""
        leaves, treedef = jax.tree.flatten(args)
        signature = (treedef, *((leaf.shape, leaf.dtype) for leaf in leaves))
        program = self._compiled.get(signature)
        if program is None:
            started = time.monotonic()
            program = self._compiled[signature] = self._jitted.lower(*args).compile()
            self.report(self.what, time.monotonic() - started)
        return program(*args)
