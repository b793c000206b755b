"""Every error the gateway raises on purpose.

The tree, with the code a client sees, the HTTP status and the WebSocket close code::

    GatewayError
    ├── ConfigurationError              a setting is missing or wrong: the start is refused
    ├── CommandError                    what a command asked a gateway for could not be done
    ├── DatabaseError                   the database of an export cannot be written now: tried again later
    │   └── OvertakenError              another has written to it since it was read
    ├── LeaseLostError                  a node's lease ran out: it must register its connections again
    ├── LogTrimmedError                 a follower fell behind the log: it must take a snapshot
    ├── StoreUnavailableError           the store cannot be reached: what waits for it is done when it is back
    ├── RequestError                    one request failed; the connection goes on
    │   ├── InvalidPayloadError         INVALID_PAYLOAD      400
    │   │   └── TooLargeError           INVALID_PAYLOAD      413
    │   ├── ForbiddenError              FORBIDDEN            403
    │   │   ├── ConflictError           FORBIDDEN            409
    │   │   └── SignatureError          FORBIDDEN            401
    │   ├── NotFoundError               NOT_FOUND            404
    │   ├── UnknownEventError           UNKNOWN_EVENT        404
    │   ├── RateLimitedError            RATE_LIMITED         429   carries retry_after
    │   ├── InternalError               INTERNAL             500
    │   └── UnavailableError            UNAVAILABLE          503
    └── RefusedError                    a caller is not let in
        ├── TokenMissingError           TOKEN_MISSING        401   4001
        ├── TokenInvalidError           TOKEN_INVALID        401   4001
        ├── TokenExpiredError           TOKEN_EXPIRED        401   4002
        ├── MetaRefusedError            INVALID_PAYLOAD      400   4001
        ├── TooManyConnectionsError     TOO_MANY_CONNECTIONS 429   4029
        ├── TenantFullError             TENANT_FULL          503   1013
        ├── NodeBusyError               RATE_LIMITED         503   1013   carries retry_after
        ├── ServerDrainingError         SERVER_DRAINING      503   1001   carries retry_after
        ├── NotReadyError               UNAVAILABLE          503   1013
        └── KeysUnavailableError        UNAVAILABLE          503   1013

A message says what to do about it, and never holds a token or a key.
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import ClassVar


class CloseCode(IntEnum):
    """Why the gateway closed a WebSocket: section 5 of the contract, and RFC 6455 below 4000."""

    GOING_AWAY = 1001
    """This node is draining: connect again, to another one."""
    TRY_AGAIN_LATER = 1013
    TOKEN_REFUSED = 4001
    TOKEN_EXPIRED = 4002
    KICKED = 4003
    TOO_SLOW = 4008
    """The client did not read what was sent to it, and its bounded queue was full."""
    RATE_LIMITED = 4029


class GatewayError(Exception):
    """The root of the tree."""


class ConfigurationError(GatewayError):
    """A setting is missing or wrong. The message names the variable and what it takes."""


class CommandError(GatewayError):
    """What a command asked a gateway for could not be done. The message says what to do."""


class DatabaseError(GatewayError):
    """The database that presence is exported to cannot be reached or written. Presence itself is not touched."""


class OvertakenError(DatabaseError):
    """Another exporter has written since this one read how far the database is; nothing was written."""


class LeaseLostError(GatewayError):
    """A command came from a node whose lease the store does not hold; nothing was committed."""


class LogTrimmedError(GatewayError):
    """The log no longer holds the entry after the one asked for; take a snapshot."""


class StoreUnavailableError(GatewayError):
    """The store cannot be reached, or cannot serve now. Whether a command was done is not known."""


class RequestError(GatewayError):
    """A request failed, for its sender only."""

    code: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    retry_after: float | None = None
    """Seconds after which the same request may succeed; None where time does not mend it."""


class InvalidPayloadError(RequestError):
    """The payload is not of the request's form."""

    code = "INVALID_PAYLOAD"
    http_status = 400


class TooLargeError(InvalidPayloadError):
    """What a backend sent has more bytes than it may have."""

    http_status = 413


class ForbiddenError(RequestError):
    """The caller is known, and may not do this."""

    code = "FORBIDDEN"
    http_status = 403


class ConflictError(ForbiddenError):
    """What is asked for does not go with how things are."""

    http_status = 409


class SignatureError(ForbiddenError):
    """A request is not signed with the Pusher application's secret, or was not signed just now."""

    http_status = 401


class NotFoundError(RequestError):
    """What the request names does not exist."""

    code = "NOT_FOUND"
    http_status = 404


class UnknownEventError(RequestError):
    """No request has this name."""

    code = "UNKNOWN_EVENT"
    http_status = 404


class RateLimitedError(RequestError):
    """The caller is over its limit.

    Args:
        message: what the limit is.
        retry_after: seconds until the next request is taken.
    """

    code = "RATE_LIMITED"
    http_status = 429

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = math.ceil(retry_after * 1000) / 1000


class InternalError(RequestError):
    """The gateway's own fault; the log has it."""


class UnavailableError(RequestError):
    """A part the request needs is away for the moment."""

    code = "UNAVAILABLE"
    http_status = 503


def store_away() -> UnavailableError:
    """What a client is told when the store raised `StoreUnavailableError`."""
    return UnavailableError("the store is away; try again in a moment")


class RefusedError(GatewayError):
    """A caller is not let in.

    Args:
        message: why, and what to do about it.
        retry_after: seconds after which the same caller may be let in; None keeps what is usual for the error.
    """

    code: ClassVar[str] = "TOKEN_INVALID"
    http_status: ClassVar[int] = 401
    close_code: ClassVar[CloseCode] = CloseCode.TOKEN_REFUSED
    retry_after: float | None = None
    """None where time does not mend it, or nobody knows when."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        if retry_after is not None:
            self.retry_after = math.ceil(retry_after * 1000) / 1000

    def told(self) -> dict[str, str | float]:
        """What a client that is not let in is told: ``{code, message, retryAfter?}``."""
        told: dict[str, str | float] = {"code": self.code, "message": str(self)}
        return told if self.retry_after is None else told | {"retryAfter": self.retry_after}


class TokenMissingError(RefusedError):
    """No token in any of the places it is looked for."""

    code = "TOKEN_MISSING"


class TokenInvalidError(RefusedError):
    """The token's signature, issuer, audience or claims are not accepted."""


class TokenExpiredError(RefusedError):
    """The token was good once."""

    code = "TOKEN_EXPIRED"
    close_code = CloseCode.TOKEN_EXPIRED


class MetaRefusedError(RefusedError):
    """What the client says of itself in its handshake is no JSON object, or too large."""

    code = "INVALID_PAYLOAD"
    http_status = 400


class TooManyConnectionsError(RefusedError):
    """The user holds as many connections as ``MAX_CONNECTIONS_PER_USER`` allows."""

    code = "TOO_MANY_CONNECTIONS"
    http_status = 429
    close_code = CloseCode.RATE_LIMITED


class TenantFullError(RefusedError):
    """The tenant holds as many connections as ``MAX_CONNECTIONS_PER_TENANT`` allows."""

    code = "TENANT_FULL"
    http_status = 503
    close_code = CloseCode.TRY_AGAIN_LATER


class NodeBusyError(RefusedError):
    """More connect to this node than ``CONNECT_RATE`` lets in; there will be room after `retry_after`."""

    code = "RATE_LIMITED"
    http_status = 503
    close_code = CloseCode.TRY_AGAIN_LATER


class ServerDrainingError(RefusedError):
    """This node is shutting down; another one takes the connection."""

    code = "SERVER_DRAINING"
    http_status = 503
    close_code = CloseCode.GOING_AWAY
    retry_after: float = 1.0


class NotReadyError(RefusedError):
    """This node has just started, and does not know yet who is online: the store has not answered once."""

    code = "UNAVAILABLE"
    http_status = 503
    close_code = CloseCode.TRY_AGAIN_LATER


class KeysUnavailableError(RefusedError):
    """The keys to verify tokens with cannot be fetched: this says nothing about the token."""

    code = "UNAVAILABLE"
    http_status = 503
    close_code = CloseCode.TRY_AGAIN_LATER


REFUSAL_CODES = tuple(sorted({kind.code for kind in RefusedError.__subclasses__()} | {"INTERNAL"}))
"""Every code that a connection can be refused with."""

CODES = tuple(sorted({*REFUSAL_CODES, *(kind.code for kind in RequestError.__subclasses__())}))
"""Every code that a call over HTTP can be answered with."""
