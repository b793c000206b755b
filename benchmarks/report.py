"""The results as one table, in words, and as what is written down."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.limits import BOUND, GATEWAY, NODE, ROW_AT_ONCE, C, Comparison

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Row = dict[str, float]
    """What one operation cost once, and how busy server and load were."""
    Measured = dict[str, dict[str, list[Row]]]
    """All rows, by whose they are and what was measured."""

_BUSY = 0.9
"""The share of its core from which on a process may be what holds up the other."""


@dataclass(frozen=True)
class Spread:
    """The median of some values, and what they range over."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise values, of which there is at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        ranges = "" if self.least == self.most else f" ({_short(self.least)} to {_short(self.most)})"
        return f"{_short(self.median)}{ranges}"


@dataclass(frozen=True)
class Result:
    """One row of the table.

    Attributes:
        comparison: what is compared with what.
        own: the gateway's figures; None where they were not measured.
        base: the other's; None likewise.
        ratio: of the medians, and what the ratios of neighbouring measurements range over; None where one is missing.
        others: the figures of further servers, by name.
    """

    comparison: Comparison
    own: Spread | None
    base: Spread | None
    ratio: Spread | None
    others: Mapping[str, Spread]

    @property
    def held(self) -> bool | None:
        """Whether the ratio is within its limit; None where it was not measured."""
        return None if self.ratio is None else self.ratio.median <= self.comparison.at_most


def results(measured: Measured, comparisons: Sequence[Comparison]) -> list[Result]:
    """Compare everything that is to be compared."""
    found = []
    for comparison in comparisons:
        own = _values(measured, GATEWAY, comparison.row)
        base = _values(measured, comparison.base, comparison.base_row or comparison.row)
        ratio = None
        if own and base:
            # Round by round and pass by pass: those were measured within seconds of each other.
            pairs = [a / b for a, b in zip(own, base, strict=False) if b]
            ratio = Spread(statistics.median(own) / statistics.median(base), min(pairs), max(pairs))
        others = {
            name: Spread.of(values)
            for name in measured
            if name not in {GATEWAY, NODE, C, BOUND}
            and comparison.base == NODE
            and (values := _values(measured, name, comparison.row))
        }
        found.append(
            Result(comparison, Spread.of(own) if own else None, Spread.of(base) if base else None, ratio, others)
        )
    return found


def _values(measured: Measured, whose: str, row: str) -> list[float]:
    return [each["value"] for each in measured.get(whose, {}).get(row, [])]


def table(rows: Sequence[Result]) -> str:
    """The results as Markdown."""
    others = list(dict.fromkeys(name for row in rows for name in row.others))
    lines = [["", GATEWAY, "compared with", "ratio (least to most)", "at most", "", *others]]
    for row in rows:
        comparison = row.comparison
        name = comparison.base_label or comparison.base.capitalize()
        lines.append(
            [
                comparison.label,
                f"{row.own} {comparison.unit}" if row.own else "",
                f"{name}: {row.base} {comparison.unit}" if row.base else name,
                _ratio(row.ratio) if row.ratio else "",
                f"{comparison.at_most:g}",
                {True: "held", False: "MISSED", None: "not measured"}[row.held],
                *(f"{row.others[name]} {comparison.unit}" if name in row.others else "" for name in others),
            ]
        )
    return _markdown(lines)


def busy(measured: Measured) -> str:
    """How busy server and load were with each operation, as Markdown, and in words where it was the load."""
    names = [name for name, rows in measured.items() if any("load_share" in row[0] for row in rows.values())]
    operations = list(dict.fromkeys(each for name in names for each in measured[name]))
    lines = [["busy meanwhile: server, load", *names]]
    slower = []
    for operation in operations:
        cells = []
        for name in names:
            rows = [row for row in measured[name].get(operation, []) if "load_share" in row]
            if not rows:
                cells.append("")
                continue
            server, load = (statistics.median(row[whose] for row in rows) for whose in ("server_share", "load_share"))
            cells.append(f"{server:.0%}, {load:.0%}")
            if load > _BUSY > server:
                slower.append(f"{operation} at {name}")
        if any(cells):
            lines.append([operation, *cells])
    text = _markdown(lines)
    if slower:
        text += f"\n\nThe load was busier than {_BUSY:.0%} where the server was not: {', '.join(slower)}."
    return text


def sending(measured: Measured) -> list[str]:
    """What C's ``send()`` took at the gateway's rhythm, and without a rest, in words; nothing where it was not run."""
    as_often, at_once = _values(measured, C, "broadcast"), _values(measured, C, ROW_AT_ONCE)
    if not as_often or not at_once:
        return []
    rows = measured[C]["broadcast"]
    apart, reading = (statistics.median(row[what] for row in rows) for what in ("apart", "reading"))
    same = f"a broadcast every {apart * 1e3:.0f} ms, read at {reading * 1e6:.1f} µs a message"
    least = f"{Spread.of(at_once)} µs where each followed at once, and was read at once"
    return [f"C's send() took {Spread.of(as_often)} µs as the gateway's, with {same}; {least}."]


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def loop_milliseconds() -> float:
    """The CPU time of a fixed loop: how fast this machine is now, its other tenants included."""
    began = time.process_time()
    for _ in range(5_000_000):
        pass
    return (time.process_time() - began) * 1000


def circumstances(of: Mapping[str, Any]) -> str:
    """How quiet the machine was, in words."""
    before, after = of["load_average"]
    least, most = min(of["loop_ms"]), max(of["loop_ms"])
    return "\n".join(
        (
            f"Medians (least to most) of {of['rounds']} rounds; everything took {of['took']:.0f} s.",
            f"Load average {before:.2f} before, {after:.2f} after; {of['stolen']:.0%} of the cores' time was stolen.",
            f"A fixed loop took {least:.0f} to {most:.0f} ms of CPU: where another run's took longer, so did all else.",
        )
    )


def conditions(of: Mapping[str, Any]) -> str:
    """What was measured, where and how, in words."""
    on = of["machine"]
    lines = [
        f"{on['cpu']}, {on['cores']} cores; {on['kernel']}; {on['python']}",
        f"CPU of the server's process; {of['connections']} connections, {of['seconds']} s per operation; "
        + ("server and load pinned to a core each" if of["pinned"] else "one core for server and load: not pinned"),
        *(f"{name}: {about}" for name, about in of["servers"].items()),
    ]
    return "\n".join(lines)


def summary(rows: Sequence[Result]) -> dict[str, dict[str, Any]]:
    """The results for JSON, by `Comparison.key`; what was not measured is null."""

    def spread(of: Spread | None) -> dict[str, float] | None:
        return None if of is None else {"median": of.median, "min": of.least, "max": of.most}

    return {
        row.comparison.key: {
            "label": row.comparison.label,
            "unit": row.comparison.unit,
            "compared_with": row.comparison.base_label or row.comparison.base,
            "gateway": spread(row.own),
            "base": spread(row.base),
            "ratio": spread(row.ratio),
            "at_most": row.comparison.at_most,
            "held": row.held,
            "others": {name: spread(of) for name, of in row.others.items()},
        }
        for row in rows
    }


def verdict(rows: Sequence[Result]) -> tuple[str, bool]:
    """Which limits are missed and which were not measured, in words, and whether none is missed."""
    missed = [row for row in rows if row.held is False]
    lines = [
        f"MISSED: {row.comparison.label}: {row.ratio.median:.2f} x"
        f" {row.comparison.base_label or row.comparison.base}, at most {row.comparison.at_most:g}"
        for row in missed
        if row.ratio is not None
    ]
    lines += [
        f"NOT MEASURED: {row.comparison.label}, against {row.comparison.base_label or row.comparison.base}"
        for row in rows
        if row.held is None
    ]
    return "\n".join(lines or ["Every limit holds."]), not missed


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004 - three digits either way


def _ratio(of: Spread) -> str:
    return f"{of.median:.2f} ({of.least:.2f} to {of.most:.2f})"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" if index != 1 else f"|-{line}-|" for index, line in enumerate(lines))
