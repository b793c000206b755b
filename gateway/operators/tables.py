"""What commands print for people: tables, and times in few letters. Nothing that a client sent moves the terminal."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOVING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Of Unicode's categories: control characters, what turns the writing's direction, halves of pairs, and new lines."""

MINUTE, HOUR, DAY = 60, 3600, 86_400


def inert(text: str) -> str:
    """A text that changes nothing around it: what would is a question mark."""
    return "".join("?" if unicodedata.category(letter) in _MOVING else letter for letter in text)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads, each as wide as what is in it."""
    lines = [list(heads), *([inert(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def duration(seconds: float) -> str:
    """A duration in its two greatest units, such as ``3 h 5 min``."""
    if seconds < 1:
        return f"{round(seconds * 1000)} ms"
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    for unit, name, smaller, of_it in ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min"), (MINUTE, "min", 1, "s")):
        if seconds >= unit:
            rest = int(seconds % unit) // smaller
            return f"{int(seconds) // unit} {name}" + (f" {rest} {of_it}" if rest else "")
    raise AssertionError


def between(earlier: str, later: str) -> float:
    """Seconds from one of the wire's times to another."""
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
