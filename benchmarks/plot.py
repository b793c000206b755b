"""The ratios as a picture: a bar for each, with its limit, as plain SVG that needs no program to draw it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.report import Result

_WIDTH, _ROW, _TOP, _BOTTOM = 960, 30, 78, 64
_LEFT, _RIGHT = 430, 110
"""Pixels to the left of the bars, for what they are of, and to the right, for their figures."""
_SCALE = 2.0
"""The ratio at which the axis ends; a longer bar is cut there, and its figure says how long it is."""
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
_HELD, _MISSED, _INK, _FAINT = "#2f6fb2", "#c2571a", "#1f2933", "#c5ccd3"


def draw(rows: Sequence[Result], subtitle: str) -> str:
    """Draw the results that there are.

    Args:
        rows: what was compared; what was not measured is left out.
        subtitle: a line on where and how.
    """
    shown = [row for row in rows if row.ratio is not None]
    bottom = _TOP + _ROW * len(shown)
    height = bottom + _BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}">',
        '<g font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
        "<title>What the gateway costs, as a ratio to what it is compared with</title>",
        # A ground of its own, with a border: as legible on a dark page as on a white one.
        f'<rect x="0.5" y="0.5" width="{_WIDTH - 1}" height="{height - 1}" rx="8" fill="#ffffff" stroke="{_FAINT}"/>',
        _text(20, 30, "What the gateway costs, as a ratio to what it is compared with", size=18, weight="600"),
        _text(20, 53, subtitle),
    ]
    for tick in _TICKS:
        x = _x(tick)
        stroke = _INK if tick == 1 else _FAINT
        parts.append(f'<line x1="{x}" y1="{_TOP - 6}" x2="{x}" y2="{bottom}" stroke="{stroke}" stroke-width="1"/>')
        parts.append(_text(x, bottom + 18, f"{tick:g}", anchor="middle"))
    for index, row in enumerate(shown):
        parts += _bar(row, _TOP + _ROW * index)
    middle = (_x(0) + _x(_SCALE)) / 2
    parts.append(_text(middle, bottom + 38, "ratio: the gateway's figure / the other's (less is better)", "middle"))
    parts.append(_text(20, bottom + 38, "measured, against what", "start"))
    parts += _legend(bottom + 56)
    parts.append("</g>\n</svg>\n")
    return "\n".join(parts)


def _bar(row: Result, y: float) -> list[str]:
    assert row.ratio is not None
    comparison = row.comparison
    value, limit = row.ratio.median, comparison.at_most
    other = comparison.base_label or comparison.base.capitalize()
    colour = _HELD if row.held else _MISSED
    end, mark = _x(min(value, _SCALE)), _x(min(limit, _SCALE))
    middle = y + _ROW / 2 + 4
    return [
        _text(_LEFT - 10, middle, f"{comparison.label}, against {other}", "end", size=12),
        f'<rect x="{_x(0)}" y="{y + 6}" width="{max(end - _x(0), 1):.1f}" height="{_ROW - 12}" fill="{colour}"/>',
        # White around it: a mark upon a bar is as plain as one beside it.
        f'<line x1="{mark}" y1="{y + 1}" x2="{mark}" y2="{y + _ROW - 1}" stroke="#ffffff" stroke-width="5"/>',
        f'<line x1="{mark}" y1="{y + 1}" x2="{mark}" y2="{y + _ROW - 1}" stroke="{_INK}" stroke-width="2.5"/>',
        _text(_x(_SCALE) + 8, middle, f"{value:.2f} ({limit:g})", weight="600", colour=colour),
    ]


def _legend(y: float) -> list[str]:
    x = _x(0)
    return [
        f'<rect x="{x}" y="{y - 9}" width="12" height="10" fill="{_HELD}"/>',
        _text(x + 18, y, "within its limit", size=12),
        f'<rect x="{x + 125}" y="{y - 9}" width="12" height="10" fill="{_MISSED}"/>',
        _text(x + 143, y, "past it", size=12),
        f'<line x1="{x + 205}" y1="{y - 11}" x2="{x + 205}" y2="{y + 3}" stroke="{_INK}" stroke-width="2.5"/>',
        _text(x + 213, y, "the limit, in brackets at the right", size=12),
    ]


def _x(ratio: float) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * ratio / _SCALE, 1)


def _text(
    x: float, y: float, text: str, anchor: str = "start", *, size: int = 13, weight: str = "400", colour: str = _INK
) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" fill="{colour}">'
        f"{escape(text)}</text>"
    )
