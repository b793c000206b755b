"""What many runs found, as a table."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from chaos.run import SCENARIOS, Outcome
from chaos.trace import Rule

HEAD = ("fault", "runs", "leave detection, median", "worst", "false offlines", "lost", "duplicate", "other")


def machine() -> str:
    """What it ran on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}"


def table(outcomes: Sequence[Outcome]) -> str:
    """One row for each fault, as Markdown."""
    rows: list[tuple[str, ...]] = [HEAD]
    for name, scenario in SCENARIOS.items():
        runs = [outcome for outcome in outcomes if outcome.plan.scenario.name == name]
        if not runs:
            continue
        took = [each / 1000 for outcome in runs for each in outcome.leaves]
        counts = [sum(run.count(rule) for run in runs) for rule in (Rule.FALSE_OFFLINE, Rule.LOST, Rule.DUPLICATE)]
        others = sum(len(run.violations) for run in runs) - sum(counts)
        detection = (f"{statistics.median(took):.1f} s", f"{max(took):.1f} s") if took else ("", "")
        rows.append((scenario.about, str(len(runs)), *detection, *map(str, counts), str(others)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines.insert(1, "-|-".join("-" * width for width in widths))
    return "\n".join(f"| {line} |" if index != 1 else f"|-{line}-|" for index, line in enumerate(lines))


def summary(outcomes: Sequence[Outcome], seed: int) -> str:
    """The table, and what it was measured on."""
    events = sum(outcome.records for outcome in outcomes)
    took = sum(outcome.took for outcome in outcomes)
    return f"{table(outcomes)}\n\nSeed {seed}; {events:,} records in {took:.0f} s; {machine()}."
