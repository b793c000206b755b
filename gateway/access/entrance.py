"""What lets clients in, by whichever door they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from gateway.access.admission import Admission
    from gateway.access.auth import Authenticator
    from gateway.access.origins import Origins
    from gateway.connections.connections import Connections
    from gateway.connections.counts import Counts
    from gateway.presence.clock import Clock
    from gateway.runtime.timers import TimerWheel
    from gateway.settings import Settings


class Entrance(NamedTuple):
    """What each door asks, in this order."""

    settings: Settings
    origins: Origins
    """Which pages may connect, and whose cookies may be tokens."""
    admission: Admission
    """When the next one is let in."""
    authenticator: Authenticator
    """Whose token it is."""
    connections: Connections
    """Where the connection of a user lives."""
    counts: Counts
    """Where those are counted that were refused, or too slow."""
    timers: TimerWheel
    """What ends those that do not go on."""
    clock: Clock
    """The time, in Unix milliseconds."""
