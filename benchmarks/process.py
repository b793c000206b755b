"""What the operating system says of a process. Linux only, as is pinning to a core."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def cpu_seconds(pid: int) -> float:
    """The CPU time, user and system, that a process has used in all its threads.

    It is what ``/proc/PID/stat`` counts, but in nanoseconds where that counts in hundredths of a second.
    """
    clock = (~pid << 3) | 2  # as clock_getcpuclockid(3) makes it; Python has that function for threads only
    return time.clock_gettime_ns(clock) / 1e9


def resident_bytes(pid: int) -> int:
    """The memory that a process has resident (RSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def stolen_seconds() -> float:
    """What the hypervisor has kept from all cores, since the machine's start: it makes CPU time look longer."""
    return int(Path("/proc/stat").read_text().split(maxsplit=9)[8]) / os.sysconf("SC_CLK_TCK")


@contextmanager
def children_on(core: int | None) -> Iterator[None]:
    """Processes started meanwhile stay on this core, with all their threads; None leaves them where they like."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
