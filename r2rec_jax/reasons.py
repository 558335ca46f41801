"""An error as a part of a message."""

from __future__ import annotations


def one_line(error: BaseException, limit: int | None = 300) -> str:
    """What an error says, on one line; its type's name where it says nothing.

    Args:
        error: an exception.
        limit: longest line in characters; what is longer is cut and ends in "...". None cuts nothing.

    Example:
        >>> one_line(ValueError("no such\\n  file"))
        'no such file'
        >>> one_line(TimeoutError())
        'TimeoutError'
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if limit is None or len(text) <= limit else text[: limit - 3] + "..."
