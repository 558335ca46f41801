"""Ahead-of-time compilation, with the results laid out by the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from r2rec_jax.parallel.distributed import several, wait
from r2rec_jax.parallel.sharding import shardings


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
