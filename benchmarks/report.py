"""The results as one table, and as JSON."""

from __future__ import annotations

import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.load import ASKED_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Row = dict[str, float]
    """What one operation cost once, and how busy server and load were."""
    Measured = dict[str, dict[str, list[Row]]]
    """All rows, by server and operation."""

BASE = "node"

LABELS = {
    "heartbeat": ("heartbeat + ack", "µs"),
    "check-user-status": ("status check + ack", "µs"),
    "check-users-status": (f"{ASKED_AT_ONCE} statuses + ack", "µs"),
    "broadcast": ("one broadcast delivery", "µs"),
    "connect": ("connect with JWT, and leave", "µs"),
    "join": ("join storm, per client", "µs"),
    "memory": ("memory per connection", "KiB"),
}


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
            f"Medians (least to most) of {of['rounds']} rounds, in {of['took']:.0f} s.",
            f"Load average {before:.2f} before, {after:.2f} after; {of['stolen']:.0%} of the cores' time was stolen.",
            f"A fixed loop took {least:.0f} to {most:.0f} ms of CPU: where another run's took longer, so did all else.",
        )
    )


def conditions(of: Mapping[str, Any]) -> str:
    """What was measured, where and how, in words."""
    on = of["machine"]
    lines = [
        f"{on['cpu']}, {on['cores']} cores; {on['kernel']}; {on['python']}",
        f"{of['connections']} connections, {of['seconds']} s per operation; "
        + ("server and load pinned to a core each" if of["pinned"] else "one core for server and load: not pinned"),
        *(f"{name}: {about}" for name, about in of["servers"].items()),
    ]
    return "\n".join(lines)


def summary(measured: Measured) -> dict[str, dict[str, dict[str, float]]]:
    """For each operation and server: the median, what it ranged over, and its ratio to Node's median."""
    result: dict[str, dict[str, dict[str, float]]] = {}
    for operation in LABELS:
        values = {name: [row["value"] for row in rows[operation]] for name, rows in measured.items()}
        medians = {name: statistics.median(each) for name, each in values.items()}
        result[operation] = {
            name: {"median": medians[name], "min": min(each), "max": max(each)} for name, each in values.items()
        }
        if BASE in medians:
            for name, row in result[operation].items():
                row["ratio"] = medians[name] / medians[BASE]
    return result


def table(measured: Measured) -> str:
    """The summary as Markdown, with how busy server and load were."""
    names = list(measured)
    head = ["server's CPU per operation", *names, *(f"{name} / {BASE}" for name in names if name != BASE)]
    rows = [head]
    for operation, row in summary(measured).items():
        label, unit = LABELS[operation]
        cells = [
            f"{_short(row[name]['median'])} {unit} ({_short(row[name]['min'])} to {_short(row[name]['max'])})"
            for name in names
        ]
        ratios = [f"{row[name]['ratio']:.2f}" if "ratio" in row[name] else "" for name in names if name != BASE]
        rows.append([label, *cells, *ratios])
    busy = [["busy meanwhile: server, load", *names]]
    for operation, (label, _) in LABELS.items():
        if operation != "memory":
            busy.append([label, *(_busy(rows[operation]) for rows in measured.values())])
    return f"{_markdown(rows)}\n\n{_markdown(busy)}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004 - three digits either way


def _busy(rows: Sequence[Row]) -> str:
    shares = [statistics.median(row[whose] for row in rows) for whose in ("server_share", "load_share")]
    return ", ".join(f"{share:.0%}" for share in shares)


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" if index != 1 else f"|-{line}-|" for index, line in enumerate(lines))
