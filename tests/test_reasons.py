"""Errors on one line."""

from __future__ import annotations

import pytest

from r2rec_jax.reasons import one_line


@pytest.mark.parametrize(("error", "limit", "line"), (
    (ValueError("no such\n   file\t"), 300, "no such file"),
    (TimeoutError(), 300, "TimeoutError"),
    (ValueError("a" * 10), 10, "a" * 10),
    (ValueError("a" * 11), 10, "a" * 7 + "..."),
    (ValueError("a" * 1000), None, "a" * 1000),
))
def test_errors_on_one_line(error: Exception, limit: int | None, line: str) -> None:
    assert one_line(error, limit) == line
