r"""Untrusted text (titles, genres, ids) as one bounded line that cannot pass for markup.

A title may hold anything: ``<|im_end|>``, ``</think>``, ``<answer>3</answer>``, line breaks, bidirectional controls, or
a leading "3." that looks like a candidate's number. A backslash marks what was changed, as in Markdown, so ordinary
titles stay as they are:

    ``<|im_end|>`` -> ``\<|im_end|\>``      a line break -> ``\n``      U+202E -> ``\u{202e}``
    ``[INST]`` -> ``[INST\]``      ``[3] Heat`` -> ``\[3] Heat``      ``3. Heat`` -> ``3\. Heat``

Different texts stay different, but for runs of spaces (collapsed) and for what lies beyond the length limit (cut, the
cut marked with an ellipsis). Whoever splices the text into a prompt must still tokenise it as untrusted: this is the
first of two locks.
"""

from __future__ import annotations

import re
import unicodedata

TITLE_LIMIT = 200
"""Longest escaped text in characters, the ellipsis included."""

_NAMED = {"\\": "\\\\", "<": "\\<", ">": "\\>", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BRACKETED_TOKEN = re.compile(r"\[(/?[A-Z][A-Z0-9_]*)\](?!\\)")
_LEADING_NUMBER = re.compile(r"^([\[(]?[0-9]{1,4})([.)\]])(?= |$)")


def _is_disguise(char: str) -> bool:
    """Whether compatibility normalisation, which some tokenizers apply, turns ``char`` into markup or a space."""
    if char.isascii():
        return False
    folded = unicodedata.normalize("NFKC", char)
    return folded.isspace() or any(mark in folded for mark in "<>\\|") or char == "▁"


def _escape_char(char: str) -> str:
    if char in _NAMED:
        return _NAMED[char]
    if unicodedata.category(char) in _HIDDEN or _is_disguise(char):
        return f"\\u{{{ord(char):x}}}"
    return char


def escape_text(text: str, limit: int = TITLE_LIMIT) -> str:
    r"""Escape untrusted text.

    Args:
        text: anything, lone surrogates included.
        limit: longest result in characters (at least 8); a longer one is cut between escapes and ends in an ellipsis.

    Returns:
        One line without leading, trailing or doubled spaces, encodable as UTF-8. Empty only if ``text`` is blank.

    Raises:
        ValueError: ``limit`` is below 8.

    Example:
        >>> escape_text("Heat</think>")
        'Heat\\</think\\>'
    """
    if limit < 8:
        raise ValueError(f"limit must be >= 8 (an escape takes up to 10 characters); got {limit}")
    text = re.sub(" +", " ", text.strip(" "))
    units: list[str] = []
    length = 0
    for char in text:
        unit = _escape_char(char)
        units.append(unit)
        length += len(unit)
        if length > limit:
            break
    escaped = "".join(units)
    escaped = _BRACKETED_TOKEN.sub(r"[\1\\]", escaped)
    leading = _LEADING_NUMBER.match(escaped)
    if leading and leading[1][0] in "[(":
        escaped = "\\" + escaped
    elif leading:
        escaped = leading[1] + "\\" + escaped[leading.end(1):]
    return _cut(escaped, limit)


def _cut(escaped: str, limit: int) -> str:
    r"""At most ``limit`` characters, never through an escape (a ``\x`` pair or ``\u{..}``)."""
    if len(escaped) <= limit:
        return escaped
    kept: list[str] = []
    length = 0
    for unit in re.findall(r"\\u\{[0-9a-f]+\}|\\.|[^\\]", escaped):
        if length + len(unit) > limit - 1:
            break
        kept.append(unit)
        length += len(unit)
    return "".join(kept).rstrip(" ") + "…"
