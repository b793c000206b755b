"""What a node has counted of its connections since it started, for ``/metrics``."""

from __future__ import annotations

from gateway.errors import REFUSAL_CODES

DOORS = ("socketio", "websocket")
"""The doors by which connections come in."""


class Counts:
    """Counters, by door; each begins at 0, so that its first rise is seen as one."""

    def __init__(self) -> None:
        self.too_slow = dict.fromkeys(DOORS, 0)
        """Connections closed with 4008, by door: more waited for them than ``MAX_SEND_BUFFER``."""
        self.refused = {(door, code): 0 for door in DOORS for code in REFUSAL_CODES}
        """Connections that were not let in, by door and code."""

    def refuse(self, door: str, code: str) -> None:
        """Count a connection that is not let in."""
        self.refused[door, code] = self.refused.get((door, code), 0) + 1
