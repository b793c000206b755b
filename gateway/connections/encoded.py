"""The answers that are asked for all the time, as JSON, without making their types: what `wire` would encode."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gateway import wire

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.presence.model import UserStatus

_NEVER_SEEN: Final = (
    b',"online":false,"status":"offline","statusText":null,"lastActive":null,"connectedAt":null,"version":0}'
)


class _Now:
    """The time as it was written last: what is answered in one millisecond says the same."""

    def __init__(self) -> None:
        self._at = -1
        self._text = self._ack = b""

    def write(self, now: int) -> bytes:
        """Write a time as the contract does."""
        if now != self._at:
            self._text, self._at = wire.timestamp(now).encode(), now
            self._ack = b""
        return self._text

    def heartbeat_ack(self, now: int) -> bytes:
        """Acknowledge a heartbeat of a user who is active by it: all of one millisecond with the same object."""
        text = self.write(now)
        if not self._ack:
            self._ack = _heartbeat_ack(text, text)
        return self._ack


_now: Final = _Now()


def status(of: UserStatus) -> bytes:
    """A `wire.UserStatus`, or what only its user is told as a `wire.OwnUserStatus`.

    It is kept with the status: most are asked for more often than they change.
    """
    if not of.version and of.own is None:  # nobody knows this user, and nobody keeps the status
        return b"".join((b'{"userId":', wire.encode(of.user_id), _NEVER_SEEN))
    kept: bytes | None = of.__dict__.get("encoded")
    if kept is None:
        kept = of.__dict__["encoded"] = wire.encode(
            wire.user_status(of) if of.own is None else wire.own_user_status(of)
        )
    return kept


def status_at(of: UserStatus, now: int) -> bytes:
    """A `wire.UserStatusAt`."""
    return b"".join((status(of)[:-1], b',"timestamp":"', _now.write(now), b'"}'))


def statuses_at(of: Iterable[UserStatus], now: int) -> bytes:
    """A `wire.UserStatuses`."""
    return b"".join(
        (b'{"statuses":[', b",".join([status(each) for each in of]), b'],"timestamp":"', _now.write(now), b'"}')
    )


def heartbeat_ack(now: int, active_at: int) -> bytes:
    """A `wire.HeartbeatAck`."""
    if active_at == now:
        return _now.heartbeat_ack(now)
    return _heartbeat_ack(_now.write(now), wire.timestamp(active_at).encode())


def _heartbeat_ack(now: bytes, active_at: bytes) -> bytes:
    return b"".join((b'{"timestamp":"', now, b'","lastActive":"', active_at, b'"}'))
