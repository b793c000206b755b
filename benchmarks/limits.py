"""What is compared with what, and how much of it may be: the one list of limits, which report and exit status go by."""

from __future__ import annotations

from dataclasses import dataclass

GATEWAY, NODE, C, BOUND = "gateway", "node", "c", "bound"
"""Whose figures they are: the servers', those of C's ``send()``, and the setting that bounds a buffer."""

IDLE_FEW, IDLE_SOME, IDLE_MANY = 100, 1_000, 15_000
ROW_FEW, ROW_SOME, ROW_MANY = "few", "some", "many"
"""How many connections the gateway holds where it is compared with itself, and what its figures are called."""

ROW_AT_ONCE = "broadcast-at-once"
"""What C's ``send()`` takes where one broadcast follows the other without a rest, and is read at once. It is told, and
compared with nothing: at the gateway's rhythm the same calls cost otherwise."""

_ADAPTER = "Redis adapter"


@dataclass(frozen=True)
class Comparison:
    """One row of the table.

    Attributes:
        row: which of the gateway's figures.
        label: the same in words.
        unit: what the figures are in.
        at_most: how many times the other's figure the gateway's may be.
        base: whose figure it is compared with.
        base_row: which of the other's figures; None where it has the same name.
        base_label: what to call the other; None where its name will do.
    """

    row: str
    label: str
    unit: str
    at_most: float
    base: str = NODE
    base_row: str | None = None
    base_label: str | None = None

    @property
    def key(self) -> str:
        """What it is called in the results; unlike a row, it is there once."""
        return self.row if self.base == NODE else f"{self.row}/{self.base_row or self.base}"


def comparisons(idle: int = IDLE_MANY) -> tuple[Comparison, ...]:
    """Every ratio that must hold, in the order of the table.

    Args:
        idle: the most connections that the gateway held.
    """
    return (
        Comparison("heartbeat", "heartbeat, acknowledged", "µs", 0.35),
        Comparison("check-user-status", "check-user-status, acknowledged", "µs", 0.35),
        Comparison("check-users-status-50", "check-users-status of 50", "µs", 0.5),
        Comparison("check-users-status-1000", "check-users-status of 1,000", "µs", 0.5),
        Comparison("broadcast", "one broadcast, per delivery", "µs", 0.5),
        Comparison("broadcast", "one broadcast, per delivery", "µs", 1.4, base=C, base_label="C's send()"),
        Comparison("connect", "connect with JWT, and disconnect", "µs", 0.45),
        Comparison("memory", "memory per idle connection", "KiB", 0.75),
        Comparison("join", "join storm, per client", "µs", 0.1),
        Comparison("rejoin", "rejoin storm, per client", "µs", 0.1),
        Comparison("across-median", "connect on A to user-online on B, median", "ms", 1.0, base_label=_ADAPTER),
        Comparison("across-p99", "connect on A to user-online on B, p99", "ms", 1.0, base_label=_ADAPTER),
        _with_itself("visit", f"connect and disconnect beside {idle:,} others", 1.15, ROW_SOME, IDLE_SOME),
        # "What it costs with 100": two measurements of the same thing differ by up to this much.
        _with_itself("beat", f"heartbeat beside {idle:,} others", 1.15, ROW_FEW, IDLE_FEW),
        # What is read is the process's memory, not the buffer: a quarter for the allocator, whose pages are whole.
        Comparison("silent", "one who reads nothing, at 1 MB/s", "KiB", 1.25, base=BOUND, base_label="MAX_SEND_BUFFER"),
    )


def _with_itself(operation: str, label: str, at_most: float, row: str, idle: int) -> Comparison:
    return Comparison(
        f"{operation}-{ROW_MANY}",
        label,
        "µs",
        at_most,
        base=GATEWAY,
        base_row=f"{operation}-{row}",
        base_label=f"{idle:,} others",
    )
