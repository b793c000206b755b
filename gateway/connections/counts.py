"""What a node has counted of its connections since it started, for ``/metrics``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import REFUSAL_CODES

if TYPE_CHECKING:
    from collections.abc import Mapping

DOORS = ("socketio", "websocket", "echo", "pusher")
"""The doors by which connections come in."""


class Counts:
    """Counters; each begins at 0, so that its first rise is seen as one.

    Args:
        hooks: what became of calls of the application's hooks, by outcome, as it is counted.
    """

    def __init__(self, hooks: Mapping[str, int]) -> None:
        self.too_slow = dict.fromkeys(DOORS, 0)
        """Connections closed with 4008, by door: more waited for them than ``MAX_SEND_BUFFER``."""
        self.refused = {(door, code): 0 for door in DOORS for code in REFUSAL_CODES}
        """Connections that were not let in, by door and code."""
        self.hooks = hooks

    def refuse(self, door: str, code: str) -> None:
        """Count a connection that is not let in."""
        self.refused[door, code] = self.refused.get((door, code), 0) + 1
