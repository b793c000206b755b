"""The Pusher protocol's error and close codes, and which of them says what happened here.

Clients read from a close code whether to come back: after 4000 to 4099 not by themselves, after 4100 to 4199 when they
have waited for a second or more, after 4200 to 4299 at once.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from gateway.errors import (
    CloseCode,
    KeysUnavailableError,
    NodeBusyError,
    NotReadyError,
    ServerDrainingError,
    TenantFullError,
    TooManyConnectionsError,
)

if TYPE_CHECKING:
    from gateway.errors import RefusedError


class Code(IntEnum):
    """An error's code, and the one that the connection is closed with where it is closed."""

    NO_SUCH_APP = 4001
    OVER_QUOTA = 4004
    """The user, or the address, has as many connections as it may have."""
    INVALID_VERSION = 4006
    UNSUPPORTED_VERSION = 4007
    NO_VERSION = 4008
    UNAUTHORIZED = 4009
    OVER_CAPACITY = 4100
    """There is no room now, or the client was too slow, or asked for too much."""
    RECONNECT = 4200
    """This node goes, or the token is over: another connection is served."""
    NO_PONG = 4201
    CLIENT_EVENT_REJECTED = 4301
    """More client events than a connection may send; it goes on."""


VERSIONS: Final = range(5, 8)
"""Of the protocol. What differs between them is what clients make of it."""

_REFUSED: Final[dict[type[RefusedError], Code]] = {
    TooManyConnectionsError: Code.OVER_QUOTA,
    TenantFullError: Code.OVER_CAPACITY,
    NodeBusyError: Code.OVER_CAPACITY,
    NotReadyError: Code.OVER_CAPACITY,
    KeysUnavailableError: Code.OVER_CAPACITY,
    # Not RECONNECT: nothing may have taken this node out of the way yet, and the client would be back at once.
    ServerDrainingError: Code.OVER_CAPACITY,
}

_CLOSED: Final = {
    CloseCode.GOING_AWAY: (Code.RECONNECT, "This node is shutting down; connect again"),
    CloseCode.TRY_AGAIN_LATER: (Code.OVER_CAPACITY, "Try again later"),
    CloseCode.TOKEN_REFUSED: (Code.UNAUTHORIZED, "The token was revoked"),
    CloseCode.TOKEN_EXPIRED: (Code.RECONNECT, "The token has expired; connect again with a new one"),
    CloseCode.KICKED: (Code.UNAUTHORIZED, "The user's connections were terminated"),
    # Pusher has 4008 for something else, after which nobody would come back.
    CloseCode.TOO_SLOW: (Code.OVER_CAPACITY, "The client did not read what was sent to it"),
    CloseCode.RATE_LIMITED: (Code.OVER_CAPACITY, "The client sent too much"),
}


def code_of(error: RefusedError) -> Code:
    """The code for whom the gateway does not let in."""
    return _REFUSED.get(type(error), Code.UNAUTHORIZED)


def closing(code: CloseCode) -> tuple[Code, str]:
    """What a client is told whose connection the gateway ends: a code, and why."""
    return _CLOSED[code]


def refused_version(version: str | None) -> tuple[Code, str] | None:
    """What is wrong with the ``protocol`` that a client asks for; None for nothing."""
    if not version:
        return Code.NO_VERSION, "No protocol version supplied"
    if not (version.isascii() and version.isdigit()):
        return Code.INVALID_VERSION, "Invalid version string format"
    if len(version) > 3 or int(version) not in VERSIONS:  # noqa: PLR2004 - no number of a thousand digits
        return Code.UNSUPPORTED_VERSION, f"Unsupported protocol version; {VERSIONS[0]} to {VERSIONS[-1]} are served"
    return None
