"""What of a Lua script is sent."""

from __future__ import annotations

import re

_PARTS = re.compile(
    r"""
      (?P<text> "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | \[(?P<level>=*)\[.*?\](?P=level)\] )
    | [ \t]* (?P<long> --\[(?P<depth>=*)\[.*?\](?P=depth)\] )
    | [ \t]* --[^\n]*
    | ^[ \t]+
    | [ \t]+$
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
"""Texts, which stay as they are, and what goes."""


def stripped(script: str) -> str:
    """A Lua script without comments and indentation: to Redis the same, and a third shorter.

    Its lines keep their numbers, by which Redis names errors: of one that goes, a byte is left.
    """
    return _PARTS.sub(_left, script)


def _left(part: re.Match[str]) -> str:
    if part["text"] is not None:
        return part["text"]
    # A comment parts two words as a blank does, and one over several lines as those do.
    return "\n" * part[0].count("\n") or (" " if part["long"] is not None else "")
