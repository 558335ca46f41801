"""The check behind every range: an error that states the invariant, the value and the reason."""

from __future__ import annotations


def check(condition: bool, name: str, invariant: str, value: object, why: str = "") -> None:
    """Raise ``ValueError("<name> must be <invariant> (<why>); got <value>")`` unless ``condition`` holds."""
    if not condition:
        reason = f" ({why})" if why else ""
        raise ValueError(f"{name} must be {invariant}{reason}; got {value!r}")


def check_seed(name: str, seed: int) -> None:
    """Raise ``ValueError`` unless ``seed`` is one that every generator takes, that of the order of examples too."""
    check(0 <= seed < 2**32, name, "in 0..2**32 - 1", seed)
